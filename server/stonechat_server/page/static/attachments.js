// Files beside the question: chosen, dropped or pasted. Images, audio and PDF files are sent as such,
// other files as text. Among `images` are the sounds and documents, too.

import { isDocument, isDocumentFile, readDocument } from "./documents.js";
import { byId, el, toast } from "./dom.js";
import { isPicture, pictureNode, readPicture, sizeText } from "./pictures.js";
import { isSound, isSoundFile, readSound, soundNode } from "./sounds.js";

const MAX_TEXT_BYTES = 1_000_000;

export class Attachments {
  // tools: modelsRead() resolves once the page knows the models, or cannot; whyNo("image") and
  // whyNo("audio") return why the chosen one takes none, or "".
  constructor(area, tools) {
    this.tools = tools;
    this.files = [];
    this.images = [];
    this.numReading = 0;
    this.reading = Promise.resolve();
    this.list = byId("files");
    byId("attach").addEventListener("click", () => byId("attach-file").click());
    byId("attach-file").addEventListener("change", ({ target }) => {
      this.add([...target.files]);
      target.value = "";
    });
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      area.classList.add("drop");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) area.classList.remove("drop");
    });
    document.addEventListener("drop", (event) => {
      area.classList.remove("drop");
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
    area.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      // Office programs put a picture of the text beside the text.
      const isText = files.every(isPicture) && event.clipboardData?.getData("text/plain");
      if (!files.length || isText) return;
      event.preventDefault();
      this.add(files);
    });
  }

  get isEmpty() {
    return !this.files.length && !this.images.length && !this.numReading;
  }

  // Reads files one after the other, in their order.
  add(files) {
    this.numReading += 1;
    this.reading = this.reading.then(async () => {
      for (const file of files) {
        await this.read(file).catch((error) => toast(error.message));
        this.draw();
      }
      this.numReading -= 1;
    });
    return this.reading;
  }

  async read(file) {
    if (isDocumentFile(file)) {
      this.images.push(await readDocument(file));
      return;
    }
    if (!isPicture(file) && !isSoundFile(file)) {
      this.files.push({ name: file.name, text: await readText(file) });
      return;
    }
    await this.tools.modelsRead();
    const why = this.tools.whyNo(isPicture(file) ? "image" : "audio");
    if (why) throw new Error(`${file.name} is not attached. ${why}`);
    this.images.push(await (isPicture(file) ? readPicture(file) : readSound(file)));
  }

  // Returns what is attached and forgets it.
  take() {
    return this.put({});
  }

  // Replaces what is attached. Returns what was.
  put({ files = [], images = [] }) {
    const before = { files: this.files, images: this.images };
    Object.assign(this, { files: [...files], images: [...images] }); // a turn keeps its own
    this.draw();
    return before;
  }

  // Says what can be attached.
  drawTitle() {
    const why = this.tools.whyNo("image");
    const media = [!why && "images", !this.tools.whyNo("audio") && "audio"].filter(Boolean);
    const what = [...media, "PDF and text files"].join(", ");
    byId("attach").title = `Attach ${what}. You can drop or paste them too. ${why}`.trim();
  }

  draw() {
    const { files, images } = this;
    const without = (all, one) => all.filter((other) => other !== one);
    const nodes = [
      ...images.map((image) =>
        chip(image, () => this.put({ files, images: without(images, image) })),
      ),
      ...files.map((file) => chip(file, () => this.put({ files: without(files, file), images }))),
    ];
    this.list.hidden = nodes.length === 0;
    this.list.replaceChildren(...nodes);
  }
}

function chip(file, remove) {
  const button = el("button", { "aria-label": `Remove ${file.name}`, onclick: remove }, "×");
  if (!file.url || isDocument(file)) return el("span", { class: "file" }, `${file.name} `, button);
  if (isSound(file)) return el("span", { class: "file sound" }, soundNode(file), button);
  const name = el("span", { class: "name" }, file.name);
  const size = el("span", { class: "quiet" }, sizeText(file));
  return el("span", { class: "file image" }, pictureNode(file), el("span", {}, name, size), button);
}

// The text of a file. Throws an Error for people.
async function readText(file) {
  if (file.size > MAX_TEXT_BYTES) throw new Error(`${file.name} is larger than 1 MB.`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0") && !text.startsWith("%PDF-")) return text;
  } catch {
    /* not text */
  }
  throw new Error(`${file.name} is no image, audio, PDF or text file. It is not attached.`);
}
