// A conversation is a tree of turns: an edited question and a repeated answer are branches beside
// the earlier ones. `active` maps a turn's id ("" for the root) to the id of its shown child.
//
// Turns:
//   user       text, files: [{ name, text }], images (pictures.js, sounds.js, documents.js)
//   assistant  choices: [{ content, reasoning, reasoningMs, refusal, toolCalls, logprobs,
//              finishReason }], picked, usage, firstMs, lastMs, model, isJson, state, problem
//   tool       results: [{ id, name, content }]
// `state` of an answer: "running", "done", "stopped" or "failed".

import { documentPart, isDocument } from "./documents.js";
import { newId } from "./dom.js";
import { isSound, soundPart } from "./sounds.js";

export class Tree {
  constructor(conversation, turns = []) {
    this.conversation = conversation;
    this.turns = new Map();
    this.childrenOf = new Map();
    for (const turn of turns.toSorted((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1))) {
      if (turn.state === "running") turn.state = "stopped"; // the page was closed meanwhile
      // Another tab deleted what was before this question.
      if (turn.role === "user" && !this.turns.has(turn.parent)) turn.parent = "";
      this.insert(turn);
    }
  }

  static empty() {
    const now = Date.now();
    return new Tree({ id: newId(), title: "", created: now, updated: now, active: {} });
  }

  insert(turn) {
    this.turns.set(turn.id, turn);
    if (!this.childrenOf.has(turn.parent)) this.childrenOf.set(turn.parent, []);
    this.childrenOf.get(turn.parent).push(turn.id);
  }

  // Adds a turn below `parent`, or at the root for null, and shows it.
  add(parent, fields) {
    const { id: conversation } = this.conversation;
    const last = Math.max(0, ...[...this.turns.values()].map((turn) => turn.created));
    const created = Math.max(Date.now(), last + 1);
    const turn = { conversation, id: newId(), parent: parent?.id ?? "", created, ...fields };
    this.insert(turn);
    this.select(turn);
    return turn;
  }

  siblings(turn) {
    return this.childrenOf.get(turn.parent).map((id) => this.turns.get(id));
  }

  select(turn) {
    this.conversation.active[turn.parent] = turn.id;
  }

  // The shown turns, from the first to the last.
  path() {
    const path = [];
    for (let children = this.childrenOf.get(""); children;) {
      const active = this.conversation.active[path.at(-1)?.id ?? ""];
      const id = children.includes(active) ? active : children.at(-1);
      path.push(this.turns.get(id));
      children = this.childrenOf.get(id);
    }
    return path;
  }

  // The shown turns up to this one, itself included.
  pathTo(turn) {
    const path = this.path();
    return path.slice(0, path.indexOf(turn) + 1);
  }
}

// Whether an answer came to nothing: neither it nor its question is sent on.
export const isFailed = (turn) =>
  turn.role === "assistant" && turn.state === "failed" && !turn.choices.some(hasText);

const hasText = (choice) => choice.content || choice.refusal || choice.toolCalls.length > 0;

// The messages of a request for the turns of a path.
export function messagesOf(path) {
  const sent = path.filter((turn, at) => {
    const next = path[at + 1];
    return !isFailed(turn) && !(turn.role === "user" && next && isFailed(next));
  });
  return sent.flatMap((turn) => MESSAGES[turn.role](turn));
}

const MESSAGES = {
  user: (turn) => [{ role: "user", content: contentOf(turn) }],
  assistant: (turn) => [choiceMessage(turn.choices[turn.picked])],
  tool: (turn) =>
    turn.results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content })),
};

export function choiceMessage({ content, toolCalls }) {
  const message = { role: "assistant", content: content || (toolCalls.length ? null : "") };
  if (toolCalls.length) message.tool_calls = toolCalls;
  return message;
}

// A question's text, behind its images, sounds and documents if it has some.
function contentOf(turn) {
  const text = textOf(turn);
  const images = (turn.images ?? []).filter(({ url }) => url);
  if (!images.length) return text;
  const parts = images.map(partOf);
  return text ? [...parts, { type: "text", text }] : parts;
}

function partOf(attached) {
  if (isSound(attached)) return soundPart(attached);
  if (isDocument(attached)) return documentPart(attached);
  return { type: "image_url", image_url: { url: attached.url } };
}

// A question's text, with its files in front as code blocks that name them.
export function textOf({ text, files = [] }) {
  const blocks = files.map((file) => {
    const longest = Math.max(2, ...[...file.text.matchAll(/`+/g)].map(([run]) => run.length));
    const fence = "`".repeat(longest + 1);
    return `File ${file.name}:\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}\n\n`;
  });
  return blocks.join("") + text;
}

// A short name for a conversation that begins with this question.
export function titleOf({ text, files = [], images = [] }) {
  const line = text.trim().split("\n")[0] || [...files, ...images][0]?.name || "Untitled";
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}
