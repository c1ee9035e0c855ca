// The model in a thread of its own: loads the package, and generates images.

import { Stopped, draw, preview, psnr } from "./draw.js";
import { compares, load, openStore } from "./files.js";
import { encoder } from "./tokenizer.js";

let [model, encode, sessions, ort, manifest, store] = [];
let stopped = false;

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
  ort = await import(`./${library.module}`);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = (await read(library.wasm)).buffer;
  ort.env.wasm.wasmPaths = { mjs: new URL(library.glue, import.meta.url).href };
  const most = Math.min(navigator.hardwareConcurrency || 1, 8);
  ort.env.wasm.numThreads = crossOriginIsolated ? threads ?? most : 1;
  model.tokenizer = JSON.parse(new TextDecoder().decode(await read("tokenizer.json")));
  encode = encoder(model.tokenizer);
  sessions = {};
  for (const [role, part] of Object.entries(manifest.parts)) {
    const [graph, ...data] = await Promise.all(part.files.map(read));
    sessions[role] = await ort.InferenceSession.create(graph, {
      executionProviders: [chosen],
      logSeverityLevel: 3,
      externalData: data.map((bytes, index) => ({ path: part.external[index], data: bytes })),
    });
  }
  const has = { isolated: crossOriginIsolated, checked: compares, kept: store.kept };
  postMessage({ kind: "ready", backend: chosen, threads: ort.env.wasm.numThreads, has, manifest });
}

async function run(role, feeds) {
  const tensors = Object.fromEntries(Object.entries(feeds).map(([name, [data, dims]]) => [
    name, new ort.Tensor(data instanceof BigInt64Array ? "int64" : "float32", data, dims),
  ]));
  const answer = (await sessions[role].run(tensors, [manifest.parts[role].output]))[manifest.parts[role].output];
  const data = await answer.getData();
  const found = { data: data.slice(), dims: answer.dims };
  answer.dispose();
  return found;
}

async function generate(request) {
  stopped = false;
  const started = performance.now();
  const asked = { ...request, seed: BigInt(request.seed) };
  const drawn = await draw(model, encode, asked, run, async ({ index, total, estimate }) => {
    const seconds = (performance.now() - started) / 1000;
    postMessage({ kind: "step", index, total, seconds, preview: preview(model, estimate()) });
    await turn();
    return !stopped;
  });
  return { ...drawn, seconds: (performance.now() - started) / 1000 };
}

async function compare() {
  const { request, pixels, latents } = manifest.check;
  const [image, floats] = await Promise.all([pixels, latents].map((file) => load(manifest.files[file], store, () => {})));
  const drawn = await generate(request);
  const wanted = new Float32Array(floats.buffer);
  const apart = drawn.latents.reduce((most, value, index) => Math.max(most, Math.abs(value - wanted[index])), 0);
  return { request, pixels: drawn.pixels, seconds: drawn.seconds, psnr_db: psnr(drawn.pixels, image), apart };
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
