// Runs the page's store of pieces, and what its service worker deletes, for test_web_modules.py.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { load, openStore } from "./files.js";

const SCOPE = "http://localhost/a/";
const all = new Map(); // by store: bodies by address
const full = new Set();
const address = (key) => new URL(key.url ?? key, SCOPE).href;

class Store {
  constructor(name) { this.name = name; }
  async match(key) { const body = all.get(this.name).get(address(key)); return body && new Response(body); }
  async put(key, response) {
    if (full.has(this.name)) throw new Error("QuotaExceededError");
    all.get(this.name).set(address(key), await response.arrayBuffer());
  }
  async delete(key) { return all.get(this.name).delete(address(key)); }
  async keys() { return [...all.get(this.name).keys()].map((url) => ({ url })); }
}

globalThis.caches = {
  async open(name) { if (!all.has(name)) all.set(name, new Map()); return new Store(name); },
  async keys() { return [...all.keys()]; },
  async delete(name) { return all.delete(name); },
};

const served = new Map();
const fetched = [];
globalThis.fetch = async (path) => { fetched.push(path); return new Response(served.get(path)); };

/** A file of one piece; `text` is what the server has. */
function file(path, content, text = content) {
  served.set(path, text);
  return { gzip: false, pieces: [{ path, bytes: content.length, sha256: createHash("sha256").update(content).digest("hex") }] };
}

const read = async (one, store) => new TextDecoder().decode(await load(one, store, () => {}));
const [same, old, fresh] = [file("data/same", "same"), file("data/graph", "old"), file("data/graph", "new", "old")];
const answers = {};
const store = await openStore(`${SCOPE} pieces`);
answers.first = [await read(same, store), await read(old, store), await read(same, store)];
answers.damaged = await read(fresh, store).catch((error) => error.message);
served.set("data/graph", "new");
answers.changed = await read(fresh, store);
answers.fetched = fetched;
answers.kept = [store.kept];
const crowded = await openStore("crowded");
full.add("crowded");
answers.crowded = await read(same, crowded);
answers.kept.push(crowded.kept);

const on = {};
const worker = { addEventListener: (kind, run) => { on[kind] = run; }, clients: { async claim() {} } };
for (const name of [`${SCOPE} @name@`, `${SCOPE} other`]) await caches.open(name);
await (await caches.open(`${SCOPE} @name@`)).put("model.json", new Response(JSON.stringify({ files: { same, fresh } })));
new Function("self", "registration", readFileSync(new URL("sw.js", import.meta.url), "utf8"))(worker, { scope: SCOPE });
await new Promise((resolve) => { on.activate({ waitUntil: resolve }); });
answers.stores = [...all.keys()];
answers.pieces = (await store.cache.keys()).map(({ url }) => url.replace(SCOPE, "").split("?")[0]);
answers.again = await read(fresh, store);

process.stdout.write(JSON.stringify(answers));
