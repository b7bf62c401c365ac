// An answer of the model on the page: its choices side by side, its problem, its figures.

import { addDelta, ChoiceView, newChoice, small } from "./choice.js";
import { el } from "./dom.js";

const DRAW_EVERY_MS = 60;
const ENDS = {
  stop: "ended by itself",
  tool_calls: "calls tools",
  length: "cut: no more tokens were allowed",
  content_filter: "filtered",
};
const MIN_SECONDS = 0.05; // below it, a speed says nothing

// `begun` is the record of a choice that the answer goes on with.
export const newAnswer = (body, begun = null) => ({
  role: "assistant",
  model: body.model,
  isJson: "response_format" in body,
  choices: begun
    ? [{ ...structuredClone(begun), finishReason: null }]
    : Array.from({ length: body.n ?? 1 }, newChoice),
  picked: 0,
  usage: null,
  firstMs: null,
  lastMs: null,
  state: "running",
  problem: null,
});

export class AnswerView {
  // `turn` is the answer's record (tree.js), which grows here while it streams. actions: again(),
  // goOn(), picked(), needsKey(), drawn().
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.startedAt = performance.now();
    this.views = [];
    this.timer = null;
    this.grid = el("div", { class: "choices" });
    this.problem = el("div", { class: "problem", role: "alert", hidden: true });
    this.stats = el("p", { class: "stats" });
    this.extra = el("div", { class: "extra" });
    this.node = el(
      "div",
      { class: "turn assistant" },
      this.grid,
      this.problem,
      this.stats,
      this.extra,
    );
    this.draw();
  }

  add(chunk) {
    const { turn } = this;
    const now = performance.now() - this.startedAt;
    if (chunk.usage) turn.usage = chunk.usage;
    for (const part of chunk.choices ?? []) {
      while (turn.choices.length <= part.index) turn.choices.push(newChoice());
      addDelta(turn.choices[part.index], part, now);
      const delta = part.delta ?? {};
      if (delta.content || delta.reasoning_content || delta.reasoning || delta.tool_calls?.length) {
        turn.firstMs ??= now;
        turn.lastMs = now;
      }
    }
    this.timer ??= setTimeout(() => this.draw(), DRAW_EVERY_MS);
  }

  // No more chunks come. Nothing is drawn until `finish`.
  end() {
    clearTimeout(this.timer);
  }

  finish() {
    this.draw();
  }

  draw() {
    this.timer = null;
    const { turn } = this;
    const isRunning = turn.state === "running";
    for (let at = this.views.length; at < turn.choices.length; at += 1) {
      this.views.push(new ChoiceView(turn.choices[at], turn.isJson));
      this.grid.append(this.views[at].node);
    }
    this.grid.classList.toggle("several", turn.choices.length > 1);
    this.node.classList.toggle("busy", isRunning);
    for (const view of this.views) view.draw(isRunning);
    this.stats.textContent = describe(turn);
    this.drawProblem();
    if (!isRunning) this.views.forEach((view, at) => this.drawFoot(view, at));
    this.actions.drawn();
  }

  drawProblem() {
    const { problem, state } = this.turn;
    this.problem.hidden = !problem;
    const isEmpty = state === "failed" && this.turn.firstMs === null;
    this.grid.hidden = isEmpty;
    if (!problem) return;
    const detail = problem.detail
      ? [el("p", { class: "quiet" }, problem.detail)]
      : [];
    const key = problem.needsKey ? [small("Enter a key", () => this.actions.needsKey())] : [];
    const note = isEmpty ? [el("span", { class: "quiet" }, "This question is not sent on.")] : [];
    this.problem.replaceChildren(
      el("p", {}, problem.text),
      ...detail,
      el(
        "div",
        { class: "row" },
        small("Retry", () => this.actions.again()),
        ...key,
        ...note,
      ),
    );
  }

  drawFoot(view, at) {
    const { turn } = this;
    const buttons = [];
    if (at === 0) buttons.push(small("Again", () => this.actions.again()));
    if (at === turn.picked && canGoOn(turn)) {
      buttons.push(small("Continue", () => this.actions.goOn()));
    }
    if (turn.choices.length > 1) {
      const isPicked = turn.picked === at;
      const name = isPicked ? "Continuing with this" : "Continue with this";
      const pick = () => {
        turn.picked = at;
        this.draw();
        this.actions.picked();
      };
      buttons.push(small(name, pick, { class: "small pick", "aria-pressed": String(isPicked) }));
    }
    const { finishReason } = view.record;
    const end = finishReason ?? (turn.state === "stopped" ? "stopped" : "");
    const { content, refusal, toolCalls } = view.record;
    const isEmpty = !content && !refusal && !toolCalls.length && turn.state !== "failed";
    const status = [ENDS[end] ?? end, isEmpty && "no text"].filter(Boolean).join(" · ");
    view.drawFoot(buttons, status);
  }
}

// Whether the picked choice is a text that ended too early.
function canGoOn({ state, isJson, choices, picked }) {
  const { content, toolCalls, finishReason } = choices[picked];
  const isCut = state === "stopped" || state === "failed" || finishReason === "length";
  return isCut && !isJson && content !== "" && toolCalls.length === 0;
}

function describe(turn) {
  if (turn.firstMs === null) return "";
  const { usage, choices } = turn;
  const parts = [];
  const tokens =
    usage?.completion_tokens ?? choices.reduce((sum, one) => sum + one.logprobs.length, 0);
  if (usage) {
    const given = usage.prompt_tokens_details ?? {};
    const details = [
      given.image_tokens && `${given.image_tokens} of images`,
      given.audio_tokens && `${given.audio_tokens} of audio`,
      given.cached_tokens && `${given.cached_tokens} cached`,
    ].filter(Boolean);
    const more = details.length ? ` (${details.join(", ")})` : "";
    parts.push(`${usage.prompt_tokens} prompt tokens${more}`);
  }
  if (tokens) parts.push(`${tokens} generated`);
  parts.push(`first token after ${Math.round(turn.firstMs)} ms`);
  const seconds = (turn.lastMs - turn.firstMs) / 1000;
  if (tokens > choices.length && seconds > MIN_SECONDS) {
    parts.push(`${((tokens - choices.length) / seconds).toFixed(1)} tokens/s`);
  }
  return parts.join(" · ");
}
