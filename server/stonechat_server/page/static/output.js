// The two tabs that hold JSON: the schema of the answer, and the tools.

import { byId, el } from "./dom.js";
import { FieldError, parse } from "./fields.js";

const SCHEMA_EXAMPLE = {
  type: "object",
  properties: {
    name: { type: "string" },
    age: { type: "integer", minimum: 0 },
    tags: { type: "array", items: { type: "string" }, maxItems: 3 },
  },
  required: ["name", "age", "tags"],
  additionalProperties: false,
};

const TOOLS_EXAMPLE = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather at a place.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
        required: ["city"],
      },
    },
  },
];

const pretty = (value) => JSON.stringify(value, null, 2);

export function startOutputTabs() {
  const format = byId("format");
  format.addEventListener("change", () => {
    byId("schema-fields").hidden = format.value !== "json_schema";
  });
  example("schema-example", "schema", SCHEMA_EXAMPLE);
  example("tools-example", "tools", TOOLS_EXAMPLE);
  watch("schema", "schema-problem");
  watch("tools", "tools-problem");
  byId("tools").addEventListener("input", drawChoices);
  drawChoices();
}

function example(buttonId, areaId, value) {
  byId(buttonId).addEventListener("click", () => {
    byId(areaId).value = pretty(value);
    byId(areaId).dispatchEvent(new Event("input", { bubbles: true }));
  });
}

function watch(areaId, problemId) {
  byId(areaId).addEventListener("input", () => {
    try {
      parse("", byId(areaId).value);
      byId(problemId).textContent = "";
    } catch (error) {
      byId(problemId).textContent = error.message.replace(/^: /, "");
    }
  });
}

function drawChoices() {
  const select = byId("tool-choice");
  const chosen = select.value;
  const options = [
    ["", "default"],
    ["auto", "auto"],
    ["none", "none"],
    ["required", "required"],
  ];
  let tools = [];
  try {
    tools = parse("Tools", byId("tools").value, []);
  } catch {
    /* the problem is shown beside the text */
  }
  for (const tool of Array.isArray(tools) ? tools : []) {
    const name = tool?.[tool?.type]?.name;
    if (typeof name === "string")
      options.push([JSON.stringify({ type: tool.type, [tool.type]: { name } }), name]);
  }
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  select.value = options.some(([value]) => value === chosen) ? chosen : "";
}

export function outputValues() {
  return { ...formatValues(), ...toolValues() };
}

function formatValues() {
  const type = byId("format").value;
  if (!type) return {};
  if (type === "json_object") return { response_format: { type } };
  const schema = parse("Schema", byId("schema").value);
  if (schema === undefined) throw new FieldError("Schema", "empty");
  const name = byId("schema-name").value.trim() || "answer";
  const strict = byId("schema-strict").checked;
  return { response_format: { type, json_schema: { name, strict, schema } } };
}

function toolValues() {
  const tools = parse("Tools", byId("tools").value);
  if (tools === undefined) return {};
  if (!Array.isArray(tools)) throw new FieldError("Tools", "not a JSON array");
  const values = { tools };
  const choice = byId("tool-choice").value;
  if (choice) values.tool_choice = choice.startsWith("{") ? JSON.parse(choice) : choice;
  if (!byId("parallel").checked) values.parallel_tool_calls = false;
  return values;
}
