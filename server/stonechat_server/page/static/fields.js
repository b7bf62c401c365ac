// The table of sampling fields. The form and the fields of the request are made from it.

import { el } from "./dom.js";

const numbers = (min, max, step) => ({ type: "number", min, max, step });

export const FIELDS = [
  { name: "temperature", ...numbers(0, 2, 0.1), hint: "0: always the most likely token" },
  { name: "top_p", ...numbers(0, 1, 0.05) },
  { name: "top_k", ...numbers(0, 100000, 1), hint: "0: off" },
  { name: "min_p", ...numbers(0, 1, 0.01) },
  { name: "max_completion_tokens", ...numbers(1, 1000000, 1), hint: "empty: as many as fit" },
  { name: "n", ...numbers(1, 128, 1), hint: "answers side by side" },
  { name: "seed", ...numbers(undefined, undefined, 1), hint: "empty: a new seed each time" },
  { name: "frequency_penalty", ...numbers(-2, 2, 0.1) },
  { name: "presence_penalty", ...numbers(-2, 2, 0.1) },
  { name: "repetition_penalty", ...numbers(0.01, 10, 0.05) },
  { name: "min_tokens", ...numbers(0, 1000000, 1) },
  { name: "top_logprobs", ...numbers(0, 20, 1), hint: "alternatives in the token view" },
  {
    name: "reasoning_effort",
    type: "select",
    options: ["none", "minimal", "low", "medium", "high", "xhigh", "max"],
  },
  { name: "stop", type: "lines", hint: "one per line" },
  { name: "stop_token_ids", type: "json", hint: "[2, 50256]" },
  { name: "logit_bias", type: "json", hint: '{"50256": -100}' },
  { name: "ignore_eos", type: "check" },
  { name: "logprobs", type: "check", label: "logprobs (token view)", initial: true },
];
const INITIAL = { temperature: "0.7", top_logprobs: "5" };
const STORED = "stonechat-settings";

export class FieldError extends Error {
  constructor(name, message) {
    super(`${name}: ${message}`);
    this.name = name;
  }
}

export class FieldsForm {
  constructor(parent) {
    this.controls = new Map();
    for (const field of FIELDS) {
      const control = draw(field);
      this.controls.set(field.name, control);
      parent.append(labelled(field, control));
    }
    this.extra = el("textarea", { class: "code", rows: 2, spellcheck: "false", id: "field-extra" });
    parent.append(el("label", { class: "wide" }, "Other fields (JSON object)", this.extra));
    this.clear();
    this.restore();
    parent.addEventListener("input", () => this.store());
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
    }
    this.extra.value = "";
  }

  // The request's fields. Empty controls are left out, so that the server's defaults apply.
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
    for (const [name, control] of this.controls) {
      if (!(name in state)) continue;
      if (control.type === "checkbox") control.checked = state[name] === true;
      else control.value = String(state[name]);
    }
  }
}

function draw(field) {
  const id = `field-${field.name}`;
  if (field.type === "select") {
    const options = ["", ...field.options].map((value) =>
      el("option", { value }, value || "default"),
    );
    return el("select", { id }, ...options);
  }
  if (field.type === "lines") return el("textarea", { id, rows: 2, placeholder: field.hint });
  if (field.type === "check") return el("input", { id, type: "checkbox" });
  if (field.type === "json") {
    return el("input", { id, class: "code", spellcheck: "false", placeholder: field.hint });
  }
  const { min, max, step } = field;
  return el("input", {
    id,
    type: "number",
    min,
    max,
    step,
    placeholder: "default",
    title: field.hint,
  });
}

function labelled(field, control) {
  const text = field.label ?? field.name;
  if (field.type === "check") return el("label", { class: "check" }, control, text);
  return el(
    "label",
    { class: field.type === "number" || field.type === "select" ? "half" : "wide" },
    text,
    control,
  );
}

function read(field, control) {
  if (field.type === "check") return control.checked || undefined;
  if (field.type === "number" && control.validity.badInput) {
    throw new FieldError(field.name, "not a number");
  }
  const text = control.value;
  if (!text.trim()) return undefined;
  if (field.type === "number") return Number(text);
  if (field.type === "lines") return text.split("\n").filter((line) => line);
  if (field.type === "json") return parse(field.name, text);
  return text;
}

export function parse(name, text, empty = undefined) {
  if (!text.trim()) return empty;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FieldError(name, error.message);
  }
}
