// The open conversation: draws the shown branch of its tree, and runs its requests.

import { AnswerView, newAnswer } from "./answer.js";
import { el } from "./dom.js";
import { explain } from "./problems.js";
import { isFailed, messagesOf, titleOf, Tree } from "./tree.js";
import { branchButtons, editForm, questionNode, resultForm, resultNode } from "./turns.js";

const SAVE_EVERY_MS = 2_000;

export class Conversation {
  // tools: requestBody(messages), streamChat(body, signal), getKey(), saveTurn(turn),
  // saveConversation(conversation), modelsRead(), onBusy(busy), onChange(), onFailed(question),
  // onInvalid(), onKey(), onScroll(isAtEnd).
  constructor(log, tools) {
    this.log = log;
    this.tools = tools;
    this.list = log.querySelector("#turns");
    this.tree = Tree.empty();
    this.views = new Map(); // an AnswerView for each drawn answer, by the turn's id
    this.abort = null;
    this.isFollowing = true; // a growing answer: until somebody scrolls up
    this.top = 0;
    log.addEventListener("scroll", () => {
      this.noteScroll();
      this.tools.onScroll(this.atEnd());
    });
  }

  get busy() {
    return this.abort !== null;
  }

  get messages() {
    return messagesOf(this.tree.path());
  }

  get isEmpty() {
    return this.tree.turns.size === 0;
  }

  stop() {
    this.abort?.abort();
  }

  // Shows another conversation. A running answer is stopped and kept.
  open(tree) {
    this.stop();
    this.abort = null;
    this.tools.onBusy(false);
    this.tree = tree;
    this.views.clear();
    this.draw();
    this.follow();
  }

  // -- asking --

  // Runs what makes a request once the models are known, unless by then a request runs or another
  // conversation is open.
  async whenFree(run) {
    const { tree } = this;
    await this.tools.modelsRead();
    if (!this.busy && this.tree === tree) run();
  }

  // attached: files and images, as Attachments has them.
  ask(text, { files = [], images = [] } = {}) {
    const parent = this.tree.path().at(-1);
    return this.askBelow(parent, { role: "user", text, files, images });
  }

  // Returns false, and adds nothing, if the settings do not make a valid request.
  askBelow(parent, question) {
    const { conversation } = this.tree;
    const before = parent ? this.tree.pathTo(parent) : [];
    const body = this.bodyFor([...before, question]);
    if (!body) return false;
    conversation.title ||= titleOf(question);
    const turn = this.tree.add(parent, question);
    this.save(turn);
    this.answer(turn, body);
    return true;
  }

  // Answers the question or tool result `turn` once more, as a branch beside earlier answers.
  again(turn) {
    const body = this.bodyFor(this.tree.pathTo(turn));
    if (body) this.answer(turn, body);
  }

  // Goes on with an answer that ended too early, as a branch that begins with its text.
  goOn(turn) {
    const body = this.bodyFor(this.tree.pathTo(turn));
    if (!body) return;
    const { n, ...rest } = body;
    const fields = { continue_final_message: true, add_generation_prompt: false };
    this.answer(this.tree.turns.get(turn.parent), { ...rest, ...fields }, turn.choices[turn.picked]);
  }

  bodyFor(path) {
    this.problem?.remove();
    try {
      return this.tools.requestBody(messagesOf(path));
    } catch (error) {
      const { text } = explain(error, false);
      this.problem = el("p", { class: "problem", role: "alert" }, text);
      this.log.append(this.problem);
      this.tools.onInvalid();
      this.follow();
      return null;
    }
  }

  answer(parent, body, begun = null) {
    const turn = this.tree.add(parent, newAnswer(body, begun));
    this.save(turn);
    this.draw();
    this.follow();
    this.run(body, turn, this.views.get(turn.id), parent);
  }

