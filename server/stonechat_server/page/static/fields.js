// The table of sampling fields. The form and the fields of the request are made from it.

import { el } from "./dom.js";

const number = (min, max) => ({ type: "number", min, max });
const integer = (min, max) => ({ type: "number", min, max, isInteger: true });

// The common fields come first. `help` is one line; the range is put in front of it.
export const FIELDS = [
  { name: "temperature", ...number(0, 2), help: "0 always takes the most likely token." },
  { name: "top_p", ...number(0, 1), help: "Draw from the likeliest tokens of this total share." },
  { name: "max_completion_tokens", ...integer(1), help: "The longest answer." },
  { name: "seed", ...integer(), help: "The same seed repeats the same answer." },
  { name: "n", ...integer(1, 128), help: "How many answers, side by side." },
  {
    name: "reasoning_effort",
    type: "select",
    options: ["none", "minimal", "low", "medium", "high", "xhigh", "max"],
    help: "How long the model thinks, if it can.",
  },
  {
    name: "logprobs",
    type: "check",
    label: "Token view (logprobs)",
    initial: true,
    help: "Keeps the probability of each token.",
  },
  { name: "top_logprobs", more: true, ...integer(0, 20), help: "Alternatives in the token view." },
  { name: "top_k", more: true, ...integer(0), help: "Draw from so many tokens. 0: from all." },
  { name: "min_p", more: true, ...number(0, 1), help: "Drop tokens below this share of the best." },
  { name: "frequency_penalty", more: true, ...number(-2, 2), help: "Against frequent tokens." },
  { name: "presence_penalty", more: true, ...number(-2, 2), help: "Against tokens used before." },
  {
    name: "repetition_penalty",
    more: true,
    ...number(0.01, 10),
    help: "Above 1: less repetition.",
  },
  { name: "min_tokens", more: true, ...integer(0), help: "The shortest answer." },
  { name: "stop", more: true, type: "lines", help: "One text a line. The answer ends before it." },
  { name: "stop_token_ids", more: true, type: "json", help: "For example [2, 50256]." },
  { name: "logit_bias", more: true, type: "json", help: 'For example {"50256": -100}.' },
  {
    name: "ignore_eos",
    more: true,
    type: "check",
    label: "ignore_eos",
    help: "Go on after the model's own end.",
  },
];
// What the server takes for an empty field, if the model's makers recommend nothing. The others: 0.
const UNSET = {
  temperature: 1,
  top_p: 1,
  max_completion_tokens: "what fits",
  seed: "random",
  n: 1,
  repetition_penalty: 1,
};
const INITIAL = { top_logprobs: "5" };
const STORED = "stonechat-settings";

export class FieldError extends Error {
  constructor(field, message) {
    super(`${field}: ${message}`);
    this.name = "FieldError";
  }
}

export class FieldsForm {
  constructor(common, more) {
    this.controls = new Map();
    for (const field of FIELDS) {
      const control = draw(field);
      this.controls.set(field.name, control);
      (field.more ? more : common).append(labelled(field, control));
      control.addEventListener("input", () => this.check(field));
    }
    this.extra = el("textarea", { class: "code", rows: 2, spellcheck: "false", id: "field-extra" });
    more.append(el("label", { class: "wide" }, "Other fields (JSON object)", this.extra));
    this.showDefaults();
    this.clear();
    this.restore();
    for (const parent of [common, more]) parent.addEventListener("input", () => this.store());
  }

  reset() {
    this.clear();
    this.store();
  }

  clear() {
    for (const field of FIELDS) {
      const control = this.controls.get(field.name);
      if (field.type === "check") control.checked = field.initial ?? false;
      else control.value = INITIAL[field.name] ?? "";
      this.check(field);
    }
    this.extra.value = "";
  }

  // Shows in each empty field what holds without it. `defaults` are those of the model.
  showDefaults(defaults = {}) {
    for (const { name, type } of FIELDS) {
      const value = defaults[name] ?? UNSET[name] ?? 0;
      if (type === "number") this.controls.get(name).placeholder = `default: ${value}`;
    }
  }

