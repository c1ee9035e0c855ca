// The model in a thread of its own: loads the package, and generates images.

import { Stopped, draw, preview, psnr } from "./draw.js";
import { compares, load, openStore } from "./files.js";
import { call, openLibrary, openSession } from "./sessions.js";
import { encoder } from "./tokenizer.js";

let [model, encode, sessions, ort, manifest, store] = [];
let stopped = false;
let times = []; // of the job: of each call of a part, and of the whole image

const turn = () => new Promise((resolve) => { setTimeout(resolve); }); // lets messages arrive

async function adapter() {
  const found = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  return found && !found.info?.isFallbackAdapter ? found : null; // a GPU in software is slower than WebAssembly
}

async function open({ backend, threads }) {
  manifest = await (await fetch("model.json")).json();
  store = await openStore(`${new URL("./", location).href} pieces`);
  model = manifest.model;
  const chosen = backend ?? (await adapter() ? "webgpu" : "wasm");
  const library = manifest.backends[chosen];
  if (!library) throw new Error(`This package has no backend ${chosen}. Leave ?backend out.`);
  const files = [library.wasm, "tokenizer.json", ...Object.values(manifest.parts).flatMap((part) => part.files)].map((file) => manifest.files[file]);
  const total = files.flatMap((file) => file.pieces).reduce((sum, one) => sum + one.bytes, 0);
  let loaded = 0;
  const read = (file) => load(manifest.files[file], store, (bytes) => {
    loaded += bytes;
    postMessage({ kind: "loading", loaded, total });
  });
  ort = await openLibrary({
    module: new URL(library.module, import.meta.url).href,
    glue: new URL(library.glue, import.meta.url).href,
    wasm: (await read(library.wasm)).buffer,
    threads,
  });
  model.tokenizer = JSON.parse(new TextDecoder().decode(await read("tokenizer.json")));
  encode = encoder(model.tokenizer);
  sessions = {};
  for (const [role, part] of Object.entries(manifest.parts)) {
    const [graph, ...data] = await Promise.all(part.files.map(read));
    sessions[role] = await openSession(ort, chosen, graph, data.map((bytes, index) => ({ path: part.external[index], data: bytes })));
  }
  const has = { isolated: crossOriginIsolated, checked: compares, kept: store.kept };
  postMessage({ kind: "ready", backend: chosen, threads: ort.env.wasm.numThreads, has, manifest });
}

async function run(role, feeds) {
  const { output } = manifest.parts[role];
  const start = performance.now();
  const found = await call(ort, sessions[role], feeds, [output]);
  note(role, start);
  return found[output];
}

/** Keep when something began, in milliseconds of this thread's clock, and how long it took. */
function note(name, start) {
  times.push({ name, start: performance.timeOrigin + start, duration: performance.now() - start });
}

async function generate(request) {
  stopped = false;
  times = [];
  const started = performance.now();
  const asked = { ...request, seed: BigInt(request.seed) };
  const drawn = await draw(model, encode, asked, run, async ({ index, total, estimate }) => {
    const seconds = (performance.now() - started) / 1000;
    postMessage({ kind: "step", index, total, seconds, preview: preview(model, estimate()) });
    await turn();
    return !stopped;
  });
  note("image", started);
  return { ...drawn, seconds: times.at(-1).duration / 1000, times };
}

async function compare() {
  const { request, pixels, latents } = manifest.check;
  const [image, floats] = await Promise.all([pixels, latents].map((file) => load(manifest.files[file], store, () => {})));
  const drawn = await generate(request);
  const wanted = new Float32Array(floats.buffer);
  const apart = drawn.latents.reduce((most, value, index) => Math.max(most, Math.abs(value - wanted[index])), 0);
  return { ...drawn, request, psnr_db: psnr(drawn.pixels, image), apart };
}

const WORK = {
  open,
  generate: async (request) => postMessage({ kind: "image", request, ...await generate(request) }),
  compare: async () => postMessage({ kind: "compared", ...await compare() }),
};

onmessage = async ({ data: { kind, value } }) => {
  if (kind === "stop") {
    stopped = true;
    return;
  }
  try {
    await WORK[kind](value);
  } catch (error) {
    postMessage({ kind: error instanceof Stopped ? "stopped" : "failed", message: error?.message ?? String(error) });
  }
};
