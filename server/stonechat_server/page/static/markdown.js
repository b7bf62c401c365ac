// Turns a model's Markdown into nodes: markdown-it parses it, DOMPurify lets only harmless elements
// through, a worker colours code and KaTeX sets mathematics (as MathML, without styles or fonts). Raw
// HTML stays text. Links lead to http, https and mailto only; images become links.

import { boundRules } from "./bounds.js";
import { colour } from "./colours.js";
import { copyText, el } from "./dom.js";
import { linkRule } from "./links.js";
import { mathRules } from "./math.js";
import "./vendor/katex.js";
import MarkdownIt from "./vendor/markdown-it.js";
import "./vendor/markdown-it-footnote.js";
import DOMPurify from "./vendor/purify.js";

const LINK = /^(https?:|mailto:)/i;
const CLEAN = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: (
    "p br hr strong em s code pre h2 h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td " +
    "a sup section span input"
  ).split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "id", "start", "type", "checked", "disabled"],
  // Addresses of other schemes go.
  ALLOWED_URI_REGEXP: /^(?:(?:https?|mailto):|[^a-z]|[a-z+.-]+(?:[^a-z+.\-:]|$))/i,
};

const md = new MarkdownIt({ html: false, breaks: true, linkify: false });
md.validateLink = (url) => LINK.test(url.trim());
md.use(globalThis.markdownitFootnote);
md.disable("footnote_inline"); // it reads the rest of a paragraph at each "^["
md.use(mathRules);
md.use(linkRule);
md.use(boundRules);
md.renderer.rules.image = (tokens, at) => {
  const { attrGet, content } = tokens[at];
  const url = attrGet.call(tokens[at], "src");
  return `<a href="${md.utils.escapeHtml(url)}">${md.utils.escapeHtml(content || url)}</a>`;
};
md.core.ruler.push("page", (state) => {
  for (const token of state.tokens) {
    if (token.type.startsWith("heading_")) {
      token.tag = `h${Math.min(6, Number(token.tag[1]) + 1)}`; // h1 is the page's own
    } else if (token.type === "th_open" || token.type === "td_open") {
      const align = /center|right/.exec(token.attrGet("style") ?? "");
      token.attrs = align ? [["class", align[0]]] : null; // the policy forbids style attributes
    }
  }
});

let drawings = 0;

// Draws the text into `box`. Called again with more text, it keeps the nodes of the blocks that did
// not change, so that a selection in them survives.
export function drawMarkdown(box, text) {
  box.markdown ??= { id: (drawings += 1), blocks: [] };
  const { id, blocks } = box.markdown;
  const htmls = htmlBlocks(text, `m${id}`);
  let same = 0;
  while (same < blocks.length && blocks[same].html === htmls[same]) same += 1;
  for (const block of blocks.splice(same)) for (const node of block.nodes) node.remove();
  for (const html of htmls.slice(same)) {
    const nodes = [...nodesOf(html).childNodes];
    blocks.push({ html, nodes });
    for (const node of nodes) box.append(node);
  }
}

// The HTML of each top-level block.
function htmlBlocks(text, docId) {
  const env = { docId };
  const tokens = md.parse(text, env);
  const htmls = [];
  let from = 0;
  let depth = 0;
  tokens.forEach((token, at) => {
    depth += token.nesting;
    if (depth > 0) return;
    htmls.push(md.renderer.render(tokens.slice(from, at + 1), md.options, env));
    from = at + 1;
  });
  return htmls;
}

function nodesOf(html) {
  const fragment = DOMPurify.sanitize(html, CLEAN);
  for (const link of fragment.querySelectorAll("a[href]")) {
    if (link.getAttribute("href").startsWith("#")) continue;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroll = el("div", { class: "scroll", tabindex: "0" });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  for (const item of fragment.querySelectorAll("li")) tickTask(item);
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
    pre.replaceWith(codeBlock(pre.textContent.replace(/\n$/, ""), language));
  }
  for (const span of fragment.querySelectorAll(".math")) setMath(span);
  return fragment;
}

// "[x] done" at the start of a list item becomes a ticked box.
function tickTask(item) {
  const first = item.firstElementChild?.tagName === "P" ? item.firstElementChild : item;
  const text = first.firstChild;
  const found = text?.nodeType === Node.TEXT_NODE && /^\[([ xX])\]\s/.exec(text.data);
  if (!found) return;
  text.data = text.data.slice(found[0].length);
  const box = el("input", { type: "checkbox", disabled: true, "aria-label": "Task" });
  box.checked = found[1] !== " ";
  first.prepend(box, " ");
  item.classList.add("task");
}

function setMath(span) {
  const source = span.textContent;
  const options = {
    displayMode: span.classList.contains("display"),
    output: "mathml",
    throwOnError: true,
    strict: "ignore",
    maxExpand: 200,
    maxSize: 20,
  };
  try {
    globalThis.katex.render(source, span, options);
  } catch {
    span.textContent = source; // not TeX, or not complete yet
    span.className = "code";
  }
}

export function codeBlock(text, language) {
  const copy = el("button", { class: "small" }, "Copy");
  copy.addEventListener("click", () => copyText(text, copy));
  const code = el("code", {});
  colour(code, text, language);
  return el(
    "div",
    { class: "code-block" },
    el("div", { class: "code-head" }, el("span", {}, language || "text"), copy),
    el("pre", { tabindex: "0" }, code),
  );
}
