// Rules for markdown-it that recognise mathematics: $…$, $$…$$, \(…\), \[…\] and lines between
// \begin{align} and its end. A dollar before a space, or after one, is money. A rule reads a bounded number of characters, so that the time
// stays linear in the length of the text.

const MAX_SPAN = 4_000;
const INLINE = [
  ["\\(", "\\)", false],
  ["\\[", "\\]", true],
  ["$$", "$$", true],
  ["$", "$", false],
];

const ENVIRONMENT = /^\\begin\{((?:align|alignat|equation|gather)\*?)\}/;

export function mathRules(md) {
  md.inline.ruler.before("escape", "math", inlineRule);
  md.block.ruler.before("fence", "math", blockRule, { alt: ["paragraph", "list"] });
  md.renderer.rules.math = (tokens, at) => {
    const { content, block } = tokens[at];
    return `<span class="math${block ? " display" : ""}">${md.utils.escapeHtml(content)}</span>`;
  };
}

function token(state, content, display) {
  const made = state.push("math", "span", 0);
  made.content = content.trim();
  made.block = display;
  return made;
}

function inlineRule(state, silent) {
  const found = spanAt(state.src, state.pos, state.posMax);
  if (!found) return false;
  if (!silent) token(state, found.content, found.display);
  state.pos = found.end;
  return true;
}

function spanAt(text, at, limit) {
  const first = text[at];
  if (first !== "$" && first !== "\\") return null;
  const kind = INLINE.find(([open]) => text.startsWith(open, at));
  if (!kind) return null;
  const [open, close, display] = kind;
  const from = at + open.length;
  const window = text.slice(from, Math.min(limit, from + MAX_SPAN));
  const length = open === "$" ? endOfDollars(window) : window.indexOf(close);
  if (length <= 0 || !window.slice(0, length).trim()) return null;
  return { content: window.slice(0, length), display, end: from + length + close.length };
}

// Where the closing dollar is; -1 if there is none in the same paragraph.
function endOfDollars(window) {
  if (/^[\s$]/.test(window)) return -1;
  for (let end = window.indexOf("$"); end > 0; end = window.indexOf("$", end + 1)) {
    if (window[end - 1] === "\\") continue;
    return /\s/.test(window[end - 1]) || /\d/.test(window[end + 1] ?? "") ? -1 : end;
  }
  return -1;
}

// Lines from one that begins with $$ or \[ to one that ends with the closing mark.
function blockRule(state, startLine, endLine, silent) {
  const start = state.bMarks[startLine] + state.tShift[startLine];
  if (state.sCount[startLine] - state.blkIndent >= 4) return false;
  const open = state.src.slice(start, start + 2);
  const environment = ENVIRONMENT.exec(state.src.slice(start, start + 20))?.[1];
  const close = environment
    ? `\\end{${environment}}`
    : { $$: "$$", "\\[": "\\]" }[open];
  if (!close) return false;
  const from = environment ? start : start + open.length;
  const length = state.src.slice(from, from + MAX_SPAN).indexOf(close);
  if (length < 0) return false;
  const end = from + length;
  let last = startLine;
  while (state.eMarks[last] < end) last += 1;
  // Text behind the mark, or outside the list or quotation: the inline rule takes it.
  if (last >= endLine || state.src.slice(end + close.length, state.eMarks[last]).trim()) return false;
  if (silent) return true;
  const lines = [];
  const until = environment ? end + close.length : end;
  for (let line = startLine; line <= last; line += 1) {
    const begin = line === startLine ? from : state.bMarks[line] + state.tShift[line];
    lines.push(state.src.slice(begin, Math.min(until, state.eMarks[line])).trimEnd());
  }
  const made = token(state, lines.join("\n"), true);
  made.map = [startLine, last + 1];
  state.line = last + 1;
  return true;
}
