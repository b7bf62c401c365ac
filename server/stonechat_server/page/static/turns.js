// The elements of questions and tool results, and the forms that change or make them.

import { callTitle, small } from "./choice.js";
import { documentNode, isDocument } from "./documents.js";
import { copyText, el } from "./dom.js";
import { pictureNode } from "./pictures.js";
import { isSound, soundNode } from "./sounds.js";
import { textOf } from "./tree.js";

// What is attached to a question in a row. Null if nothing is.
function attachedRow({ files, images = [] }) {
  const names = files.map((file) => el("span", { class: "file" }, file.name));
  const nodes = [...images.map(attachedNode), ...names];
  return nodes.length ? el("div", { class: "row" }, ...nodes) : null;
}

function attachedNode(attached) {
  if (isSound(attached)) return soundNode(attached);
  return isDocument(attached) ? documentNode(attached) : pictureNode(attached);
}

export function questionNode(turn, branches, edit) {
  const bubble = el("div", { class: "bubble" }, attachedRow(turn), turn.text);
  const copy = small("Copy", () => copyText(textOf(turn), copy));
  const tools = el("div", { class: "row tools" }, copy, small("Edit", edit), ...branches);
  return el("div", { class: "turn user" }, bubble, tools);
}

export function resultNode(turn, branches) {
  const lines = turn.results.map(({ name, content }) => `${name}: ${content}`);
  return el(
    "div",
    { class: "turn tool" },
    el("div", { class: "bubble" }, `Tool result\n${lines.join("\n")}`),
    el("div", { class: "row tools" }, ...branches),
  );
}

// actions: send(text), close().
export function editForm(turn, { send, close }) {
  const area = el("textarea", { rows: 3, "aria-label": "Edit the question" });
  area.value = turn.text;
  const attached = attachedRow(turn);
  const form = el(
    "form",
    { class: "turn edit" },
    attached,
    area,
    el(
      "div",
      { class: "row" },
      el("button", { type: "submit", class: "primary" }, "Send"),
      el("button", { onclick: close }, "Cancel"),
      el("span", { class: "quiet" }, "The earlier question and its answers stay as a branch."),
    ),
  );
  const submit = (event) => {
    event.preventDefault();
    if (area.value.trim() || attached) send(area.value);
  };
  form.addEventListener("submit", submit);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      if (event.target === area) submit(event);
    }
  });
  return form;
}

// A form with one box for the result of each call; send(results).
export function resultForm(calls, send) {
  const areas = calls.map((call) =>
    el("textarea", { rows: 2, "aria-label": `Result of ${callTitle(call)}` }),
  );
  const rows = calls.map((call, at) =>
    el("label", { class: "wide" }, "Result of ", el("code", {}, callTitle(call)), areas[at]),
  );
  const button = el("button", { type: "submit", class: "primary" }, "Send results");
  const form = el("form", { class: "tool-results" }, ...rows, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const result = (call, at) => ({
      id: call.id,
      name: callTitle(call),
      content: areas[at].value,
    });
    send(calls.map(result));
  });
  return form;
}

// "‹ 2/3 ›" if there is more than one turn to choose from.
export function branchButtons(all, turn, choose) {
  if (all.length < 2) return [];
  const at = all.indexOf(turn);
  const arrow = (text, to, name) =>
    small(text, () => choose(all[to]), { "aria-label": name, disabled: !all[to] });
  return [
    el(
      "span",
      { class: "branches" },
      arrow("‹", at - 1, "Earlier version"),
      ` ${at + 1}/${all.length} `,
      arrow("›", at + 1, "Later version"),
    ),
  ];
}
