// Keeps the page for visits without a network, and adds the two headers that threads need where a server doesn't.

const NAME = "@name@";
const SHELL = ["@shell@"];
const place = `${registration.scope} `;
const key = place + NAME;
const pieces = `${place}pieces`; // files.js fills it

self.addEventListener("install", (event) => {
  const fresh = SHELL.map((path) => new Request(path, { cache: "reload" }));
  event.waitUntil(caches.open(key).then((store) => store.addAll(fresh)).then(() => self.skipWaiting()));
});

/** Delete what this version does not use: pages of other versions, and pieces that are not in its manifest. */
async function takeOver() {
  const old = (await caches.keys()).filter((one) => one.startsWith(place) && ![key, pieces].includes(one));
  await Promise.all(old.map((one) => caches.delete(one)));
  const { files } = await (await (await caches.open(key)).match("model.json")).json();
  const listed = Object.values(files).flatMap((file) => file.pieces).map(({ path, sha256 }) => new URL(`${path}?${sha256}`, registration.scope).href);
  const store = await caches.open(pieces);
  const unused = (await store.keys()).filter((one) => !listed.includes(one.url));
  await Promise.all(unused.map((one) => store.delete(one)));
  await self.clients.claim();
}

self.addEventListener("activate", (event) => event.waitUntil(takeOver()));

async function answer(request) {
  const store = await caches.open(key);
  const found = await store.match(request, { ignoreSearch: true }) ?? await fetch(request);
  const headers = new Headers(found.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(registration.scope)) event.respondWith(answer(event.request));
});
