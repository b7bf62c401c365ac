// Turns a small subset of Markdown into DOM nodes. A model's text is never parsed as HTML. Links
// may use only http, https and mailto. Images become links. The time is linear in the text's length:
// no pattern can match the same characters in two ways, and a span within a line is bounded.

import { copyText, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/s;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/s;
const QUOTE = /^ {0,3}> ?(.*)$/s;
const TABLE_RULE_CELL = /^:?-+:?$/;
const MAX_DEPTH = 12;
const MAX_SPAN = 2_000; // characters between the marks of bold text, a link or code

export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  for (const node of blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0)) fragment.append(node);
  return fragment;
}

function blocks(lines, depth) {
  if (depth > MAX_DEPTH) return [el("p", {}, lines.join("\n"))];
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [node, next] = block(lines, at, depth);
    nodes.push(node);
    at = next;
  }
  return nodes;
}

function block(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(6, heading[1].length + 2);
    return [el(`h${level}`, {}, inline(withoutClosingMarks(heading[2]))), at + 1];
  }
  if (RULE.test(line)) return [el("hr"), at + 1];
  if (QUOTE.test(line)) return quote(lines, at, depth);
  if (ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && cells(lines[at + 1] ?? "").every((c) => TABLE_RULE_CELL.test(c))) {
    return table(lines, at);
  }
  return paragraph(lines, at);
}

// "Title ##" is "Title", but "C#" stays.
function withoutClosingMarks(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end -= 1;
  return end === 0 || /\s/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trim() : trimmed;
}

function fence(lines, at) {
  const [, marks, info] = FENCE.exec(lines[at]);
  const close = new RegExp(`^ {0,3}\\${marks[0]}{${marks.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  return [codeBlock(lines.slice(at + 1, end).join("\n"), info.trim().split(/\s+/)[0]), end + 1];
}

export function codeBlock(text, language) {
  const button = el("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", () => copyText(text, button));
  return el(
    "div",
    { class: "code-block" },
    el("div", { class: "code-head" }, el("span", {}, language || "code"), button),
    el("pre", { tabindex: "0" }, el("code", {}, text)),
  );
}

function quote(lines, at, depth) {
  const inner = [];
  while (at < lines.length && QUOTE.test(lines[at])) {
    inner.push(QUOTE.exec(lines[at])[1]);
    at += 1;
  }
  return [el("blockquote", {}, blocks(inner, depth + 1)), at];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const start = ordered ? parseInt(first[2], 10) : 1;
  const node = el(ordered ? "ol" : "ul", start === 1 ? {} : { start });
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > indent + 1 || item[1].length < indent) break;
    if (/\d/.test(item[2]) !== ordered) break;
    const inner = [item[4]];
    at += 1;
    while (at < lines.length && belongs(lines, at, indent)) {
      inner.push(lines[at].slice(Math.min(leading(lines[at]), indent + item[2].length + 1)));
      at += 1;
    }
    node.append(el("li", {}, tight(blocks(inner, depth + 1))));
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  return [node, at];
}

const leading = (line) => line.length - line.trimStart().length;

function belongs(lines, at, indent) {
  const line = lines[at];
  if (!line.trim())
    return leading(lines[at + 1] ?? "") > indent + 1 && !!(lines[at + 1] ?? "").trim();
  if (leading(line) > indent + 1) return true;
  return !ITEM.test(line) && !!lines[at - 1].trim() && !startsBlock(line);
}

// The first paragraph of a list item needs no <p> around its text.
function tight(nodes) {
  if (nodes[0]?.tagName !== "P") return nodes;
  return [...nodes[0].childNodes, ...nodes.slice(1)];
}

function table(lines, at) {
  const head = el("tr", {}, cells(lines[at]).map((cell) => el("th", {}, inline(cell))));
  const width = head.children.length;
  const body = el("tbody");
  at += 2;
  while (at < lines.length && lines[at].includes("|")) {
    const row = cells(lines[at]).slice(0, width);
    const rest = width - row.length;
    body.append(
      el(
        "tr",
        {},
        row.map((cell) => el("td", {}, inline(cell))),
        rest ? el("td", { colspan: rest }) : null,
      ),
    );
    at += 1;
  }
  return [el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body)), at];
}

function cells(line) {
  return line
    .trim()
    .replace(/^\||\|$/g, "")
    .split(/(?<!\\)\|/)
    .map((cell) => cell.trim());
}

const startsBlock = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function paragraph(lines, at) {
  const start = at;
  at += 1;
  while (at < lines.length && lines[at].trim() && !startsBlock(lines[at])) at += 1;
  const node = el("p");
  lines.slice(start, at).forEach((line, number) => {
    if (number) node.append(el("br"));
    for (const child of inline(line.trim())) node.append(child);
  });
  return [node, at];
}

// -- within a line --

const SPANS = [
  [/^(`+)([^`]|[^`].*?[^`])\1(?!`)/, (found) => el("code", {}, found[2].replace(/^ (.+) $/, "$1"))],
  [/^\\([\\`*_{}[\]()#+\-.!|~<>])/, (found) => found[1]],
  [/^!\[([^\]]*)\]\(([^()\s]+)(?:\s+"[^"]*")?\)/, (found) => link(found[1] || "image", found[2])],
  [/^\[((?:[^[\]\\]|\\.)+)\]\(([^()\s]+)(?:\s+"[^"]*")?\)/, (found) => link(found[1], found[2])],
  [/^<((?:https?:\/\/|mailto:)[^\s<>]+)>/, (found) => link(found[1], found[1])],
  [/^https?:\/\/[^\s<>()"'`]*[^\s<>()"'`.,;:!?*_]/, (found) => link(found[0], found[0])],
  [/^\*\*(?=\S)(.+?\S|\S)\*\*/, (found, depth) => el("strong", {}, inline(found[1], depth))],
  [/^__(?=\S)(.+?\S|\S)__(?!\w)/, (found, depth) => el("strong", {}, inline(found[1], depth))],
  [/^~~(?=\S)(.+?)~~/, (found, depth) => el("del", {}, inline(found[1], depth))],
  [
    /^\*(?=[^\s*])(.+?[^\s*]|[^\s*])\*(?!\*)/,
    (found, depth) => el("em", {}, inline(found[1], depth)),
  ],
  [
    /^_(?=[^\s_])(.+?[^\s_]|[^\s_])_(?!\w)/,
    (found, depth) => el("em", {}, inline(found[1], depth)),
  ],
];
const STARTS = /[`\\![<*_~h]/;

function inline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const span = STARTS.test(text[at]) ? match(text, at) : null;
    if (!span) {
      plain += text[at];
      at += 1;
      continue;
    }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(span[1](span[0], depth + 1));
    at += span[0][0].length;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function match(text, at) {
  const inWord = at > 0 && /\w/.test(text[at - 1]);
  if (inWord && (text[at] === "_" || text[at] === "h")) return null;
  const rest = text.slice(at, at + MAX_SPAN);
  for (const [pattern, build] of SPANS) {
    const found = pattern.exec(rest);
    if (found) return [found, build];
  }
  return null;
}

function link(label, target) {
  let url = null;
  try {
    url = new URL(target);
  } catch {
    return `${label} (${target})`;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return `${label} (${target})`;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, label);
}