  async run(body, turn, view, parent) {
    const abort = new AbortController();
    this.abort = abort;
    this.tools.onBusy(true);
    let savedAt = performance.now();
    let problem = null;
    try {
      for await (const chunk of this.tools.streamChat(body, abort.signal)) {
        view.add(chunk);
        if (performance.now() - savedAt > SAVE_EVERY_MS) {
          savedAt = performance.now();
          this.save(turn);
        }
      }
    } catch (error) {
      if (!abort.signal.aborted) problem = explain(error, this.tools.getKey() !== "");
    }
    view.end();
    turn.state = problem ? "failed" : abort.signal.aborted ? "stopped" : "done";
    turn.problem = problem;
    await this.save(turn); // before the answer looks finished
    view.finish();
    if (this.abort === abort) {
      this.abort = null;
      this.tools.onBusy(false);
    }
    if (!this.tree.turns.has(turn.id)) return; // another conversation is open by now
    this.drawExtra(turn, view);
    this.tools.onChange();
    if (isFailed(turn) && parent.role === "user") this.tools.onFailed(parent);
    if (this.isFollowing) this.follow();
  }

  // Both records at once, so that the page can be closed at any time.
  async save(turn) {
    const { conversation } = this.tree;
    const saves = [this.tools.saveTurn(turn)];
    if (turn.conversation === conversation.id) {
      conversation.updated = Date.now();
      saves.push(this.tools.saveConversation(conversation));
    }
    await Promise.all(saves);
  }

  // -- drawing --

  draw() {
    const path = this.tree.path();
    this.problem?.remove();
    for (const id of this.views.keys()) {
      if (!this.tree.turns.has(id)) this.views.delete(id);
    }
    this.list.replaceChildren(...path.map((turn) => this.node(turn)));
    this.tools.onChange();
  }

  node(turn) {
    if (turn.role === "assistant") return this.answerNode(turn);
    return turn.role === "user" ? this.questionNode(turn) : resultNode(turn, this.branches(turn));
  }

  answerNode(turn) {
    let view = this.views.get(turn.id);
    if (!view) {
      const question = this.tree.turns.get(turn.parent);
      view = new AnswerView(turn, {
        again: () => this.whenFree(() => this.again(question)),
        goOn: () => this.whenFree(() => this.goOn(turn)),
        drawn: () => {
          this.noteScroll(); // its event may be on its way
          if (this.busy && this.isFollowing) this.follow();
        },
        needsKey: () => this.tools.onKey(),
        picked: () => {
          this.save(turn);
          this.drawExtra(turn, view);
          this.tools.onChange();
        },
      });
      this.views.set(turn.id, view);
    }
    this.drawExtra(turn, view);
    return view.node;
  }

  // Below an answer: its branches, and a form for the results of the tools that it calls.
  drawExtra(turn, view) {
    const calls = turn.choices[turn.picked]?.toolCalls ?? [];
    const isOpen = turn.state === "done" && calls.length > 0 && !this.tree.childrenOf.has(turn.id);
    view.extra.replaceChildren(
      ...this.branches(turn),
      ...(isOpen ? [this.resultForm(turn, calls)] : []),
    );
  }

  resultForm(turn, calls) {
    return resultForm(calls, (results) =>
      this.whenFree(() => this.askBelow(turn, { role: "tool", results })),
    );
  }

  questionNode(turn) {
    const node = questionNode(turn, this.branches(turn), () => {
      if (!this.busy) this.edit(turn, node);
    });
    return node;
  }

  // Replaces a question by a form. Nothing changes unless the form is sent.
  edit(turn, node) {
    const parent = this.tree.turns.get(turn.parent);
    const { files, images } = turn;
    const form = editForm(turn, {
      send: (text) =>
        this.whenFree(() => this.askBelow(parent, { role: "user", text, files, images })),
      close: () => form.replaceWith(this.questionNode(turn)),
    });
    node.replaceWith(form);
    form.querySelector("textarea").focus();
  }

  // "‹ 2/3 ›" if the turn has branches beside it.
  branches(turn) {
    return branchButtons(this.tree.siblings(turn), turn, async (chosen) => {
      if (this.busy) return;
      this.tree.select(chosen);
      await this.tools.saveConversation(this.tree.conversation);
      this.draw();
    });
  }

  atEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }

  // Only a step up is somebody's: an answer may have grown since the page scrolled to its end.
  noteScroll() {
    const isAtEnd = this.atEnd();
    if (isAtEnd || this.log.scrollTop < this.top) this.isFollowing = isAtEnd;
    this.top = this.log.scrollTop;
  }

  follow() {
    this.isFollowing = true;
    this.log.scrollTop = this.log.scrollHeight;
    this.top = this.log.scrollTop;
  }
}
