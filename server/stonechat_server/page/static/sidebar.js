// The list of conversations: search, open, rename, export, delete with undo, import.

import { byId, download, el, toast } from "./dom.js";
import { fromFile, toJson, toMarkdown } from "./transfer.js";
import { textOf, Tree } from "./tree.js";

const UNDO_SECONDS = 10;

export class Sidebar {
  // tools: open(tree); current() is the open tree.
  constructor(store, tools) {
    this.store = store;
    this.tools = tools;
    this.conversations = [];
    this.found = null; // ids that match the search, or null
    this.deleted = new Set(); // ids; an answer that still ran is not saved any more
    this.list = byId("conversations");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.find());
    byId("export-all").addEventListener("click", () => this.exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.importFiles(event.target));
  }

  async load() {
    this.conversations = await this.store.conversations();
    this.draw();
  }

  // The open conversation was changed.
  touch(conversation) {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.draw();
  }

  async tree(conversation) {
    return new Tree(conversation, await this.store.turns(conversation.id));
  }

  draw() {
    const current = this.tools.current().conversation.id;
    const shown = this.conversations
      .filter((one) => !this.found || this.found.has(one.id))
      .toSorted((a, b) => b.updated - a.updated);
    this.list.replaceChildren(...shown.map((one) => this.row(one, one.id === current)));
    byId("no-conversations").hidden = shown.length > 0;
    byId("no-conversations").textContent = this.found ? "Nothing found." : "No conversations yet.";
  }

  row(conversation, isCurrent) {
    const title = el(
      "button",
      { type: "button", class: "title", "aria-current": isCurrent ? "true" : null },
      conversation.title || "Untitled",
    );
    title.addEventListener("click", async () => {
      if (!isCurrent) this.tools.open(await this.tree(conversation));
    });
    const menu = el("details", { class: "menu" });
    const item = (name, run) =>
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            menu.open = false;
            run();
          },
        },
        name,
      );
    menu.append(
      el("summary", { "aria-label": `Actions for ${conversation.title}` }, "⋯"),
      el(
        "div",
        { class: "items" },
        item("Rename", () => this.rename(conversation, row)),
        item("Export as JSON", () => this.export(conversation, "json")),
        item("Export as Markdown", () => this.export(conversation, "md")),
        item("Delete", () => this.remove(conversation)),
      ),
    );
    const row = el("li", {}, title, menu);
    return row;
  }

  rename(conversation, row) {
    const input = el("input", { "aria-label": "New name", maxlength: "200" });
    input.value = conversation.title;
    const finish = (keep) => {
      if (keep && input.value.trim()) {
        conversation.title = input.value.trim();
        this.store.saveConversation(conversation);
      }
      this.draw();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      finish(false);
    });
    input.addEventListener("blur", () => input.isConnected && finish(true));
    row.replaceChildren(input);
    input.select();
  }

  async remove(conversation) {
    const isCurrent = this.tools.current().conversation === conversation;
    const tree = isCurrent ? this.tools.current() : await this.tree(conversation);
    this.deleted.add(conversation.id);
    if (isCurrent) this.tools.open(Tree.empty());
    this.conversations = this.conversations.filter((one) => one !== conversation);
    await this.store.remove(conversation.id);
    this.draw();
    const run = async () => {
      await this.keep(tree);
      if (isCurrent && this.tools.current().turns.size === 0) this.tools.open(tree);
    };
    toast(`Deleted “${conversation.title}”.`, { name: "Undo", run }, UNDO_SECONDS);
  }

  // Saves a whole conversation and lists it.
  async keep(tree) {
    this.deleted.delete(tree.conversation.id);
    await this.store.saveConversation(tree.conversation);
    for (const turn of tree.turns.values()) {
      turn.conversation = tree.conversation.id;
      await this.store.saveTurn(turn);
    }
    this.touch(tree.conversation);
  }

  async export(conversation, type) {
    const tree = await this.tree(conversation);
    const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50) || "conversation";
    if (type === "json") download(`${name}.json`, toJson([tree]), "application/json");
    else download(`${name}.md`, toMarkdown(tree), "text/markdown");
  }

  async exportAll() {
    const trees = await Promise.all(this.conversations.map((one) => this.tree(one)));
    download("stonechat-conversations.json", toJson(trees), "application/json");
  }

  async importFiles(input) {
    let count = 0;
    for (const file of input.files) {
      try {
        for (const tree of fromFile(file.name, await file.text())) {
          await this.keep(tree);
          count += 1;
        }
      } catch (error) {
        toast(`${file.name}: ${error.message}`);
      }
    }
    input.value = "";
    if (count) toast(`Imported ${count} conversation${count === 1 ? "" : "s"}.`);
  }

  // Finds conversations by their titles and by the text of all their branches.
  async find() {
    const words = this.search.value.trim().toLowerCase();
    if (!words) {
      this.found = null;
      return this.draw();
    }
    const titles = this.conversations.filter((one) => one.title.toLowerCase().includes(words));
    const found = new Set(titles.map((one) => one.id));
    for (const turn of await this.store.allTurns()) {
      if (turnText(turn).toLowerCase().includes(words)) found.add(turn.conversation);
    }
    if (this.search.value.trim().toLowerCase() !== words) return; // typed on meanwhile
    this.found = found;
    this.draw();
  }
}

function turnText(turn) {
  if (turn.role === "user") {
    return [...(turn.images ?? []).map(({ name }) => name), textOf(turn)].join("\n");
  }
  if (turn.role === "tool") return turn.results.map((result) => result.content).join("\n");
  return turn.choices.map((choice) => choice.content).join("\n");
}
