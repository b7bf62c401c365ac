// Colours code. highlight.js runs in a worker (colours_worker.js), because it needs minutes for some
// texts: a worker that takes too long is ended, and the page leaves code of that language plain.

import DOMPurify from "./vendor/purify.js";

const MAX_COLOURED = 50_000; // characters of a code block
const MAX_MS = 2_000;
const CLEAN = { RETURN_DOM_FRAGMENT: true, ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] };

const queue = [];
const slow = new Set();
let worker = null;
let isBusy = false;
let latest = { language: "", text: "", html: "" };

// Writes the text into the element. Its colours follow; those of a text that has only grown since
// are there at once.
export function colour(code, text, language) {
  code.textContent = text;
  if (!language || slow.has(language) || text.length > MAX_COLOURED) return;
  if (language === latest.language && text.startsWith(latest.text)) {
    code.replaceChildren(coloured(latest.html), text.slice(latest.text.length));
    if (text === latest.text) return;
  }
  queue.push({ code, text, language });
  setTimeout(next); // once the element is in the page
}

function next() {
  if (isBusy) return;
  const job = queue.shift();
  if (!job) return;
  const { code, text, language } = job;
  if (!code.isConnected || slow.has(language)) return next();
  isBusy = true;
  worker ??= new Worker(new URL("colours_worker.js", import.meta.url), { type: "module" });
  const timer = setTimeout(() => {
    slow.add(language);
    worker.terminate();
    worker = null;
    isBusy = false;
    next();
  }, MAX_MS);
  worker.onmessage = ({ data: html }) => {
    clearTimeout(timer);
    isBusy = false;
    if (html !== null) {
      latest = { language, text, html };
      code.replaceChildren(coloured(html));
    }
    next();
  };
  worker.postMessage({ text, language });
}

const coloured = (html) => DOMPurify.sanitize(html, CLEAN);
