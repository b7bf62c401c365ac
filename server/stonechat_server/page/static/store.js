// Keeps conversations in the browser's IndexedDB: a record for each conversation, each of its turns,
// and each image, which several turns may show. Where the browser has no database for the page, they
// last as long as the page.

import { toast } from "./dom.js";

const NAME = "stonechat";
const VERSION = 2;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

// The store, and the conversations in it.
export async function openStore() {
  try {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = ({ oldVersion }) => {
      const { result } = request;
      if (oldVersion < 1) {
        result.createObjectStore("conversations", { keyPath: "id" });
        result.createObjectStore("turns", { keyPath: ["conversation", "id"] });
      }
      result.createObjectStore("images", { keyPath: ["conversation", "id"] });
    };
    request.onblocked = () => toast("Close other tabs of this page: their version is older.");
    const store = new Store(await done(request));
    return { store, kept: await store.conversations() };
  } catch {
    return { store: new MemoryStore(), kept: [] };
  }
}

class Store {
  isLasting = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close(); // a newer page opens it in another tab
  }

  table(name) {
    return this.database.transaction(name).objectStore(name);
  }

  // Changes records of some tables, all of them or none. Resolves once they are on the disk, which
  // may be full; the database may be closed.
  async change(names, run) {
    const transaction = this.database.transaction(names, "readwrite");
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
      run(...names.map((name) => transaction.objectStore(name)));
    });
  }

  conversations() {
    return done(this.table("conversations").getAll());
  }

  async turns(id) {
    const turns = await done(this.table("turns").getAll(ofConversation(id)));
    const images = await done(this.table("images").getAll(ofConversation(id)));
    const urls = new Map(images.map((image) => [image.id, image.url]));
    for (const image of turns.flatMap((turn) => turn.images ?? [])) image.url = urls.get(image.id);
    return turns;
  }

  // Without the data of their images.
  allTurns() {
    return done(this.table("turns").getAll());
  }

  saveConversation(conversation) {
    return this.change(["conversations"], (table) => table.put(conversation));
  }

  // An image that finds no room does not take its question along. All changes begin at once: a
  // later one, like `remove`, comes after each of them.
  async saveTurn(turn) {
    const { conversation, images = [] } = turn;
    const kept = images.map(({ url, ...rest }) => rest);
    const record = images.length ? { ...turn, images: kept } : turn;
    const put = (name, one) => this.change([name], (table) => table.put(one));
    const pictures = images.filter(({ url }) => url);
    await Promise.all([
      put("turns", record),
      ...pictures.map(({ id, url }) => put("images", { conversation, id, url })),
    ]);
  }

  remove(id) {
    return this.change(["images", "turns", "conversations"], (images, turns, conversations) => {
      images.delete(ofConversation(id));
      turns.delete(ofConversation(id));
      conversations.delete(id);
    });
  }
}

// The keys of a conversation's records.
const ofConversation = (id) => IDBKeyRange.bound([id], [id, []]);

class MemoryStore {
  isLasting = false;
  kept = { conversations: new Map(), turns: new Map() };

  async turns(id) {
    return (await this.allTurns()).filter((turn) => turn.conversation === id);
  }

  async allTurns() {
    return [...this.kept.turns.values()];
  }

  async saveConversation(conversation) {
    this.kept.conversations.set(conversation.id, structuredClone(conversation));
  }

  async saveTurn(turn) {
    this.kept.turns.set(`${turn.conversation} ${turn.id}`, structuredClone(turn));
  }

  async remove(id) {
    this.kept.conversations.delete(id);
    for (const [key, turn] of this.kept.turns) {
      if (turn.conversation === id) this.kept.turns.delete(key);
    }
  }
}
