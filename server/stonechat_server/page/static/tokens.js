// The token view: shades each token by its probability. Hover, focus or tap shows alternatives.

import { byId, el } from "./dom.js";

const percent = (logprob) => {
  const value = Math.exp(logprob) * 100;
  return value >= 99.95 ? "100 %" : value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
};

const hex = (bytes) => (bytes ?? []).map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

// A token's text with visible symbols for white space and control characters.
export function visible(token) {
  if (token === "") return "∅";
  return token
    .replace(/\n/g, "⏎")
    .replace(/\t/g, "⇥")
    .replace(/ /g, "·")
    .replace(
      /[\u0000-\u001f\u007f]/g,
      (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`,
    );
}

export function renderTokens(entries) {
  const box = el("div", { class: "tokens" });
  for (const entry of entries) {
    box.append(tokenNode(entry));
    if (entry.token.includes("\n")) box.append(el("br"));
  }
  return box;
}

function tokenNode(entry) {
  const probability = Math.exp(entry.logprob);
  const text = entry.token.includes("\n") ? entry.token.replace(/\n/g, "⏎") : entry.token;
  const node = el(
    "span",
    {
      class: "token",
      tabindex: "0",
      "aria-label": `${visible(entry.token)}, ${percent(entry.logprob)}`,
    },
    text || "∅",
  );
  node.style.setProperty("--doubt", (1 - probability).toFixed(3));
  const show = () => showPopover(node, entry);
  for (const event of ["mouseenter", "focus", "click"]) node.addEventListener(event, show);
  for (const event of ["mouseleave", "blur"]) node.addEventListener(event, hidePopover);
  return node;
}

function showPopover(node, entry) {
  const popover = byId("popover");
  const rows = (entry.top_logprobs ?? []).map((top) => row(top, top.token === entry.token));
  if (!rows.some((one) => one.classList.contains("chosen"))) rows.push(row(entry, true));
  const head = el(
    "tr",
    {},
    ...["token", "bytes", "probability", ""].map((text) => el("th", {}, text)),
  );
  popover.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  popover.hidden = false;
  const at = node.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = popover;
  const left = Math.max(8, Math.min(at.left, window.innerWidth - width - 8));
  const below = at.bottom + height + 8 < window.innerHeight;
  popover.style.left = `${left}px`;
  popover.style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - height - 4)}px`;
}

function row(entry, chosen) {
  const bar = el("span", { class: "bar" });
  bar.style.width = `${(Math.exp(entry.logprob) * 60).toFixed(1)}px`;
  return el(
    "tr",
    { class: chosen ? "chosen" : "" },
    el("td", { class: "code" }, visible(entry.token)),
    el("td", { class: "code quiet" }, hex(entry.bytes)),
    el(
      "td",
      { class: "number", title: `log-probability ${entry.logprob.toFixed(4)}` },
      percent(entry.logprob),
    ),
    el("td", {}, bar),
  );
}

export function hidePopover() {
  byId("popover").hidden = true;
}
