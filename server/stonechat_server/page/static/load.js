// Shows the server's load, read every two seconds while the page is visible.

import { getJson } from "./api.js";

const EVERY_MS = 2000;

// `model` returns the name of the model whose load is shown.
export function startLoad(output, model) {
  let before = null;
  const tick = async () => {
    if (!document.hidden) before = await show(output, model(), before);
    setTimeout(tick, EVERY_MS);
  };
  tick();
}

async function show(output, model, before) {
  let load;
  try {
    load = await getJson(`page/load${model ? `?model=${encodeURIComponent(model)}` : ""}`);
  } catch (error) {
    output.textContent = error.status === 401 ? "key needed" : "server not answering";
    output.classList.add("bad");
    return null;
  }
  output.classList.remove("bad");
  const parts = [`${load.num_running} running`];
  if (load.num_waiting) parts.push(`${load.num_waiting} waiting`);
  if (load.num_blocks)
    parts.push(`KV ${Math.round((100 * load.num_used_blocks) / load.num_blocks)} %`);
  const now = performance.now();
  if (before?.model === model) {
    const speed = ((load.num_generated_tokens - before.tokens) * 1000) / (now - before.now);
    if (speed > 0) parts.push(`${Math.round(speed)} tokens/s`);
  }
  output.textContent = parts.join(" · ");
  return { now, model, tokens: load.num_generated_tokens };
}
