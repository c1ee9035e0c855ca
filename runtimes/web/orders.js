// The browser's end of `chromium.py`: fetches orders from the server that opened this page, and posts answers.
// A message is the length of its head (4 bytes, little-endian), the head in JSON, and the bytes of its arrays.

const base = new URL("./", self.location).href;
const TYPES = { float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array };

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const arrays = {};
  for (const { name, dtype, shape } of head.arrays) {
    const end = at + TYPES[dtype].BYTES_PER_ELEMENT * shape.reduce((product, side) => product * side, 1);
    arrays[name] = [new TYPES[dtype](buffer.slice(at, end)), shape];
    at = end;
  }
  return { ...head, arrays };
}

function pack({ arrays = {}, ...answer }) {
  const entries = Object.entries(arrays);
  const listed = entries.map(([name, { data, dims }]) => ({
    name, shape: dims, dtype: Object.keys(TYPES).find((dtype) => data.constructor === TYPES[dtype]),
  }));
  const head = new TextEncoder().encode(JSON.stringify({ ...answer, arrays: listed }));
  return new Blob([Uint32Array.of(head.length), head, ...entries.map(([, { data }]) => data)]);
}

/** Answer orders with `handlers`, by verb, until the server is gone. */
export async function answerOrders(handlers) {
  for (;;) {
    const response = await fetch(`${base}order`);
    if (response.status === 204) continue; // none for a while
    const { verb, what, arrays } = unpack(await response.arrayBuffer());
    const answer = await Promise.resolve().then(() => handlers[verb](what, arrays)).catch((error) => ({ error: error?.message ?? String(error) }));
    await fetch(`${base}answer`, { method: "POST", body: pack(answer ?? {}) });
  }
}

/** Tell the server that this page lives; close the window once the server is gone, which ends the browser. */
export function stayWhileServed() {
  setInterval(() => fetch(`${base}alive`).catch(() => window.close()), 1000);
}