  // Shows beside a field what is wrong with it.
  check(field) {
    const control = this.controls.get(field.name);
    const help = document.getElementById(control.getAttribute("aria-describedby"));
    let problem = "";
    try {
      read(field, control);
    } catch (error) {
      problem = error.message;
    }
    control.setAttribute("aria-invalid", String(problem !== ""));
    if (!help) return;
    help.textContent = problem || helpOf(field);
    help.classList.toggle("problem", problem !== "");
  }

  // The request's fields. Empty controls are left out, so that the server's defaults apply. Throws
  // a FieldError for a value that cannot be sent.
  values() {
    const values = {};
    for (const field of FIELDS) {
      const value = read(field, this.controls.get(field.name));
      if (value !== undefined) values[field.name] = value;
    }
    if (!values.logprobs) {
      delete values.logprobs;
      delete values.top_logprobs;
    }
    return { ...values, ...parse("Other fields", this.extra.value, {}) };
  }

  store() {
    const state = {};
    for (const [name, control] of this.controls) {
      state[name] = control.type === "checkbox" ? control.checked : control.value;
    }
    try {
      localStorage.setItem(STORED, JSON.stringify(state));
    } catch {
      /* storage may be disabled; the form works without it */
    }
  }

  restore() {
    let state = {};
    try {
      state = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    } catch {
      return;
    }
    for (const field of FIELDS) {
      const control = this.controls.get(field.name);
      if (!(field.name in state)) continue;
      if (control.type === "checkbox") control.checked = state[field.name] === true;
      else control.value = String(state[field.name]);
      this.check(field);
    }
  }
}

function rangeOf({ min, max }) {
  if (min === undefined) return "";
  return max === undefined ? `${min} or more. ` : `${min} to ${max}. `;
}

const helpOf = (field) => rangeOf(field) + field.help;

function draw(field) {
  const base = { id: `field-${field.name}`, "aria-describedby": `help-${field.name}` };
  if (field.type === "check") return el("input", { ...base, type: "checkbox" });
  if (field.type === "lines") return el("textarea", { ...base, rows: 2 });
  if (field.type === "json") return el("input", { ...base, class: "code", spellcheck: "false" });
  if (field.type === "select") {
    const options = ["", ...field.options].map((value) =>
      el("option", { value }, value || "model's default"),
    );
    return el("select", base, ...options);
  }
  const { min, max, isInteger } = field;
  const step = isInteger ? "1" : "any";
  return el("input", { ...base, type: "number", min, max, step });
}

function labelled(field, control) {
  const help = el("small", { id: `help-${field.name}` }, helpOf(field));
  const text = field.label ?? field.name;
  const isCheck = field.type === "check";
  const label = el("label", { for: control.id }, ...(isCheck ? [control, ` ${text}`] : [text]));
  return el("div", { class: "field" }, label, ...(isCheck ? [] : [control]), help);
}

function read(field, control) {
  if (field.type === "check") return control.checked || undefined;
  if (field.type === "number" && control.validity.badInput) {
    throw new FieldError(field.name, "not a number");
  }
  const text = control.value;
  if (!text.trim()) return undefined;
  if (field.type === "number") return readNumber(field, Number(text));
  if (field.type === "lines") return text.split("\n").filter((line) => line);
  if (field.type === "json") return parse(field.name, text);
  return text;
}

function readNumber(field, value) {
  if (field.isInteger && !Number.isInteger(value))
    throw new FieldError(field.name, "not a whole number");
  if (value < (field.min ?? -Infinity) || value > (field.max ?? Infinity)) {
    throw new FieldError(field.name, `must be ${rangeOf(field).trim().replace(/\.$/, "")}`);
  }
  return value;
}

export function parse(name, text, empty = undefined) {
  if (!text.trim()) return empty;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FieldError(name, error.message);
  }
}
