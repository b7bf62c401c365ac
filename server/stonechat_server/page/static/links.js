// A rule for markdown-it that makes links of bare addresses: https://example.org/a. It reads a bounded
// number of characters, so that the time stays linear in the length of the text.

const SCHEME = /(?:^|[^a-z0-9])(https?)$/i;
const ADDRESS = /:\/\/[^\s<>"`]{1,2000}/y;
const ENDINGS = /[.,;:!?'*_~|]+$/; // they belong to the sentence

export function linkRule(md) {
  md.inline.ruler.after("text", "bare_link", (state, silent) => {
    if (state.src[state.pos] !== ":" || state.linkLevel > 0) return false;
    const scheme = SCHEME.exec(state.pending.slice(-6))?.[1];
    ADDRESS.lastIndex = state.pos;
    const found = scheme && ADDRESS.exec(state.src)?.[0];
    const url = found && scheme + withoutEnding(found);
    const href = url && md.normalizeLink(url);
    if (!href || !md.validateLink(href) || url.length <= scheme.length + 3) return false;
    if (!silent) {
      state.pending = state.pending.slice(0, -scheme.length);
      state.push("link_open", "a", 1).attrs = [["href", href]];
      state.push("text", "", 0).content = url;
      state.push("link_close", "a", -1);
    }
    state.pos += url.length - scheme.length;
    return true;
  });
}

// A closing bracket is part of an address that has the opening one.
function withoutEnding(found) {
  let url = found.replace(ENDINGS, "");
  while (/[)\]}]$/.test(url) && !hasOpening(url)) url = url.slice(0, -1).replace(ENDINGS, "");
  return url;
}

function hasOpening(url) {
  const close = url.at(-1);
  const open = { ")": "(", "]": "[", "}": "{" }[close];
  return url.split(open).length >= url.split(close).length;
}
