// The page: connects the form to the conversation, and the conversation to the server.

import { apiUrl, getJson, getKey, setKey, streamChat } from "./api.js";
import { Conversation } from "./conversation.js";
import { byId, copyText, el } from "./dom.js";
import { FieldsForm } from "./fields.js";
import { startLoad } from "./load.js";
import { outputValues, startOutputTabs } from "./output.js";
import { startPanel, startTabs, startTheme } from "./panel.js";
import { curlSnippet, jsSnippet, pythonSnippet } from "./snippets.js";
import { hidePopover } from "./tokens.js";

const fields = new FieldsForm(byId("fields"));

function requestBody(messages) {
  const system = byId("system").value;
  return {
    model: byId("model").value,
    messages: system.trim() ? [{ role: "system", content: system }, ...messages] : messages,
    ...fields.values(),
    ...outputValues(),
    stream: true,
    stream_options: { include_usage: true },
  };
}

const conversation = new Conversation(byId("log"), { requestBody, streamChat, onBusy });

function onBusy(busy) {
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("log").setAttribute("aria-busy", String(busy));
}

async function loadModels() {
  const select = byId("model");
  try {
    const { data } = await getJson("v1/models");
    select.replaceChildren(...data.map(({ id }) => el("option", { value: id }, id)));
  } catch (error) {
    select.replaceChildren(
      el("option", { value: "" }, error.status === 401 ? "key needed" : "no answer"),
    );
    if (error.status === 401) byId("tab-key").click();
  }
}

// -- composer --

const prompt = byId("prompt");

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, window.innerHeight * 0.4)}px`;
}

function submit() {
  const text = prompt.value;
  if (!text.trim() || conversation.busy) return;
  if (!conversation.ask(text)) return;
  prompt.value = "";
  grow();
}

conversation.onEdit = (text) => {
  prompt.value = text;
  grow();
  prompt.focus();
};
prompt.addEventListener("input", grow);
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

function newChat() {
  conversation.clear();
  prompt.focus();
}
byId("new-chat").addEventListener("click", newChat);
byId("reset").addEventListener("click", () => fields.reset());

// -- key, tabs, theme, shortcuts --

byId("key").value = getKey();
byId("key").addEventListener("change", () => {
  setKey(byId("key").value.trim());
  loadModels();
});
startOutputTabs();
startTabs(document.querySelector("#panel [role=tablist]"));
startTheme(byId("theme"));
const togglePanel = startPanel(byId("toggle-panel"), byId("panel"));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hidePopover();
    if (!document.querySelector("dialog[open]")) conversation.stop();
  } else if (event.altKey && event.key.toLowerCase() === "n") {
    event.preventDefault();
    newChat();
  } else if (event.altKey && event.key.toLowerCase() === "s") {
    event.preventDefault();
    togglePanel();
  }
});

// -- copy as --

const SNIPPETS = { curl: curlSnippet, Python: pythonSnippet, JavaScript: jsSnippet };

byId("code-tabs").append(
  ...Object.keys(SNIPPETS).map((name, number) =>
    el(
      "button",
      {
        role: "tab",
        type: "button",
        "aria-selected": String(number === 0),
        "aria-controls": "code-text",
        tabindex: number ? "-1" : "0",
      },
      name,
    ),
  ),
);

function showSnippet(name) {
  let text;
  try {
    const pending = prompt.value.trim() ? [{ role: "user", content: prompt.value }] : [];
    const messages = [...conversation.messages, ...pending];
    const body = requestBody(messages.length ? messages : [{ role: "user", content: "Hello" }]);
    text = SNIPPETS[name](apiUrl(), body, getKey() !== "");
  } catch (error) {
    text = error.message;
  }
  byId("code-text").textContent = text;
}

startTabs(byId("code-tabs"), (tab) => showSnippet(tab.textContent));
byId("copy-as").addEventListener("click", () => {
  showSnippet(document.querySelector("#code-tabs [aria-selected=true]").textContent);
  byId("code-dialog").showModal();
});
byId("code-copy").addEventListener("click", () =>
  copyText(byId("code-text").textContent, byId("code-copy")),
);

loadModels();
startLoad(byId("load"));
prompt.focus();
