// Runs the page's modules for test_web_modules.py: jobs as JSON on standard input, answers on standard output.

import { readFileSync } from "node:fs";
import { draw } from "./draw.js";
import { normals } from "./noise.js";
import { encoder, rows } from "./tokenizer.js";

const jobs = JSON.parse(readFileSync(0, "utf8"));
const f = Math.fround;
const packed = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const encode = encoder(jobs.tokenizer);

const ids = jobs.prompts.map((prompts) => {
  const found = rows(jobs.tokenizer, encode, prompts);
  return { ids: [...found.ids].map(Number), chunks: found.chunks };
});

const noise = jobs.noise.map(({ seed, stream, counts }) => {
  const next = normals(BigInt(seed), stream);
  return counts.map((count) => packed(next(count)));
});

/** Parts whose outputs Python computes in the same way: see `Parts` there. */
async function run(role, feeds) {
  if (role === "text_encoder") {
    const [values, dims] = feeds.input_ids;
    return { data: Float32Array.from(values, (id) => Number(id) / 50000), dims: [...dims, 1] };
  }
  if (role === "decoder") {
    const [values, [, , height, width]] = feeds.latent_sample;
    return { data: values.slice(0, 3 * height * width).map((value) => value / 8), dims: [1, 3, height, width] };
  }
  const [values, dims] = feeds.sample;
  const [condition, [count, length]] = feeds.encoder_hidden_states;
  const size = values.length / count;
  const time = f(feeds.timestep[0][0] * f(1e-4));
  return {
    data: values.map((value, index) => {
      const row = Math.floor(index / size);
      const beside = values[row * size + ((index + 1) % size)];
      return f(f(f(f(0.3) * value) + f(f(0.1) * beside)) + time) + condition[row * length + 1];
    }),
    dims,
  };
}

const drawn = [];
for (const { model: key, request } of jobs.draw) {
  const model = { ...jobs.models[key], tokenizer: jobs.tokenizer };
  const steps = [];
  const onStep = async ({ estimate }) => { steps.push(packed(estimate())); };
  const made = await draw(model, encode, { ...request, seed: BigInt(request.seed) }, run, onStep);
  drawn.push({ latents: packed(made.latents), pixels: packed(made.pixels), steps });
}

process.stdout.write(JSON.stringify({ ids, noise, drawn }));
