// Text files beside the question: chosen, dropped or pasted. They are sent as text.

import { byId, el, toast } from "./dom.js";

const MAX_BYTES = 1_000_000;

export class Attachments {
  constructor(area) {
    this.files = [];
    this.list = byId("files");
    byId("attach").addEventListener("click", () => byId("attach-file").click());
    byId("attach-file").addEventListener("change", async (event) => {
      await this.add(event.target.files);
      event.target.value = "";
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
      this.add(event.dataTransfer.files);
    });
    area.addEventListener("paste", (event) => {
      if (!event.clipboardData?.files.length) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
  }

  async add(files) {
    for (const file of files) {
      if (file.size > MAX_BYTES) toast(`${file.name} is larger than 1 MB.`);
      else await this.read(file);
    }
    this.draw();
  }

  async read(file) {
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new TypeError("binary");
      this.files.push({ name: file.name, text });
    } catch {
      toast(`${file.name} is not a text file. Only text can be attached.`);
    }
  }

  // Returns the files and forgets them.
  take() {
    return this.put([]);
  }

  // Replaces the files. Returns the earlier ones.
  put(files) {
    const before = this.files;
    this.files = files;
    this.draw();
    return before;
  }

  draw() {
    const chip = (file) => {
      const remove = () => this.put(this.files.filter((one) => one !== file));
      const name = `Remove ${file.name}`;
      return el(
        "span",
        { class: "file" },
        `${file.name} `,
        el("button", { type: "button", "aria-label": name, onclick: remove }, "×"),
      );
    };
    this.list.hidden = this.files.length === 0;
    this.list.replaceChildren(...this.files.map(chip));
  }
}
