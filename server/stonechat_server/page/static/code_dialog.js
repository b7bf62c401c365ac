// The dialog that shows the next request as code.

import { apiUrl, getKey } from "./api.js";
import { byId, copyText, el } from "./dom.js";
import { startTabs } from "./panel.js";
import { curlSnippet, jsSnippet, pythonSnippet, withoutData } from "./snippets.js";

const SNIPPETS = { curl: curlSnippet, Python: pythonSnippet, JavaScript: jsSnippet };

// `makeBody` returns the body of the next request, or throws an Error for people.
export function startCodeDialog(makeBody) {
  const tab = (name, number) =>
    el(
      "button",
      {
        role: "tab",
        "aria-selected": String(number === 0),
        "aria-controls": "code-text",
        tabindex: number ? "-1" : "0",
      },
      name,
    );
  const show = (name) => {
    try {
      const { body, hasData } = withoutData(makeBody());
      byId("code-data").hidden = !hasData;
      byId("code-text").textContent = SNIPPETS[name](apiUrl(), body, getKey() !== "");
    } catch (error) {
      byId("code-text").textContent = error.message;
    }
  };
  byId("code-tabs").append(...Object.keys(SNIPPETS).map(tab));
  startTabs(byId("code-tabs"), (chosen) => show(chosen.textContent));
  byId("copy-as").addEventListener("click", () => {
    show(document.querySelector("#code-tabs [aria-selected=true]").textContent);
    byId("code-dialog").showModal();
  });
  byId("code-copy").addEventListener("click", () =>
    copyText(byId("code-text").textContent, byId("code-copy")),
  );
}
