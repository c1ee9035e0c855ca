// The unmodified npm clients of OpenAI and Stability against a server: node clients.cjs FOLDER URL IMAGE MASK
// FOLDER holds node_modules. Prints one JSON value.
const fs = require("fs");
const path = require("path");
const { createRequire } = require("module");

const [folder, url, image, mask] = process.argv.slice(2);
const from = createRequire(path.join(folder, "package.json"));
const { default: OpenAI } = from("openai");
const { default: StabilityAI } = from("stability-ai");
const axios = from("axios");

const more = { steps: 4, scheduler: "euler", guidance: 5.0, seed: 7 };
const size = "64x64";

async function openai() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const one = await client.images.generate({ prompt: "a red cube", size, n: 2, ...more });
  const linked = await client.images.generate({ prompt: "a red cube", size, response_format: "url", ...more });
  const fetched = Buffer.from(await (await fetch(linked.data[0].url)).arrayBuffer());
  const edit = await client.images.edit({
    image: fs.createReadStream(image), mask: fs.createReadStream(mask), prompt: "a red cube", size, ...more,
  });
  const events = [];
  const stream = await client.images.generate({ prompt: "a red cube", size, stream: true, partial_images: 2, ...more });
  for await (const event of stream) events.push({ type: event.type, b64_json: event.b64_json });
  const edits = [];
  const other = await client.images.edit({
    image: fs.createReadStream(image), prompt: "a red cube", size, stream: true, partial_images: 1, strength: 0.5, ...more,
  });
  for await (const event of other) edits.push({ type: event.type, b64_json: event.b64_json });
  const refused = await client.images.generate({ prompt: "x", size: "65x64" }).catch((error) => error);
  return {
    models, events, edits,
    images: one.data.map((each) => each.b64_json),
    url: fetched.toString("base64"),
    edit: edit.data[0].b64_json,
    refused: { kind: refused.constructor.name, status: refused.status, param: refused.param, code: refused.code },
  };
}

async function stability() {
  axios.interceptors.request.use((config) => {
    config.url = config.url.replace("https://api.stability.ai", url);  // the client has no option for it
    return config;
  });
  const client = new StabilityAI("none");
  const read = (found) => fs.readFileSync(found.filepath).toString("base64");
  const engines = (await client.v1.engines.list()).map((each) => each.id);
  const prompts = [{ text: "a red cube", weight: 1 }];
  const common = { seed: 7, steps: 4, cfg_scale: 5, sampler: "K_EULER" };
  const text = await client.v1.generation.textToImage(engines[0], prompts, { ...common, width: 64, height: 64 });
  const start = await client.v1.generation.imageToImage(engines[0], prompts, image, { ...common, mode: "IMAGE_STRENGTH", image_strength: 0.4 });
  const painted = await client.v1.generation.imageToImageMasking(engines[0], prompts, image, {
    ...common, mask_source: "MASK_IMAGE_BLACK", mask_image: image,
  });
  const sd3 = await client.v2beta.stableImage.generate.sd3("a red cube", { seed: 7 });
  const inpainted = await client.v2beta.stableImage.edit.inpaint(image, "a red cube", { seed: 7, mask: image });
  return {
    engines, text: text.map(read), start: start.map(read), painted: painted.map(read), sd3: read(sd3),
    inpainted: read(inpainted),
  };
}

(async () => {
  const found = { openai: await openai() };
  found.stability = await stability();
  fs.writeSync(1, JSON.stringify(found));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
