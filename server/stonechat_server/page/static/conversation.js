// The conversation: its messages, their elements on the page, and the request that may be running.

import { Answer } from "./answer.js";
import { el } from "./dom.js";

export class Conversation {
  // tools: requestBody(messages), streamChat(body, signal), onBusy(busy).
  constructor(log, tools) {
    this.log = log;
    this.empty = log.firstElementChild;
    this.tools = tools;
    this.turns = [];
    this.abort = null;
    this.onEdit = () => {};
  }

  get busy() {
    return this.abort !== null;
  }

  get messages() {
    return this.turns.flatMap((turn) => turn.messages());
  }

  clear() {
    this.stop();
    this.cutTo(0);
  }

  stop() {
    this.abort?.abort();
  }

  cutTo(length) {
    for (const turn of this.turns.splice(length)) turn.node.remove();
    this.empty.hidden = this.turns.length > 0;
  }

  push(turn) {
    this.turns.push(turn);
    this.empty.hidden = true;
    this.log.append(turn.node);
  }

  // Shows the problem and returns false if the settings do not make a valid request.
  ask(text) {
    const message = { role: "user", content: text };
    const node = el("div", { class: "turn user" }, el("div", { class: "bubble" }, text));
    const turn = { node, messages: () => [message] };
    const edit = el(
      "button",
      { type: "button", class: "small", title: "Edit and ask again" },
      "Edit",
    );
    edit.addEventListener("click", () => {
      if (this.busy) return;
      this.cutTo(this.turns.indexOf(turn));
      this.onEdit(text);
    });
    node.append(edit);
    this.push(turn);
    const started = this.answer();
    if (!started) this.turns = this.turns.filter((one) => one !== turn);
    if (!started) node.remove();
    return started;
  }

  answer() {
    let body;
    this.dropProblem();
    try {
      body = this.tools.requestBody(this.messages);
    } catch (error) {
      this.problem = el("p", { class: "problem", role: "alert" }, error.message);
      this.log.append(this.problem);
      return false;
    }
    const turn = { messages: () => [answer.choices[answer.picked].message()] };
    const answer = new Answer(body.n ?? 1, "response_format" in body, {
      pick: () => this.drawToolResults(turn, answer),
      retry: () => this.retry(turn),
    });
    turn.node = answer.node;
    this.push(turn);
    this.run(body, answer, turn);
    return true;
  }

  dropProblem() {
    this.problem?.remove();
    this.problem = null;
  }

  retry(turn) {
    if (this.busy) return;
    this.cutTo(this.turns.indexOf(turn));
    this.answer();
  }

  async run(body, answer, turn) {
    const abort = new AbortController();
    this.abort = abort;
    this.tools.onBusy(true);
    let problem = null;
    this.follow();
    try {
      for await (const chunk of this.tools.streamChat(body, abort.signal)) {
        const atEnd = this.atEnd();
        answer.add(chunk);
        if (atEnd) this.follow();
      }
    } catch (error) {
      if (!abort.signal.aborted) problem = error.message;
    }
    const atEnd = this.atEnd();
    answer.finish(problem);
    this.abort = null;
    this.tools.onBusy(false);
    if (this.turns.includes(turn)) this.drawToolResults(turn, answer);
    if (atEnd) this.follow();
  }

  // If the picked choice calls tools, shows a form for their results; sending it continues.
  drawToolResults(turn, answer) {
    turn.form?.remove();
    const calls = answer.choices[answer.picked].message().tool_calls ?? [];
    if (!calls.length || answer.choices[answer.picked].finishReason === null) return;
    const areas = calls.map((call) =>
      el("textarea", { rows: 2, "aria-label": `Result of ${call[call.type]?.name}` }),
    );
    const rows = calls.map((call, number) =>
      el("label", { class: "wide" }, `Result of ${call[call.type]?.name}`, areas[number]),
    );
    turn.form = el(
      "form",
      { class: "tool-results" },
      ...rows,
      el("button", { type: "submit", class: "primary" }, "Send results"),
    );
    turn.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.busy)
        this.sendResults(
          turn,
          calls,
          areas.map((area) => area.value),
        );
    });
    turn.node.append(turn.form);
    areas[0].focus();
  }

  sendResults(turn, calls, results) {
    turn.form.remove();
    const messages = calls.map((call, number) => ({
      role: "tool",
      tool_call_id: call.id,
      content: results[number],
    }));
    const text = messages.map((message) => message.content).join("\n");
    this.push({
      node: el(
        "div",
        { class: "turn tool" },
        el("div", { class: "bubble" }, `Tool result: ${text}`),
      ),
      messages: () => messages,
    });
    this.answer();
  }

  atEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }

  follow() {
    this.log.scrollTop = this.log.scrollHeight;
    requestAnimationFrame(() => {
      this.log.scrollTop = this.log.scrollHeight;
    });
  }
}
