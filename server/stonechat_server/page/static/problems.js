// Errors in plain words.

const WORDS = {
  400: "The server refuses this request",
  403: "This key may not do that",
  404: "The server does not know this model or address",
  413: "The request is too long for the server",
  429: "Too many requests at the moment",
  500: "The server failed while it computed the answer",
  503: "The server is busy or not ready",
  504: "The request waited too long",
};

const REFUSED_PAGES = ["host_not_allowed", "origin_not_allowed"];

// Returns { text, detail, needsKey }: a sentence for people, and who said what about it.
export function explain(error, hasKey) {
  if (error.name === "FieldError")
    return { text: `Check the settings. ${error.message}`, detail: "" };
  if (error.status === undefined) {
    return {
      text: "The server does not answer. It may have stopped, or the network is down.",
      detail: `The browser says: ${error.message}`,
    };
  }
  const detail = `The server says: ${error.message}`;
  if (error.status === 401) {
    const text = hasKey
      ? "The server does not accept this key."
      : "This server wants a key before it answers.";
    return { text, detail: hasKey ? detail : "", needsKey: true };
  }
  if (error.code === "context_length_exceeded") {
    return {
      text:
        "The conversation is longer than the model can read. Shorten the question, edit an " +
        "earlier one, or start a new chat.",
      detail,
    };
  }
  if (error.status === 200) {
    return {
      text: "Something else answers in place of the server, perhaps a proxy that wants a login.",
      detail: `It sends ${error.message}, not a stream.`,
    };
  }
  if (error.status === 403 && REFUSED_PAGES.includes(error.code))
    return { text: "The server does not serve this page under this address.", detail };
  if (error.status === 0) return { text: `The answer broke off: ${error.message}.`, detail: "" };
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return {
    text: `${WORDS[error.status] ?? `The server answers ${error.status}`}.${wait}`,
    detail,
  };
}
