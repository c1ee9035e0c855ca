// The images that this browser keeps, in IndexedDB: files, small copies, and parameters.

export const LIMIT = 200; // images; beyond, the oldest are deleted
const SIDE = 256; // pixels of the longer side of a small copy
const STORE = "images";
let opening = null;

function opened() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("latentc", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function within(mode, work) {
  const database = await opened();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** All entries, the newest first: `{id, time, png, small, about, image, mask}`. */
export const load = async () => ({ entries: (await within("readonly", (store) => store.getAll())).reverse(), more: false });

/** Nothing: they are complete. */
export const complete = async () => {};

export const remove = (id) => within("readwrite", (store) => store.delete(id));

export const clear = () => within("readwrite", (store) => store.clear());

/** Keep an entry; returns it with its id. The oldest beyond the limit are deleted. */
export async function add(entry) {
  const kept = { ...entry, small: await smaller(entry.png) };
  const id = await within("readwrite", (store) => store.add(kept));
  const keys = await within("readonly", (store) => store.getAllKeys());
  for (const old of keys.slice(0, -LIMIT)) await remove(old);
  return { ...kept, id };
}

async function smaller(png) {
  const bitmap = await createImageBitmap(png);
  const scale = SIDE / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1) return png;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob ?? png), "image/webp", 0.9));
}
