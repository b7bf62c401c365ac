// Requests to this server. The key lives in this tab's session storage and nowhere else.

const KEY = "stonechat-key";
const ROOT = new URL(".", document.baseURI);
const ANSWER_WITHIN_MS = 20_000;

let current = "";
try {
  current = sessionStorage.getItem(KEY) ?? "";
} catch {
  /* no storage: the key lasts as long as the page */
}

export const getKey = () => current;

export function setKey(key) {
  current = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    /* no storage */
  }
}

export const apiUrl = () => new URL("v1", ROOT).href;

// `status` is 0 for an answer that breaks off, and 200 for one that is no stream. `code` and `retryAfter` come from the server.
export class ApiError extends Error {
  constructor(status, message, more = {}) {
    super(message);
    this.status = status;
    Object.assign(this, more);
  }
}

function headers() {
  const key = getKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  let message = `${response.status} ${response.statusText}`;
  let code = null;
  try {
    const { error } = await response.json();
    if (error?.message) message = error.message;
    if (error?.param) message += ` (${error.param})`;
    code = error?.code;
  } catch {
    /* not JSON: show the status alone */
  }
  const retryAfter = response.headers.get("retry-after");
  return new ApiError(response.status, message, { code, retryAfter });
}

// For what the server answers at once. Throws a `TimeoutError` if it does not.
export async function getJson(path) {
  const signal = AbortSignal.timeout(ANSWER_WITHIN_MS);
  const response = await fetch(new URL(path, ROOT), { headers: headers(), signal });
  if (!response.ok) throw await failure(response);
  return response.json();
}

// Yields the chunks of a streamed answer. Throws when the stream ends without [DONE].
export async function* streamChat(body, signal) {
  const response = await fetch(new URL("v1/chat/completions", ROOT), {
    method: "POST",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await failure(response);
  const type = response.headers.get("content-type") ?? "no type";
  if (!type.startsWith("text/event-stream")) throw new ApiError(200, type);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parseChunk(data);
    if (chunk.error) throw new ApiError(0, chunk.error.message ?? "the server stopped");
    yield chunk;
  }
  throw new ApiError(0, "the answer was cut off");
}

function parseChunk(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError(0, "a part of the answer is not JSON");
  }
}

export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (!line && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
