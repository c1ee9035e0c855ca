// Noise from a seed, in the values of numpy: SeedSequence, PCG64, and the ziggurat of `standard_normal` in float32.

const f = Math.fround;
const LOW = (1n << 64n) - 1n;
const ALL = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** Streams of a seed: the initial latents, and the noise that a stochastic scheduler adds. */
export const INITIAL = 0;
export const ADDED = 1;

/** The 32-bit words of a BigInt, the lowest first. */
function words(value) {
  const found = [];
  do {
    found.push(Number(value & 0xffffffffn));
    value >>= 32n;
  } while (value);
  return found;
}

/** Four 64-bit words: `SeedSequence(seed, spawn_key=(key,)).generate_state(4, numpy.uint64)`. */
function seeded(seed, key) {
  const own = words(seed);
  while (own.length < 4) own.push(0);
  const entropy = [...own, key];
  let constant = 0x43b0d7e5;
  let factor = 0x931e8875;
  const hashed = (value) => {
    const before = value ^ constant;
    constant = Math.imul(constant, factor);
    const after = Math.imul(before, constant);
    return after ^ (after >>> 16);
  };
  const joined = (one, other) => {
    const both = Math.imul(0xca01f9dd, one) - Math.imul(0x4973f715, other) | 0;
    return both ^ (both >>> 16);
  };
  const pool = entropy.slice(0, 4).map((word) => hashed(word));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = joined(pool[to], hashed(pool[from]));
  }
  for (const word of entropy.slice(4)) for (let to = 0; to < 4; to++) pool[to] = joined(pool[to], hashed(word));
  constant = 0x8b51f9dd;
  factor = 0x58f38ded;
  const state = Array.from({ length: 8 }, (_, index) => BigInt(hashed(pool[index % 4]) >>> 0));
  return [0, 2, 4, 6].map((index) => state[index] | (state[index + 1] << 32n));
}

/** A function that returns the next 32 bits of a stream of PCG64. */
function bits32(seed, key) {
  const [high, low, above, below] = seeded(seed, key);
  const increment = (((above << 65n) | (below << 1n) | 1n)) & ALL;
  let state = (increment + ((high << 64n) | low)) & ALL;
  const advance = () => { state = (state * MULTIPLIER + increment) & ALL; };
  advance();
  let kept = null; // the upper half of the last 64 bits
  return () => {
    if (kept !== null) {
      const half = kept;
      kept = null;
      return half;
    }
    advance();
    const folded = (state >> 64n) ^ (state & LOW);
    const turn = state >> 122n;
    const drawn = ((folded >> turn) | (folded << (64n - turn))) & LOW;
    kept = Number(drawn >> 32n);
    return Number(drawn & 0xffffffffn);
  };
}

// The ziggurat's 256 layers of equal area: their widths per unit of 23 bits, the part that is inside of the next layer,
// and the density at their edge. Layer 0 has the tail. Source: Marsaglia and Tsang, doi:10.18637/jss.v005.i08.
const EDGE = 3.6541528853610088;
const AREA = 0.004928673233974652;
const UNITS = 2 ** 23;
const WIDTH = new Float32Array(256);
const INSIDE = new Uint32Array(256);
const DENSITY = new Float32Array(256);

function layers() {
  let outer = EDGE;
  let density = Math.exp(-0.5 * outer * outer);
  WIDTH[0] = AREA / density / UNITS;
  INSIDE[0] = Math.floor(outer * density / AREA * UNITS);
  DENSITY[0] = 1;
  for (let layer = 255; layer > 0; layer--) {
    WIDTH[layer] = outer / UNITS;
    DENSITY[layer] = density;
    density += AREA / outer;
    const inner = layer > 1 ? Math.sqrt(-2 * Math.log(density)) : 0;
    INSIDE[layer] = Math.floor(inner / outer * UNITS);
    outer = inner;
  }
}
layers();

function normal(next) {
  const share = () => (next() >>> 8) / 2 ** 24;
  for (;;) {
    const drawn = next();
    const layer = drawn & 0xff;
    const units = drawn >>> 9;
    const value = f(units * WIDTH[layer]) * (drawn & 0x100 ? -1 : 1);
    if (units < INSIDE[layer]) return value;
    while (layer === 0) {
      const beyond = f(f(1 / EDGE) * -f(Math.log1p(-share())));
      const height = -f(Math.log1p(-share()));
      if (f(height + height) > f(beyond * beyond)) return f(EDGE + beyond) * (units & 0x100 ? -1 : 1);
    }
    const height = f(f(f(DENSITY[layer - 1] - DENSITY[layer]) * share()) + DENSITY[layer]);
    if (height < Math.exp(-0.5 * value * value)) return value;
  }
}

/** A function that returns the next `count` standard normal values of a seed, a BigInt, as a Float32Array. */
export function normals(seed, stream) {
  const next = bits32(seed, stream);
  return (count) => Float32Array.from({ length: count }, () => normal(next));
}
