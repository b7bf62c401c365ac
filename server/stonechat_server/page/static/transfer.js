// Conversations as files: JSON keeps everything, Markdown keeps the shown branch for people.

import { checkDocument, isDocument } from "./documents.js";
import { newId } from "./dom.js";
import { checkPicture } from "./pictures.js";
import { checkSound, isSound } from "./sounds.js";
import { textOf, Tree } from "./tree.js";

const FORMAT = "stonechat-conversations";
const MARK = /^<!-- (user|assistant|tool) -->$/;

// `trees`: the conversations to write.
export function toJson(trees) {
  const conversations = trees.map((tree) => ({
    ...tree.conversation,
    turns: [...tree.turns.values()],
  }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

export function toMarkdown(tree) {
  const parts = tree
    .path()
    .map((turn) => `<!-- ${turn.role} -->\n${HEADS[turn.role]}\n\n${BODIES[turn.role](turn)}`);
  return `# ${tree.conversation.title}\n\n${parts.join("\n\n")}\n`;
}

function kindOf(attached) {
  if (isSound(attached)) return "Audio";
  return isDocument(attached) ? "Document" : "Image";
}

const HEADS = { user: "## You", assistant: "## Model", tool: "## Tool result" };
const BODIES = {
  user: (turn) => {
    const names = (turn.images ?? []).map(
      (one) => `${kindOf(one)} ${one.name} (not in this file)\n\n`,
    );
    return names.join("") + textOf(turn);
  },
  tool: (turn) => turn.results.map(({ name, content }) => `${name}: ${content}`).join("\n"),
  assistant: (turn) => {
    const { content, toolCalls } = turn.choices[turn.picked];
    const calls = toolCalls.map((call) => `Calls ${JSON.stringify(call[call.type] ?? {})}`);
    return [content, ...calls].filter(Boolean).join("\n\n");
  },
};

// Returns the trees of a file. Each gets a new id, so that nothing is overwritten. Throws an Error
// that says what is wrong.
export function fromFile(name, text) {
  return /\.(md|markdown)$/i.test(name) ? [fromMarkdown(text)] : fromJson(text);
}

function fromJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is not JSON: ${error.message}`);
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) {
    throw new Error("The file holds no conversations of this page.");
  }
  return data.conversations.map(readConversation);
}

function readConversation({ turns, ...stored }) {
  const id = newId();
  const conversation = {
    id,
    title: String(stored.title ?? "Imported"),
    created: Number(stored.created) || Date.now(),
    updated: Number(stored.updated) || Date.now(),
    active: { ...stored.active },
  };
  const known = new Set(Array.isArray(turns) ? turns.map((turn) => turn?.id) : []);
  const read = [...known].length ? turns.map((turn) => readTurn(turn, id, known)) : [];
  return new Tree(conversation, read);
}

function readTurn(turn, conversation, known) {
  const isBelow = turn?.parent === "" || known.has(turn?.parent);
  if (!READERS[turn?.role] || typeof turn.id !== "string" || !isBelow) {
    throw new Error("A turn of the file is incomplete.");
  }
  const { id, parent, role } = turn;
  const created = Number(turn.created) || 0;
  return { conversation, id, parent, created, role, ...READERS[role](turn) };
}

// Fields must have their types: the page draws them without looking again.
const READERS = {
  user: (turn) => ({
    text: String(turn.text ?? ""),
    files: list(turn.files).map(readFile),
    images: list(turn.images)
      .map((one) => checkPicture(one) ?? checkSound(one) ?? checkDocument(one))
      .filter(Boolean),
  }),
  tool: (turn) => ({ results: list(turn.results).map(readResult) }),
  assistant: readAnswer,
};

function readAnswer(turn) {
  const choices = list(turn.choices).map(readChoice);
  if (!choices.length) throw new Error("An answer of the file has no text.");
  return {
    choices,
    model: String(turn.model ?? ""),
    isJson: turn.isJson === true,
    picked: choices[turn.picked] ? turn.picked : 0,
    usage: readUsage(turn.usage),
    firstMs: number(turn.firstMs),
    lastMs: number(turn.lastMs),
    state: ["done", "stopped", "failed"].includes(turn.state) ? turn.state : "stopped",
    problem: turn.problem ? { text: String(turn.problem.text ?? ""), detail: "" } : null,
  };
}

function readUsage(usage) {
  const [prompt, completion] = [number(usage?.prompt_tokens), number(usage?.completion_tokens)];
  if (prompt === null || completion === null) return null;
  const details = usage.prompt_tokens_details;
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    prompt_tokens_details: {
      cached_tokens: number(details?.cached_tokens) ?? 0,
      image_tokens: number(details?.image_tokens) ?? 0,
      audio_tokens: number(details?.audio_tokens) ?? 0,
    },
  };
}

const list = (value) => (Array.isArray(value) ? value : []);
const number = (value) => (Number.isFinite(value) ? value : null);
const readFile = (file) => ({ name: String(file?.name ?? ""), text: String(file?.text ?? "") });
const readResult = (one) => ({
  id: String(one?.id ?? ""),
  name: String(one?.name ?? ""),
  content: String(one?.content ?? ""),
});
const readChoice = (choice) => ({
  content: String(choice?.content ?? ""),
  reasoning: String(choice?.reasoning ?? ""),
  reasoningMs: number(choice?.reasoningMs) ?? 0,
  refusal: String(choice?.refusal ?? ""),
  toolCalls: list(choice?.toolCalls).filter((call) => typeof call?.[call?.type]?.name === "string"),
  logprobs: list(choice?.logprobs).filter(
    (entry) => typeof entry?.token === "string" && Number.isFinite(entry.logprob),
  ),
  finishReason: choice?.finishReason ? String(choice.finishReason) : null,
});

function fromMarkdown(text) {
  const tree = Tree.empty();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  tree.conversation.title = /^# (.+)$/.exec(lines[0])?.[1] ?? "Imported";
  const starts = lines.flatMap((line, at) => (MARK.test(line) ? [at] : []));
  if (!starts.length) throw new Error("The file holds no conversation that this page wrote.");
  starts.forEach((from, part) => {
    const role = MARK.exec(lines[from])[1];
    const body = lines.slice(from + 1, starts[part + 1]).join("\n");
    const content = body.replace(/^## .*\n+/, "").trim();
    const parent = tree.path().at(-1);
    if (role === "assistant") {
      tree.add(parent, { role, ...readAnswer({ choices: [{ content }], state: "done" }) });
    } else tree.add(parent, { role: "user", text: content, files: [], images: [] });
  });
  return tree;
}
