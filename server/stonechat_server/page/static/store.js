// Keeps conversations in the browser's IndexedDB: one record for each conversation, one for each of
// its turns. Where the browser has no database for the page, they last as long as the page.

const NAME = "stonechat";
const VERSION = 1;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export async function openStore() {
  try {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("turns", { keyPath: ["conversation", "id"] });
    };
    return new Store(await done(request));
  } catch {
    return new MemoryStore();
  }
}

class Store {
  isLasting = true;

  constructor(database) {
    this.database = database;
  }

  table(name, mode = "readonly") {
    return this.database.transaction(name, mode).objectStore(name);
  }

  conversations() {
    return done(this.table("conversations").getAll());
  }

  turns(id) {
    return done(this.table("turns").getAll(IDBKeyRange.bound([id], [id, []])));
  }

  allTurns() {
    return done(this.table("turns").getAll());
  }

  saveConversation(conversation) {
    return done(this.table("conversations", "readwrite").put(conversation));
  }

  saveTurn(turn) {
    return done(this.table("turns", "readwrite").put(turn));
  }

  async remove(id) {
    await done(this.table("turns", "readwrite").delete(IDBKeyRange.bound([id], [id, []])));
    await done(this.table("conversations", "readwrite").delete(id));
  }
}

class MemoryStore {
  isLasting = false;
  kept = { conversations: new Map(), turns: new Map() };

  async conversations() {
    return [...this.kept.conversations.values()];
  }

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
