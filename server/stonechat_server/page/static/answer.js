// One answer of the model: its choices side by side, each built from the deltas of the stream.

import { copyText, el } from "./dom.js";
import { codeBlock, renderMarkdown } from "./markdown.js";
import { renderTokens } from "./tokens.js";

const DRAW_EVERY_MS = 60;

class Choice {
  constructor(index, isJson) {
    this.index = index;
    this.isJson = isJson;
    this.content = "";
    this.reasoning = "";
    this.refusal = "";
    this.toolCalls = [];
    this.logprobs = [];
    this.finishReason = null;
    this.view = "text";
    this.node = el("article", { class: "choice" });
    this.reasoningBody = el("div", { class: "reasoning-text" });
    this.reasoningNode = el(
      "details",
      { class: "reasoning", hidden: true },
      el("summary", {}, "Reasoning"),
      this.reasoningBody,
    );
    this.body = el("div", { class: "text" });
    this.foot = el("div", { class: "row foot" });
    this.node.append(this.reasoningNode, this.body, this.foot);
  }

  add(choice) {
    const delta = choice.delta ?? {};
    this.content += delta.content ?? "";
    this.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
    this.refusal += delta.refusal ?? "";
    for (const part of delta.tool_calls ?? []) this.addToolCall(part);
    if (choice.logprobs?.content) this.logprobs.push(...choice.logprobs.content);
    if (choice.finish_reason) this.finishReason = choice.finish_reason;
  }

  addToolCall(part) {
    this.toolCalls[part.index] ??= { id: "", type: "function" };
    const call = this.toolCalls[part.index];
    if (part.id) call.id = part.id;
    if (part.type) call.type = part.type;
    for (const kind of ["function", "custom"]) {
      if (!part[kind]) continue;
      call[kind] ??= {};
      for (const [name, text] of Object.entries(part[kind]))
        call[kind][name] = (call[kind][name] ?? "") + text;
    }
  }

  message() {
    const calls = this.toolCalls.filter(Boolean);
    const message = { role: "assistant", content: this.content || (calls.length ? null : "") };
    if (calls.length) message.tool_calls = calls;
    return message;
  }

  draw() {
    this.reasoningNode.hidden = !this.reasoning;
    this.reasoningBody.textContent = this.reasoning;
    if (this.reasoning && !this.content && !this.finishReason) this.reasoningNode.open = true;
    this.body.replaceChildren(...this.views());
  }

  views() {
    if (this.view === "tokens") return [renderTokens(this.logprobs)];
    if (this.view === "raw") return [codeBlock(JSON.stringify(this.message(), null, 2), "message")];
    const nodes = [];
    if (this.refusal) nodes.push(el("p", { class: "problem" }, this.refusal));
    if (this.content)
      nodes.push(this.isJson ? codeBlock(this.content, "json") : renderMarkdown(this.content));
    for (const call of this.toolCalls.filter(Boolean)) nodes.push(toolCallNode(call));
    return nodes;
  }
}

function toolCallNode(call) {
  const inner = call[call.type] ?? {};
  let text = inner.arguments ?? inner.input ?? "";
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    /* not complete yet, or free text */
  }
  return el(
    "div",
    { class: "tool-call" },
    el("strong", {}, `Calls ${inner.name ?? "…"}`),
    codeBlock(text, "arguments"),
  );
}

export class Answer {
  // actions: pick(index) selects the choice that the conversation continues with; retry().
  constructor(n, isJson, actions) {
    this.isJson = isJson;
    this.actions = actions;
    this.choices = [];
    this.usage = null;
    this.picked = 0;
    this.startedAt = performance.now();
    this.firstAt = null;
    this.lastAt = null;
    this.grid = el("div", { class: "choices" });
    this.stats = el("p", { class: "stats" });
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
    this.node = el("div", { class: "turn assistant" }, this.grid, this.problem, this.stats);
    this.timer = null;
    for (let index = 0; index < n; index += 1) this.choice(index);
    this.node.classList.add("busy");
  }

  choice(index) {
    if (!this.choices[index]) {
      this.choices[index] = new Choice(index, this.isJson);
      this.grid.append(this.choices[index].node);
      this.grid.classList.toggle("several", this.choices.length > 1);
    }
    return this.choices[index];
  }

  add(chunk) {
    const now = performance.now();
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      this.choice(choice.index).add(choice);
      const delta = choice.delta ?? {};
      if (delta.content || delta.reasoning_content || delta.reasoning || delta.tool_calls?.length) {
        this.firstAt ??= now;
        this.lastAt = now;
      }
    }
    this.timer ??= setTimeout(() => this.draw(), DRAW_EVERY_MS);
  }

  draw() {
    this.timer = null;
    for (const choice of this.choices) choice.draw();
    this.stats.textContent = this.describe();
  }

  finish(problem) {
    clearTimeout(this.timer);
    this.node.classList.remove("busy");
    this.problem.hidden = !problem;
    this.problem.textContent = problem ?? "";
    this.draw();
    for (const choice of this.choices) this.drawFoot(choice);
  }

  drawFoot(choice) {
    const buttons = [
      ["text", "Text"],
      ["tokens", "Tokens"],
      ["raw", "Raw"],
    ]
      .filter(([view]) => view !== "tokens" || choice.logprobs.length)
      .map(([view, text]) =>
        el(
          "button",
          {
            type: "button",
            class: "small",
            "aria-pressed": String(choice.view === view),
            onclick: () => {
              choice.view = view;
              choice.draw();
              this.drawFoot(choice);
            },
          },
          text,
        ),
      );
    const copy = el("button", { type: "button", class: "small" }, "Copy");
    copy.addEventListener("click", () => copyText(choice.content, copy));
    buttons.push(copy);
    if (choice.index === 0) {
      buttons.push(
        el(
          "button",
          { type: "button", class: "small", onclick: () => this.actions.retry() },
          "Again",
        ),
      );
    }
    if (this.choices.length > 1) buttons.push(this.pickButton(choice));
    choice.foot.replaceChildren(
      ...buttons,
      el("span", { class: "quiet" }, choice.finishReason ?? "stopped"),
    );
  }

  pickButton(choice) {
    const picked = this.picked === choice.index;
    return el(
      "button",
      {
        type: "button",
        class: "small pick",
        "aria-pressed": String(picked),
        onclick: () => {
          this.picked = choice.index;
          this.actions.pick(choice.index);
          for (const one of this.choices) this.drawFoot(one);
        },
      },
      picked ? "Continuing with this" : "Continue with this",
    );
  }

  describe() {
    if (this.firstAt === null) return "";
    const parts = [];
    const { usage } = this;
    const tokens =
      usage?.completion_tokens ?? this.choices.reduce((sum, one) => sum + one.logprobs.length, 0);
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens;
      parts.push(`${usage.prompt_tokens} prompt tokens${cached ? ` (${cached} cached)` : ""}`);
    }
    if (tokens) parts.push(`${tokens} generated`);
    parts.push(`first token after ${Math.round(this.firstAt - this.startedAt)} ms`);
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (tokens > this.choices.length && seconds > 0) {
      parts.push(`${((tokens - this.choices.length) / seconds).toFixed(1)} tokens/s`);
    }
    return parts.join(" · ");
  }
}
