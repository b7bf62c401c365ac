// One choice of an answer: its record grows with the deltas of the stream, and it is drawn as text,
// tokens or raw JSON.

import { copyText, el } from "./dom.js";
import { codeBlock, drawMarkdown } from "./markdown.js";
import { renderTokens } from "./tokens.js";
import { choiceMessage } from "./tree.js";

export const newChoice = () => ({
  content: "",
  reasoning: "",
  reasoningMs: 0,
  refusal: "",
  toolCalls: [],
  logprobs: [],
  finishReason: null,
});

// Adds a chunk's part for this choice. `now` is milliseconds since the request began.
export function addDelta(record, part, now) {
  const delta = part.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  record.content += delta.content ?? "";
  record.reasoning += reasoning;
  record.refusal += delta.refusal ?? "";
  if (reasoning) {
    record.reasoningFrom ??= now;
    record.reasoningMs = now - record.reasoningFrom;
  }
  for (const call of delta.tool_calls ?? []) addToolCall(record.toolCalls, call);
  if (part.logprobs?.content) record.logprobs.push(...part.logprobs.content);
  if (part.finish_reason) record.finishReason = part.finish_reason;
}

function addToolCall(calls, part) {
  for (let at = calls.length; at <= part.index; at += 1) calls.push({ id: "", type: "function" });
  const call = calls[part.index];
  if (part.id) call.id = part.id;
  if (part.type) call.type = part.type;
  for (const kind of ["function", "custom"]) {
    if (!part[kind]) continue;
    call[kind] ??= {};
    for (const [name, text] of Object.entries(part[kind]))
      call[kind][name] = (call[kind][name] ?? "") + text;
  }
}

export class ChoiceView {
  constructor(record, isJson) {
    this.record = record;
    this.isJson = isJson;
    this.view = "text";
    this.summary = el("summary", {});
    this.reasoningText = el("div", { class: "reasoning-text" });
    this.reasoning = el(
      "details",
      { class: "reasoning", hidden: true },
      this.summary,
      this.reasoningText,
    );
    this.summary.addEventListener("click", () => {
      this.isToggled = true;
    });
    this.body = el("div", { class: "text" });
    this.foot = el("div", { class: "row foot" });
    this.node = el("article", { class: "choice" }, this.reasoning, this.body, this.foot);
  }

  draw(isRunning) {
    const { reasoning, reasoningMs, content, toolCalls } = this.record;
    const isThinking = isRunning && !content && !toolCalls.length;
    this.reasoning.hidden = !reasoning;
    this.summary.textContent = isThinking
      ? "Thinking…"
      : `Thought for ${(reasoningMs / 1000).toFixed(1)} s`;
    if (this.reasoningText.textContent !== reasoning) this.reasoningText.textContent = reasoning;
    if (!this.isToggled) this.reasoning.open = isThinking;
    this.drawBody();
  }

  drawBody() {
    const { record } = this;
    if (this.view === "tokens") return this.body.replaceChildren(renderTokens(record.logprobs));
    if (this.view === "raw") {
      const text = JSON.stringify(choiceMessage(record), null, 2);
      return this.body.replaceChildren(codeBlock(text, "json"));
    }
    this.text ??= el("div", { class: "markdown" });
    if (this.isJson) this.text.replaceChildren(codeBlock(record.content, "json"));
    else drawMarkdown(this.text, record.content);
    const refusal = record.refusal ? [el("p", { class: "problem" }, record.refusal)] : [];
    const nodes = [...refusal, ...(record.content ? [this.text] : [])];
    const calls = record.toolCalls.map(toolCallNode);
    // The text's node stays in place, so that a selection in it survives.
    if (this.body.firstChild !== nodes[0] || this.body.childNodes.length !== nodes.length) {
      this.body.replaceChildren(...nodes, ...calls);
    }
  }

  // `buttons` follow those that change the view.
  drawFoot(buttons, status) {
    const views = { text: "Text", tokens: "Tokens", raw: "Raw" };
    if (!this.record.logprobs.length) delete views.tokens;
    const choose = (view) => {
      this.view = view;
      this.drawBody();
      this.drawFoot(buttons, status);
    };
    const viewButtons = Object.entries(views).map(([view, name]) =>
      small(name, () => choose(view), { "aria-pressed": String(this.view === view) }),
    );
    const copy = small("Copy", () => copyText(this.record.content, copy));
    this.foot.replaceChildren(
      ...viewButtons,
      copy,
      ...buttons,
      el("span", { class: "quiet" }, status),
    );
  }
}

export const small = (name, run, more = {}) =>
  el("button", { class: "small", onclick: run, ...more }, name);

// "get_weather(city: "Bern")": a call as one line, so that two calls of one tool look different.
export function callTitle(call) {
  const describe = (value) => {
    const pairs = Object.entries(value);
    return pairs.map(([name, part]) => `${name}: ${JSON.stringify(part)}`).join(", ");
  };
  const shown = argumentsOf(call, describe).trim();
  const name = call[call.type]?.name ?? "…";
  return `${name}(${shown.length > 80 ? `${shown.slice(0, 79)}…` : shown})`;
}

function argumentsOf(call, describe) {
  const inner = call[call.type] ?? {};
  const text = inner.arguments ?? inner.input ?? "";
  try {
    return describe(JSON.parse(text));
  } catch {
    return text; // not complete yet, or free text
  }
}

function toolCallNode(call) {
  const text = argumentsOf(call, (value) => JSON.stringify(value, null, 2));
  return el(
    "details",
    { class: "tool-call" },
    el("summary", {}, "Calls ", el("code", {}, callTitle(call))),
    codeBlock(text, "json"),
  );
}
