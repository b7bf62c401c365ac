// PDF files of a question: read as they are, sent, kept and named. The server reads their text.
//
// A document is { id, name, url } among the images of a turn. `url` is a data: URL of the file.

import { checkedNames, dataUrl, el, newId } from "./dom.js";

const MAX_FILE_BYTES = 32_000_000;
const DATA_URL = /^data:application\/pdf;base64,[A-Za-z0-9+/]+={0,2}$/;

export const isDocumentFile = (file) => file.type === "application/pdf";

// Whether an attachment is a document.
export const isDocument = ({ url }) => Boolean(url?.startsWith("data:application/pdf;"));

// Throws an Error for people.
export async function readDocument(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 32 MB.`);
  return { id: newId(), name: file.name, url: await dataUrl(file) };
}

// A document from a file that someone else may have written. Null if it is none.
export function checkDocument(document) {
  if (typeof document?.url !== "string" || !DATA_URL.test(document.url)) return null;
  return { ...checkedNames(document, "document.pdf"), url: document.url };
}

// The part of a message.
export function documentPart({ name, url }) {
  return { type: "file", file: { filename: name, file_data: url } };
}

export const documentNode = ({ name }) => el("span", { class: "file" }, name);
