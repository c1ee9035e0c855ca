// The package's large files: fetched in pieces, compared with their digests, kept for the next visit.

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Whether pieces are compared with their digests: browsers compute digests at https addresses and at localhost only. */
export const compares = Boolean(globalThis.crypto?.subtle);

/** The browser's store for pieces. `kept` is false where it has none, and once a piece found no room. */
export async function openStore(name) {
  const cache = "caches" in globalThis ? await caches.open(name).catch(() => null) : null;
  return { cache, kept: cache !== null };
}

async function piece({ path, sha256 }, store) {
  const key = `${path}?${sha256}`; // see sw.js
  const found = await store.cache?.match(key);
  const response = found ?? await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status}). Copy the whole folder to the server.`);
  const bytes = await response.arrayBuffer();
  if (compares && hex(await crypto.subtle.digest("SHA-256", bytes)) !== sha256) {
    await store.cache?.delete(key);
    throw new Error(`${path} is damaged: its digest is not the package's. Load the page again, or copy the folder again.`);
  }
  if (!found) await store.cache?.put(key, new Response(bytes)).catch(() => { store.kept = false; });
  return new Uint8Array(bytes);
}

/** The content of a file of the manifest; `onBytes` is called with the number of bytes that were loaded. */
export async function load(file, store, onBytes) {
  const pieces = [];
  for (const one of file.pieces) {
    pieces.push(await piece(one, store));
    onBytes(one.bytes);
  }
  if (pieces.length === 1 && !file.gzip) return pieces[0];
  const joined = new Blob(pieces);
  const whole = file.gzip ? new Response(joined.stream().pipeThrough(new DecompressionStream("gzip"))) : joined;
  return new Uint8Array(await whole.arrayBuffer());
}
