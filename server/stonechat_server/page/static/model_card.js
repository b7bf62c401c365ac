// What the server says about its models: the list to choose from, a card, and the context's size.

import { getJson, getKey } from "./api.js";
import { byId, el } from "./dom.js";

const STATES_EVERY_MS = 3000;
const UNITS = ["byte", "kB", "MB", "GB", "TB"];

function size(bytes) {
  let value = bytes;
  let unit = 0;
  for (; value >= 1000 && unit < UNITS.length - 1; unit += 1) value /= 1000;
  return `${unit ? value.toFixed(1) : value} ${UNITS[unit]}`;
}

function count(number) {
  if (number >= 1e9) return `${(number / 1e9).toFixed(1)} billion`;
  return `${(number / 1e6).toFixed(0)} million`;
}

export class Models {
  // onChange(): another model is chosen, or more is known of it.
  constructor(select, onChange) {
    this.select = select;
    this.onChange = onChange;
    this.cards = new Map();
    this.path = [];
    byId("card").addEventListener("toggle", () => byId("card").open && this.drawCard());
    select.addEventListener("change", () => this.drawCard());
  }

  get current() {
    return this.cards.get(this.select.value);
  }

  // Why the chosen model takes no images, or no audio. "" if it does, and if the server does not say.
  whyNo(modality) {
    const modalities = this.current?.input_modalities;
    if (!modalities || modalities.includes(modality)) return "";
    const reason = this.current.stonechat?.[`${modality}_refusal`];
    const what = modality === "image" ? "images" : "audio";
    return `This model takes no ${what}${reason ? `: ${reason}` : ""}.`;
  }

  // Changes nothing if the key is another one by then. Throws what `getJson` throws.
  async load() {
    const key = getKey();
    const { data } = await getJson("v1/models");
    if (key !== getKey()) return;
    const chosen = this.select.value;
    this.cards = new Map(data.map((card) => [card.id, card]));
    this.drawOptions(data);
    if (this.cards.has(chosen)) this.select.value = chosen;
    this.drawCard();
  }

  // Options that stay are only renamed, because the menu may be open.
  drawOptions(cards) {
    const options = [...this.select.options];
    if (options.map((one) => one.value).join("\n") !== cards.map(({ id }) => id).join("\n"))
      this.select.replaceChildren(...cards.map(({ id }) => el("option", { value: id }, id)));
    cards.forEach((card, i) => {
      const label = !card.state || card.state === "loaded" ? card.id : `${card.id} (${card.state})`;
      if (this.select.options[i].text !== label) this.select.options[i].text = label;
    });
  }

  // Reads the states of several models again, every few seconds while the page is visible.
  startStates() {
    const tick = async () => {
      if (!document.hidden && this.cards.size > 1) await this.load().catch(() => {});
      setTimeout(tick, STATES_EVERY_MS);
    };
    setTimeout(tick, STATES_EVERY_MS);
  }

  showProblem(text) {
    this.select.replaceChildren(el("option", { value: "" }, text));
    this.drawCard();
  }

  drawCard() {
    const card = this.current;
    const model = card?.stonechat ?? {};
    const rows = [
      ["Model", card?.root],
      ["State", this.cards.size > 1 && card?.state],
      ["Problem", card?.error],
      ["Memory", this.cards.size > 1 && card?.size && size(card.size)],
      ["Architecture", model.architecture],
      ["Parameters", model.num_parameters && count(model.num_parameters)],
      ["Weights", model.weight_bytes && size(model.weight_bytes)],
      ["Quantisation", model.quantization],
      ["Reads", card?.input_modalities?.join(", ")],
      ["No images", model.image_refusal],
      ["No audio", model.audio_refusal],
      ["No videos", model.video_refusal],
      ["Context", card?.max_model_len && `${card.max_model_len.toLocaleString("en")} tokens`],
      ["KV cache", model.kv_bytes_per_token && `${size(model.kv_bytes_per_token)} a token`],
      ["Runs on", model.device && `${model.device} (${model.backend}, ${model.attention_backend})`],
    ];
    byId("card-rows").replaceChildren(
      ...rows
        .filter(([, value]) => value)
        .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    );
    this.drawMeter();
    this.onChange();
  }

  // Shows how much of the model's context a conversation fills, as far as its last answer says.
  drawMeter(path = this.path) {
    this.path = path;
    const box = byId("context");
    const turn = path.findLast((one) => one.role === "assistant" && one.usage);
    const limit = this.current?.max_model_len;
    box.hidden = !turn || !limit;
    if (box.hidden) return;
    const { prompt_tokens: prompt, completion_tokens: completion } = turn.usage;
    const used = prompt + Math.round(completion / turn.choices.length);
    byId("context-meter").max = limit;
    byId("context-meter").value = used;
    byId("context-text").textContent =
      `${used.toLocaleString("en")} of ${limit.toLocaleString("en")} tokens of context`;
    box.classList.toggle("bad", used > 0.9 * limit);
  }
}
