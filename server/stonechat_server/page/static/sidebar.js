// The list of conversations: search, open, rename, export, delete with undo, import.

import { byId, download, el, toast } from "./dom.js";
import { fromFile, toJson, toMarkdown } from "./transfer.js";
import { textOf, Tree } from "./tree.js";

const UNDO_SECONDS = 10;

export class Sidebar {
  // `conversations` are those of the store. tools: open(tree); current() is the open tree.
  constructor(store, conversations, tools) {
    this.store = store;
    this.conversations = conversations;
    this.tools = tools;
    this.rows = new Map(); // the drawn rows, by their conversation
    this.chosen = null; // the conversation to open
    this.found = null; // ids that match the search, or null
    this.deleted = new Set(); // ids; an answer that still ran is not saved any more
    this.list = byId("conversations");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.find());
    byId("export-all").addEventListener("click", () => this.exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.importFiles(event.target));
  }

  // The open conversation was changed.
  touch(conversation) {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.draw();
  }

  async tree(conversation) {
    return new Tree(conversation, await this.store.turns(conversation.id));
  }

  // Opens the conversation that was chosen last, unless another one is open by then.
  async open(conversation) {
    this.chosen = conversation;
    const before = this.tools.current();
    if (before.conversation === conversation) return;
    const tree = await this.tree(conversation);
    if (this.chosen === conversation && this.tools.current() === before) this.tools.open(tree);
  }

  // Rows that stay are only renamed and moved: one may have an open menu, or get a new name.
  draw() {
    const { conversation: current } = this.tools.current();
    const shown = this.conversations
      .filter((one) => !this.found || this.found.has(one.id))
      .toSorted((a, b) => b.updated - a.updated);
    const before = this.rows;
    this.rows = new Map(shown.map((one) => [one, before.get(one) ?? this.row(one)]));
    for (const [one, row] of before) if (!this.rows.has(one)) row.node.remove();
    shown.forEach((one, at) => {
      const { node, update } = this.rows.get(one);
      update(one === current);
      const other = this.list.children[at] ?? null;
      if (other !== node) this.list.insertBefore(node, other);
    });
    byId("no-conversations").hidden = shown.length > 0;
    byId("no-conversations").textContent = this.found ? "Nothing found." : "No conversations yet.";
  }

  // A row of the list, and a function that draws what may change in it.
  row(conversation) {
    const open = () => this.open(conversation);
    const title = el("button", { class: "title", onclick: open });
    const summary = el("summary", {}, "⋯");
    const menu = el("details", { class: "menu" });
    const item = (name, run) => {
      const onclick = () => {
        menu.open = false;
        run();
      };
      return el("button", { onclick }, name);
    };
    menu.append(
      summary,
      el(
        "div",
        { class: "items" },
        item("Rename", () => this.rename(conversation, node)),
        item("Export as JSON", () => this.export(conversation, "json")),
        item("Export as Markdown", () => this.export(conversation, "md")),
        item("Delete", () => this.remove(conversation)),
      ),
    );
    const node = el("li", {}, title, menu);
    const update = (isCurrent) => {
      title.textContent = conversation.title || "Untitled";
      if (isCurrent) title.setAttribute("aria-current", "true");
      else title.removeAttribute("aria-current");
      summary.setAttribute("aria-label", `Actions for ${conversation.title}`);
    };
    return { node, update };
  }

  // A box takes the place of what is in the row.
  rename(conversation, node) {
    const inside = [...node.childNodes];
    const input = el("input", { "aria-label": "New name", maxlength: "200" });
    input.value = conversation.title;
    let isOpen = true;
    const finish = (keep) => {
      if (!isOpen) return;
      isOpen = false; // the box loses the focus when it goes
      if (keep && input.value.trim()) {
        conversation.title = input.value.trim();
        this.store.saveConversation(conversation);
      }
      node.replaceChildren(...inside);
      this.draw();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      finish(false);
    });
    input.addEventListener("blur", () => finish(true));
    node.replaceChildren(input);
    input.select();
  }

  async remove(conversation) {
    const isCurrent = this.tools.current().conversation === conversation;
    const tree = isCurrent ? this.tools.current() : await this.tree(conversation);
    this.deleted.add(conversation.id);
    if (isCurrent) this.tools.open(Tree.empty());
    this.conversations = this.conversations.filter((one) => one !== conversation);
    this.draw();
    await this.store.remove(conversation.id);
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
