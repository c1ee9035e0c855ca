// The page: its form, the image in progress, and the comparison with the package's reference.

import { $, fail, make, notice, quiet, safely, say, url } from "./dom.js";

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const HEADERS = "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp";
let manifest = null;
let waiting = null; // the one job of the worker
let lastSeed = null;

/** Send a job to the worker; its answer, or an error in words. */
function ask(kind, value) {
  return new Promise((resolve, reject) => {
    waiting = { resolve, reject };
    worker.postMessage({ kind, value });
  });
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const seconds = (value) => (value < 1 ? "less than 1 s" : `about ${Math.round(value)} s`);

function showProgress(share, text) {
  $("progress").hidden = false;
  $("bar").value = share;
  $("detail").textContent = text;
}

function show(pixels, width, height) {
  const canvas = $("shown");
  canvas.hidden = false;
  $("empty").hidden = true;
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), 0, 0);
}

let asked = null; // the request in progress

const TOLD = {
  loading({ loaded, total }) {
    $("empty").textContent = `Loading: ${megabytes(loaded)} of ${megabytes(total)} MB`;
  },
  step({ index, total, seconds: spent, preview }) {
    const left = (spent / index) * (total - index);
    showProgress(index / total, `Step ${index} of ${total}, ${seconds(left)} left`);
    const { downscale } = manifest.model;
    if (preview) show(preview, asked.width / downscale, asked.height / downscale);
  },
};

worker.onmessage = ({ data }) => {
  if (TOLD[data.kind]) {
    TOLD[data.kind](data);
    return;
  }
  const { resolve, reject } = waiting;
  waiting = null;
  if (data.kind === "failed" || data.kind === "stopped") reject(new Error(data.message));
  else resolve(data);
};
worker.onerror = (event) => {
  const error = new Error(`The page cannot compute here: ${event.message ?? "its worker does not start"}.`);
  const job = waiting;
  waiting = null;
  if (job) job.reject(error);
  else fail(error);
};

/** Run a job with the progress shown and the buttons disabled. */
async function work(kind, value, request) {
  if (waiting || !manifest) return null;
  quiet();
  asked = request;
  $("about").hidden = true;
  for (const id of ["go", "compare"]) $(id).disabled = true;
  showProgress(0, "Reading the prompt");
  $("stage").classList.remove("blank");
  try {
    return await ask(kind, value);
  } catch (error) {
    if (error.message !== "Stopped.") throw error;
    say("Stopped.");
    return null;
  } finally {
    $("progress").hidden = true;
    for (const id of ["go", "compare"]) $(id).disabled = false;
  }
}

function gather() {
  const seed = $("seed").value.trim() || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  if (!/^\d+$/.test(seed)) throw new Error("The seed has to be a whole number.");
  const request = { prompt: $("prompt").value, negative_prompt: $("negative_prompt").value, scheduler: $("scheduler").value, seed };
  for (const id of ["width", "height", "steps", "guidance"]) {
    // Browsers give an empty text for what is not a number.
    if (!$(id).value) throw new Error(`The field for the ${id} has no number. Enter one.`);
    request[id] = Number($(id).value);
  }
  return request;
}

function describe(request, took) {
  const rows = { ...request, seconds: took.toFixed(1) };
  $("parameters").replaceChildren(...Object.entries(rows).filter(([, value]) => value !== "").map(([name, value]) => {
    const row = make("div");
    row.append(make("dt", { textContent: name.replace("_", " ") }), make("dd", { textContent: value }));
    return row;
  }));
  $("about").hidden = false;
}

/** Show an image with its parameters, to be downloaded. Its times are in the browser's performance timeline. */
async function finish(made, request) {
  show(made.pixels, request.width, request.height);
  performance.clearMeasures();
  for (const { name, start, duration } of made.times) performance.measure(name, { start: start - performance.timeOrigin, duration });
  const png = await new Promise((resolve) => { $("shown").toBlob(resolve); });
  Object.assign($("download"), { href: url("png", png), download: `latentc-${request.seed}.png` });
  describe(request, made.seconds);
}

