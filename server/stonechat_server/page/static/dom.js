// Builds DOM nodes. Text always becomes text nodes: nothing here parses HTML.

// A child may be a list of nodes. Long lists must come so: there is a limit on arguments. A button
// sends no form unless its type is "submit".
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  if (tag === "button") node.type = "button";
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

// Unique also on pages of plain HTTP, where crypto.randomUUID is missing.
export const newId = () =>
  [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");

export const byId = (id) => document.getElementById(id);

export async function copyText(text, button) {
  const label = (button.dataset.label ??= button.textContent); // it may say "Copied" already
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = copyBySelection(text) ? "Copied" : "Could not copy";
  }
  setTimeout(() => {
    button.textContent = label;
  }, 1200);
}

// The clipboard needs a secure context. Plain HTTP from another machine is not one.
function copyBySelection(text) {
  const area = el("textarea", { class: "offscreen" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

// Offers a text as a file to save.
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// A short message at the bottom, with a button if there is something to do about it.
export function toast(text, action = null, seconds = 8) {
  const node = el("div", { class: "toast", role: "status" }, el("span", {}, text));
  const close = () => node.remove();
  if (action) {
    const run = () => {
      close();
      action.run();
    };
    node.append(el("button", { onclick: run }, action.name));
  }
  node.append(el("button", { "aria-label": "Dismiss", onclick: close }, "×"));
  byId("toasts").append(node);
  setTimeout(close, seconds * 1000);
}

// The id and the name of an attachment from a file that someone else may have written.
export function checkedNames({ id, name }, otherName) {
  return { id: typeof id === "string" && id ? id : newId(), name: String(name ?? otherName) };
}

// The content of a file as a data: URL.
export const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
