// Answers a text and its language with the HTML of its colours, or with null for an unknown language.

import hljs from "./vendor/highlight.js";

addEventListener("message", ({ data: { text, language } }) => {
  const isKnown = hljs.getLanguage(language);
  postMessage(isKnown ? hljs.highlight(text, { language, ignoreIllegals: true }).value : null);
});