async function generate() {
  const request = gather();
  const made = await work("generate", request, request);
  if (!made) return;
  lastSeed = request.seed;
  $("last").disabled = false;
  await finish(made, request);
  say("The image is finished.");
  document.documentElement.dataset.images = Number(document.documentElement.dataset.images ?? 0) + 1;
}

async function compare() {
  const made = await work("compare", null, manifest.check.request);
  if (!made) return;
  await finish(made, made.request);
  const found = Number.isFinite(made.psnr_db) ? `agrees to ${made.psnr_db.toFixed(1)} dB` : "is equal in every pixel";
  const enough = made.psnr_db >= manifest.check.floor_db;
  $("parity").textContent = `The image of this browser ${found} with that of ${manifest.check.by}; latents differ by ${made.apart.toExponential(1)} at most. `
    + (enough ? "That is rounding." : `Less than ${manifest.check.floor_db} dB is not only rounding: use another browser or ?backend=wasm.`);
  $("parity").classList.toggle("bad", !enough);
  $("parity").dataset.db = made.psnr_db;
}

function fill() {
  const { model, presets, defaults } = manifest;
  document.title = `${manifest.title} · latentc`;
  $("model").textContent = manifest.title;
  $("proof").textContent = manifest.proof;
  $("scheduler").replaceChildren(...Object.keys(model.schedulers).map((name) => new Option(name === model.scheduler ? `${name} (the model's own)` : name, name)));
  $("scheduler").value = model.scheduler;
  $("preset").replaceChildren(...Object.keys(presets).map((name) => new Option(name, name)));
  $("preset").addEventListener("change", () => {
    const { steps, scheduler } = presets[$("preset").value];
    [$("steps").value, $("scheduler").value] = [steps, scheduler ?? model.scheduler];
  });
  for (const [id, value] of Object.entries(defaults)) $(id).value = value;
  for (const id of ["width", "height"]) $(id).step = model.multiple;
}

/** What this address lacks, in sentences. */
function lacking({ isolated, checked, kept }) {
  const secure = Boolean(navigator.serviceWorker);
  const threads = secure
    ? `One thread computes, because the server does not send ${HEADERS}. Load the page again: it then adds them itself.`
    : "One thread computes: more need https or localhost.";
  const digests = "The files were not compared with their digests: this needs https or localhost.";
  const store = secure
    ? "Each visit loads the weights again, because this browser has no room for them or keeps nothing."
    : "Nothing is kept for offline use: this needs https or localhost.";
  return [[isolated, threads], [checked, digests], [kept, store]].filter(([has]) => !has).map(([, sentence]) => sentence);
}

function connect() {
  $("ask").addEventListener("submit", safely(async (event) => { event.preventDefault(); await generate(); }));
  document.addEventListener("keydown", safely(async (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) await generate();
  }));
  $("compare").addEventListener("click", safely(compare));
  $("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
  $("last").addEventListener("click", () => { $("seed").value = lastSeed; });
}

async function start() {
  $("error").hidden = true;
  const registered = navigator.serviceWorker?.register("sw.js").then(() => [], (error) => [`Nothing is kept for offline use: ${error.message}`]);
  connect();
  const given = new URLSearchParams(location.search);
  const ready = await ask("open", { backend: given.get("backend"), threads: Number(given.get("threads")) || null });
  manifest = ready.manifest;
  fill();
  const threads = ready.threads === 1 ? "1 thread" : `${ready.threads} threads`;
  $("profile").textContent = `onnxruntime-web ${manifest.onnxruntime_web}, ${ready.backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads}`}`;
  notice([...lacking(ready.has), ...(await registered ?? [])]);
  $("empty").textContent = "Your images appear here. Nothing leaves this browser.";
  for (const id of ["go", "compare"]) $(id).disabled = false;
  document.documentElement.dataset.ready = "";
}

await start().catch(fail);
