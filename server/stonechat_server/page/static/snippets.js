// The request as code: curl, Python and JavaScript. The key is never written out.

// Puts a text into single quotes for a shell.
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curlSnippet(url, body, hasKey) {
  const lines = [`curl ${shell(`${url}/chat/completions`)}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $OPENAI_API_KEY"');
  if (body.stream) lines.push("-N");
  lines.push(`-d ${shell(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

// The body with a short mark in place of the data of files, which would fill the dialog.
export function withoutData(body) {
  let hasData = false;
  const short = (part) => {
    if (part.type === "text") return part;
    hasData = true;
    if (part.type === "input_audio")
      return { type: "input_audio", input_audio: { ...part.input_audio, data: "…" } };
    if (part.type === "file") return { type: "file", file: { ...part.file, file_data: "…" } };
    return { type: "image_url", image_url: { url: `${part.image_url.url.split(",")[0]},…` } };
  };
  const messages = body.messages.map((message) =>
    Array.isArray(message.content) ? { ...message, content: message.content.map(short) } : message,
  );
  return { body: { ...body, messages }, hasData };
}

// The arguments of the official Python client. Other fields go into extra_body.
const KNOWN = new Set(
  (
    "model messages temperature top_p n max_completion_tokens max_tokens stop seed " +
    "frequency_penalty presence_penalty logit_bias logprobs top_logprobs stream stream_options " +
    "tools tool_choice parallel_tool_calls response_format reasoning_effort metadata store user " +
    "service_tier prediction verbosity"
  ).split(" "),
);

export function python(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value !== "object") return String(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => python(item, inner))
    : Object.entries(value).map(
        ([name, item]) => `${JSON.stringify(name)}: ${python(item, inner)}`,
      );
  if (!items.length) return open + close;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

export function pythonSnippet(url, body, hasKey) {
  const known = Object.entries(body).filter(([name]) => KNOWN.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !KNOWN.has(name)));
  if (Object.keys(extra).length) known.push(["extra_body", extra]);
  const fields = known.map(([name, value]) => `    ${name}=${python(value, "    ")},\n`).join("");
  const key = hasKey ? "" : ', api_key="none"';
  const shown = body.stream
    ? `for chunk in answer:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)\n`
    : "print(answer.choices[0].message.content)\n";
  return `from openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(url)}${key})
answer = client.chat.completions.create(\n${fields})\n${shown}`;
}

export function jsSnippet(url, body, hasKey) {
  const key = hasKey ? "process.env.OPENAI_API_KEY" : '"none"';
  const shown = body.stream
    ? `for await (const chunk of answer) {
  for (const choice of chunk.choices) process.stdout.write(choice.delta.content ?? "");
}\n`
    : "console.log(answer.choices[0].message.content);\n";
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${JSON.stringify(url)}, apiKey: ${key} });
const answer = await client.chat.completions.create(${JSON.stringify(body, null, 2)});
${shown}`;
}
