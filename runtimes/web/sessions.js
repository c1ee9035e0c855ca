// onnxruntime-web: its module, its sessions, and a call of one.

/**
 * The module at the address `module`, with WebAssembly (`wasm`, an ArrayBuffer) that the module at `glue` starts, in
 * this many threads. Without `threads` there are as many as cores, at most 8; pages that are not isolated have one.
 */
export async function openLibrary({ module, glue, wasm, threads }) {
  const ort = await import(module);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.wasmPaths = { mjs: glue };
  const most = Math.min(navigator.hardwareConcurrency || 1, 8);
  ort.env.wasm.numThreads = crossOriginIsolated ? threads || most : 1;
  return ort;
}

/** A session of a graph on a backend; `external` are its files of weights, [{ path, data }]. */
export function openSession(ort, backend, graph, external) {
  return ort.InferenceSession.create(graph, { executionProviders: [backend], logSeverityLevel: 3, externalData: external });
}

/** Outputs of a session by name, { data, dims }, from inputs by name, [data, dims]. */
export async function call(ort, session, feeds, outputs) {
  const tensors = Object.fromEntries(Object.entries(feeds).map(([name, [data, dims]]) => [
    name, new ort.Tensor(data instanceof BigInt64Array ? "int64" : "float32", data, dims),
  ]));
  const found = {};
  for (const [name, tensor] of Object.entries(await session.run(tensors, outputs))) {
    found[name] = { data: (await tensor.getData()).slice(), dims: [...tensor.dims] };
    tensor.dispose();
  }
  return found;
}
