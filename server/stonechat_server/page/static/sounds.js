// Audio of a question: read from files as they are, sent, kept and played.
//
// A sound is { id, name, url } among the images of a turn. `url` is a data: URL of the file.

import { checkedNames, dataUrl, el, newId } from "./dom.js";

const MAX_FILE_BYTES = 25_000_000;
const FORMATS = {
  "audio/wav": "wav",
  "audio/x-wav": "wav",
  "audio/wave": "wav",
  "audio/vnd.wave": "wav",
  "audio/mpeg": "mp3",
  "audio/mp3": "mp3",
  "audio/flac": "flac",
  "audio/x-flac": "flac",
  "audio/ogg": "ogg",
};
const DATA_URL = /^data:(audio\/[a-z0-9.-]+);base64,([A-Za-z0-9+/]+={0,2})$/;

export const isSoundFile = (file) => file.type.startsWith("audio/");

// Whether an attachment is a sound, and not an image.
export const isSound = ({ url }) => Boolean(url?.startsWith("data:audio/"));

// Throws an Error for people.
export async function readSound(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 25 MB.`);
  if (!FORMATS[file.type])
    throw new Error(`${file.name} cannot be sent. WAV, MP3, FLAC and Ogg files work.`);
  return { id: newId(), name: file.name, url: await dataUrl(file) };
}

// A sound from a file that someone else may have written. Null if it is none.
export function checkSound(sound) {
  if (typeof sound?.url !== "string" || !FORMATS[DATA_URL.exec(sound.url)?.[1]]) return null;
  return { ...checkedNames(sound, "audio"), url: sound.url };
}

// The part of a message.
export function soundPart({ url }) {
  const [, type, data] = DATA_URL.exec(url);
  return { type: "input_audio", input_audio: { data, format: FORMATS[type] } };
}

export const soundNode = ({ name, url }) =>
  el(
    "span",
    { class: "file sound", title: name },
    el("audio", { controls: "", preload: "metadata", src: url, "aria-label": name }),
  );
