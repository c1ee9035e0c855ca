// One image: from a request to latents and pixels. `run(part, feeds)` computes a part.

import { ADDED, INITIAL, normals } from "./noise.js";
import { estimate, mixed, schedule } from "./schedulers.js";
import { rows } from "./tokenizer.js";

const f = Math.fround;
const MOST_SIDE = 4096;

/** Raised where `onStep` returns false. */
export class Stopped extends Error {}

/** Raise an error in words for a request that the model can't fulfil. */
export function check(model, { width, height, guidance, scheduler, seed }) {
  for (const side of [width, height]) {
    if (!(Number.isInteger(side / model.multiple) && side >= 64 && side <= MOST_SIDE)) {
      throw new Error(`${width} × ${height} is not a valid size. Use multiples of ${model.multiple} pixels, from 64 to ${MOST_SIDE}.`);
    }
  }
  if (!(guidance >= 0 && guidance <= 100)) throw new Error("The guidance has to be a number from 0 to 100.");
  if (!(seed >= 0n && seed < 1n << 63n)) throw new Error("The seed has to be a whole number from 0 to 2⁶³ - 1.");
  if (!model.schedulers[scheduler]) throw new Error(`This package has no scheduler ${scheduler}.`);
}

/** A scheduler's settings with its tables. */
export function settingsOf(model, name) {
  const own = { ...model.common, ...model.schedulers[name] };
  const table = (text) => new Float32Array(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer);
  const { kept, logs } = model.tables[own.table];
  return { ...own, kept: [...table(kept)], logs: [...table(logs)] };
}

function finite(array, what) {
  if (!array.every(Number.isFinite)) throw new Error(`${what} contains NaN or infinity, so there is no image. Try another browser or ?backend=wasm.`);
  return array;
}

/**
 * Generate an image. `request` has prompt, negative_prompt, width, height, steps, guidance, scheduler, and seed (a
 * BigInt); `onStep({ index, total, estimate })` is called after each denoiser call, and stops the walk by returning
 * false. Returns `latents`, the input of the decoder, and `pixels`, RGBA.
 */
export async function draw(model, encode, request, run, onStep) {
  check(model, request);
  const settings = settingsOf(model, request.scheduler);
  const walk = schedule(settings, request.steps);
  const [high, wide] = [request.height / model.downscale, request.width / model.downscale];
  const count = model.latent_channels * high * wide;
  const guided = request.guidance > 1;
  const prompts = guided ? [request.negative_prompt, request.prompt] : [request.prompt];
  const { ids, chunks } = rows(model.tokenizer, encode, prompts);
  const read = await run("text_encoder", { input_ids: [ids, [prompts.length * chunks, model.tokenizer.length]] });
  finite(read.data, "The prompt's embedding");
  const condition = [read.data, [prompts.length, chunks * read.dims[1], read.dims[2]]];
  const added = normals(request.seed, ADDED);
  let latents = mixed([walk.start, normals(request.seed, INITIAL)(count)]);
  for (let call = 0; call < walk.timesteps.length; call++) {
    const scaled = walk.scale(latents, call);
    const sample = new Float32Array(count * prompts.length);
    prompts.forEach((_, row) => sample.set(scaled, row * count));
    const answer = await run("denoiser", {
      [model.inputs.latents]: [sample, [prompts.length, model.latent_channels, high, wide]],
      timestep: [Float32Array.of(walk.timesteps[call]), [1]],
      [model.inputs.prompt]: condition,
    });
    const output = finite(guided ? guide(answer.data, request.guidance) : answer.data, "The denoiser's output");
    const before = latents;
    latents = finite(walk.step(output, call, before, () => added(count)), "The next latents");
    const found = () => estimate(settings, output, before, walk.level(call));
    if (await onStep({ index: call + 1, total: walk.timesteps.length, estimate: found }) === false) throw new Stopped("Stopped.");
  }
  const plain = latents.map((value) => f(value / f(model.scaling_factor)) + f(model.shift_factor));
  const decoded = await run("decoder", { latent_sample: [plain, [1, model.latent_channels, high, wide]] });
  return { latents: plain, pixels: pixelsOf(finite(decoded.data, "The image")) };
}

/** Classifier-free guidance, of the rows for negative and positive prompt. */
function guide(output, guidance) {
  const half = output.length / 2;
  const [negative, positive] = [output.subarray(0, half), output.subarray(half)];
  return mixed([1, negative], [guidance, mixed([1, positive], [-1, negative])]);
}

/** RGBA from colours in [-1, 1], [3, height, width]; halves are rounded to even. */
function pixelsOf(image) {
  const count = image.length / 3;
  const pixels = new Uint8ClampedArray(4 * count).fill(255); // it rounds halves to even
  for (let index = 0; index < image.length; index++) {
    const share = Math.min(Math.max(f(f(image[index] / 2) + 0.5), 0), 1);
    pixels[4 * (index % count) + Math.floor(index / count)] = f(share * 255);
  }
  return pixels;
}

/** A small preview of latents: RGBA with a pixel for each; null for a model without its map. */
export function preview(model, latents) {
  if (!model.preview) return null;
  const channels = model.latent_channels;
  const count = latents.length / channels;
  const colours = new Float32Array(3 * count);
  model.preview.forEach((factors, colour) => {
    for (let place = 0; place < count; place++) {
      let value = factors[channels];
      for (let channel = 0; channel < channels; channel++) value += factors[channel] * latents[channel * count + place];
      colours[colour * count + place] = value;
    }
  });
  return pixelsOf(colours);
}

/** Peak signal-to-noise ratio in dB of pixels, RGBA, against others, RGB. */
export function psnr(pixels, others) {
  let sum = 0;
  for (let index = 0; index < others.length; index++) sum += (pixels[4 * Math.floor(index / 3) + (index % 3)] - others[index]) ** 2;
  return 10 * Math.log10(255 ** 2 / (sum / others.length));
}
