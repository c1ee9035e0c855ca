// The package's large files: fetched in pieces, compared with their digests, kept for the next visit.

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** The browser's store for this package; null where it has none, as at addresses without https. */
export async function openStore(name) {
  return "caches" in globalThis ? caches.open(name) : null;
}

async function piece({ path, sha256 }, store) {
  const kept = await store?.match(path);
  const response = kept ?? await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status}). Copy the whole folder to the server.`);
  const bytes = await response.arrayBuffer();
  if (globalThis.crypto?.subtle && hex(await crypto.subtle.digest("SHA-256", bytes)) !== sha256) {
    await store?.delete(path);
    throw new Error(`${path} is damaged: its digest is not the package's. Load the page again, or copy the folder again.`);
  }
  if (!kept && store) await store.put(path, new Response(bytes)).catch(() => { /* the store is full: fetched at each visit */ });
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
