// The page: connects the form, the list of conversations and the open one to the server.

import { getKey, setKey, streamChat } from "./api.js";
import { Attachments } from "./attachments.js";
import { startCodeDialog } from "./code_dialog.js";
import { Conversation } from "./conversation.js";
import { byId, el, toast } from "./dom.js";
import { FieldsForm } from "./fields.js";
import { startLoad } from "./load.js";
import { Models } from "./model_card.js";
import { outputValues, startOutputTabs } from "./output.js";
import { startMenus, startPanel, startTabs, startTheme } from "./panel.js";
import { explain } from "./problems.js";
import { Sidebar } from "./sidebar.js";
import { openStore } from "./store.js";
import { hidePopover } from "./tokens.js";
import { Tree } from "./tree.js";

const EXAMPLES = [
  "Explain in three sentences why the sky is blue.",
  "Write a Python function that finds the longest word in a text.",
  "Plan a day in Bern for someone who likes birds.",
  "What is the integral of x · sin(x)? Show the steps.",
];

const MEASURED_LENGTH = 5_000; // the browser needs long to lay out more, with each key
const prompt = byId("prompt");
const send = byId("send");
const fields = new FieldsForm(byId("fields"), byId("fields-more"));
const models = new Models(byId("model"), () => {
  attachments.drawTitle();
  fields.showDefaults(models.current?.stonechat?.sampling_defaults);
});
const chats = startPanel(byId("toggle-chats"), byId("chats"), true);
const settings = startPanel(byId("toggle-panel"), byId("panel"), false);
const closeMenus = startMenus();
startTabs(document.querySelector("#panel [role=tablist]"));
startOutputTabs();
startTheme(byId("theme"));

function requestBody(messages) {
  const system = byId("system").value;
  const model = byId("model").value;
  return {
    ...(model && { model }), // else the server chooses
    messages: system.trim() ? [{ role: "system", content: system }, ...messages] : messages,
    ...fields.values(),
    ...outputValues(),
    stream: true,
    stream_options: { include_usage: true },
  };
}

function sayNotSaved(error) {
  const why =
    error.name === "QuotaExceededError"
      ? "its storage is full, so delete conversations, those with images and audio first"
      : error.message;
  toast(`The browser could not save the conversation (${why}). Export what you need.`);
}

const attachments = new Attachments(byId("composer"), {
  modelsRead,
  whyNo: (modality) => models.whyNo(modality),
});
byId("key").value = getKey();
let reading = readModels(); // the latest of these; null after no answer
let numWaiting = 0; // questions that wait for one of these
const { store, kept } = await openStore();
byId("not-kept").hidden = store.isLasting;
const conversation = new Conversation(byId("log"), {
  requestBody,
  streamChat,
  modelsRead,
  getKey,
  saveTurn(turn) {
    if (!sidebar.deleted.has(turn.conversation)) return store.saveTurn(turn).catch(sayNotSaved);
  },
  saveConversation: (one) => store.saveConversation(one).catch(sayNotSaved),
  onBusy(busy) {
    send.hidden = busy;
    byId("stop").hidden = !busy;
    byId("log").setAttribute("aria-busy", String(busy));
  },
  onChange() {
    const path = conversation.tree.path();
    byId("empty").hidden = path.length > 0;
    models.drawMeter(path);
    if (path.length) sidebar.touch(conversation.tree.conversation);
    else sidebar.draw();
  },
  // The question goes back into the box, unless something new was typed.
  onFailed(question) {
    if (prompt.value.trim() || !attachments.isEmpty) return;
    write(question.text);
    attachments.put(question);
  },
  onInvalid: () => settings.show(),
  onKey: askForKey,
  onScroll: (isAtEnd) => {
    byId("to-end").hidden = isAtEnd;
  },
});
const sidebar = new Sidebar(store, kept, {
  open(tree) {
    conversation.open(tree);
    if (!chats.isWide()) chats.hide();
    prompt.focus();
  },
  current: () => conversation.tree,
});

// -- the message box --

function write(text) {
  if (prompt.value !== text) prompt.value = text;
  let height = window.innerHeight * 0.4;
  if (text.length < MEASURED_LENGTH) {
    prompt.style.height = "auto";
    height = Math.min(prompt.scrollHeight + 2, height);
  }
  prompt.style.height = `${height}px`;
}

async function submit() {
  await modelsRead();
  await attachments.reading;
  const text = prompt.value;
  if ((!text.trim() && attachments.isEmpty) || conversation.busy) return;
  if (!conversation.ask(text, attachments)) return;
  write("");
  attachments.take();
}

prompt.addEventListener("input", () => write(prompt.value));
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("stop").addEventListener("click", () => conversation.stop());
byId("to-end").addEventListener("click", () => conversation.follow());
byId("examples").append(
  ...EXAMPLES.map((text) => {
    const onclick = () => conversation.whenFree(() => conversation.ask(text));
    return el("button", { onclick }, text);
  }),
);

function newChat() {
  if (!conversation.isEmpty) conversation.open(Tree.empty());
  if (!chats.isWide()) chats.hide();
  prompt.focus();
}
byId("new-chat").addEventListener("click", newChat);
byId("reset").addEventListener("click", () => fields.reset());

// -- models and the key --

// Resolves once the page knows the models, or knows why it cannot. Asks again after no answer.
async function modelsRead() {
  let latest;
  showWaiting(+1);
  reading ??= readModels();
  while (latest !== reading) await (latest = reading);
  showWaiting(-1);
}

function showWaiting(change) {
  numWaiting += change;
  byId("waiting").hidden = numWaiting === 0;
}

async function readModels() {
  const key = getKey();
  try {
    await models.load();
  } catch (error) {
    if (key !== getKey()) return; // another key is tried meanwhile
    const { text, needsKey } = explain(error, key !== "");
    models.showProblem(needsKey ? "key needed" : "no answer");
    if (!needsKey) {
      reading = null;
      return;
    }
    byId("key-problem").textContent = text;
    askForKey();
  }
}

function askForKey() {
  settings.show();
  byId("tab-key").click();
  byId("key").focus();
}

byId("key").addEventListener("change", () => {
  setKey(byId("key").value.trim());
  byId("key-problem").textContent = "";
  reading = readModels();
});

// -- shortcuts --

// A panel that a key opens has the focus; from one that a key hides, it goes to the message.
function toggleByKey(panel, first) {
  panel.toggle();
  (document.querySelector(`${first}:not([hidden] *)`) ?? prompt).focus();
}

const SHORTCUTS = {
  n: newChat,
  s: () => toggleByKey(settings, "#panel [role=tab][aria-selected=true]"),
  h: () => toggleByKey(chats, "#search"),
};
document.addEventListener("keydown", (event) => {
  const shortcut = event.altKey && SHORTCUTS[event.key.toLowerCase()];
  if (shortcut) {
    event.preventDefault();
    shortcut();
  } else if (event.key === "Escape") {
    hidePopover();
    const isMenuOpen = document.querySelector("details.menu[open]");
    closeMenus();
    if (!isMenuOpen && !document.querySelector("dialog[open]")) conversation.stop();
  }
});

startCodeDialog(() => {
  const question = prompt.value.trim() ? [{ role: "user", content: prompt.value }] : [];
  const messages = [...conversation.messages, ...question];
  return requestBody(messages.length ? messages : [{ role: "user", content: "Hello" }]);
});
sidebar.draw();
models.startStates();
startLoad(byId("load"), () => byId("model").value);
send.disabled = false;
if (document.activeElement === document.body) prompt.focus();
