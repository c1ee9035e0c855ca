// Engines in a browser: a session for each, which `onnxruntime_web.py` opens and calls.

import { answerOrders } from "./orders.js";
import { call, openLibrary, openSession } from "./sessions.js";

const sessions = new Map();
let ort = null;
let backend = null;

const read = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
const here = (path) => new URL(path, self.location).href;

await answerOrders({
  /** The GPU that WebGPU uses, in words, and whether it is in software; empty where there is none. */
  async adapter() {
    const found = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
    const { vendor, architecture, device, description, isFallbackAdapter } = found?.info ?? {};
    const words = [vendor, architecture, device, description].filter(Boolean).join(" ");
    return { adapter: words || (found ? "unnamed" : ""), software: Boolean(isFallbackAdapter) };
  },
  async library({ module, glue, wasm, threads, on }) {
    backend = on;
    ort = await openLibrary({ module: here(module), glue: here(glue), wasm: (await read(wasm)).buffer, threads });
    return { threads: ort.env.wasm.numThreads };
  },
  async open({ name, graph, external }) {
    const data = await Promise.all(external.map(async (path) => ({ path, data: await read(`${name}/${path}`) })));
    sessions.set(name, await openSession(ort, backend, await read(`${name}/${graph}`), data));
  },
  run: async ({ name, outputs }, feeds) => ({ arrays: await call(ort, sessions.get(name), feeds, outputs) }),
  async close({ name }) {
    await sessions.get(name)?.release();
    sessions.delete(name);
  },
});
