// Bounds on rules of markdown-it and of its footnotes that read the rest of a text each time. With
// them the time stays linear in the length of the text.

const MAX_QUOTE_LINES = 500; // a longer quotation is drawn as several
const MAX_NOTES = 500; // references to further footnotes stay text

export function boundRules(md) {
  wrap(md.block.ruler, "blockquote", (rule, state, start, end, silent) =>
    rule(state, start, Math.min(end, start + MAX_QUOTE_LINES), silent),
  );
  wrap(
    md.inline.ruler,
    "footnote_ref",
    (rule, state, silent) =>
      (state.env.footnotes?.list?.length ?? 0) < MAX_NOTES && rule(state, silent),
  );
}

function wrap(ruler, name, around) {
  const { fn, alt } = ruler.__rules__.find((rule) => rule.name === name);
  ruler.at(name, (...all) => around(fn, ...all), { alt });
}
