// The image that is shown, and those that the browser keeps.

import { read } from "./api.js";
import { $, fail, forget, make, notice, quiet, say, url } from "./dom.js";
import { PLAIN } from "./form.js";
import * as history from "./history.js";

const ENLARGED = 512; // pixels to which smaller images are enlarged on the screen, at most 4 times
const WORDS = {
  prompt: "Prompt", negative_prompt: "Negative prompt", size: "Size", steps: "Steps", guidance: "Guidance",
  seed: "Seed", scheduler: "Scheduler", strength: "Strength", adapters: "LoRA strengths", model: "Model",
  engines: "Engines", seconds: "Time", standing: "Proof",
};
const UNSAID = new Set(["width", "height", "count"]);

let entries = [];
let looking = false; // at another image while a job goes on: no previews

/** The entry that is shown, or null. */
export let current = null;

/** `scale` is how many pixels of the image one pixel of the file stands for. */
function display(from, alt, scale = 1) {
  const image = $("shown");
  image.onload = () => {
    const width = image.naturalWidth * scale;
    image.style.width = `${Math.max(width, Math.min(ENLARGED, 4 * width))}px`;
  };
  image.src = from;
  image.alt = alt;
  image.hidden = false;
  $("empty").hidden = true;
  $("stage").classList.remove("blank");
}

const title = ({ about: { request } }) => `${request.prompt || "Image without a prompt"}, seed ${request.seed}`;

/** Show an entry and its parameters. */
export function show(entry) {
  current = entry;
  const { request, drawing } = entry.about;
  const from = url("shown", entry.png);
  display(from, title(entry));
  $("download").href = from;
  $("download").download = `latentc-${request.seed ?? "image"}.png`;
  $("parameters").replaceChildren(...terms(request, drawing, entry.about.rest));
  $("about").hidden = false;
  notice([...(drawing?.notices ?? []), ...entry.about.notices]);
  for (const item of $("gallery").children) {
    item.firstChild.setAttribute("aria-current", Number(item.dataset.id) === entry.id);
  }
}

function terms(request, drawing, rest) {
  const size = request.width ? `${request.width} × ${request.height}` : null;
  const { prompt, negative_prompt, steps, guidance, seed, scheduler, ...others } = request;
  if (others.adapters) others.adapters = Object.entries(others.adapters).map((pair) => pair.join(" ")).join(", ");
  const about = drawing ? {
    model: drawing.model, engines: [...new Set(Object.values(drawing.engines))].join("; "),
    seconds: `${drawing.seconds.total.toFixed(1)} s${drawing.count > 1 ? ` for ${drawing.count} images` : ""}`,
    standing: drawing.standing,
  } : rest;
  const every = { prompt, negative_prompt, size, steps, guidance, seed, scheduler, ...others, ...about };
  const said = Object.entries(every).filter(([name, value]) => ![null, undefined, "", PLAIN[name]].includes(value) && !UNSAID.has(name));
  return said.map(([name, value]) => {
    const words = typeof value === "object" ? JSON.stringify(value) : String(value);
    const pair = make("div", { className: words.length > 24 ? "long" : "" });
    pair.append(make("dt", { textContent: WORDS[name] ?? name }), make("dd", { textContent: words }));
    return pair;
  });
}

/** The entry again, after previews. */
export function restore() {
  if (current) show(current);
  else blank();
}

/** Let previews replace the image, until another one is clicked. */
export function allowPreviews() {
  looking = false;
  $("about").hidden = true;
}

/** Show a preview, a PNG in base64 at 1/8 of the size. */
export function preview(text) {
  if (!looking) display(`data:image/png;base64,${text}`, "Preview of the image", 8);
}

/** The seed of the last request, whose images have it and those after it. */
export function lastSeed() {
  const { request, drawing } = entries[0].about;
  return request.seed === null ? "" : String(BigInt(request.seed) - BigInt(drawing?.index ?? 0));
}

/** Keep an image in this browser, with what its file says; returns its entry. */
export async function keep(png, sent) {
  const entry = { time: Date.now(), png, about: await read(png), image: sent.image ?? null, mask: sent.mask ?? null };
  try {
    const kept = await history.add(entry);
    entries = [kept, ...entries].slice(0, history.LIMIT);
    return kept;
  } catch (error) {
    fail(new Error(`The browser could not keep the image (${error?.name ?? "no reason"}). Download it before you reload the page.`));
    const kept = { ...entry, small: png, id: -Date.now() };
    entries = [kept, ...entries];
    return kept;
  }
}

function itemOf(entry) {
  const item = make("li");
  const button = make("button", { type: "button", title: title(entry) });
  item.dataset.id = entry.id;
  button.append(make("img", { src: url(`small ${entry.id}`, entry.small), alt: title(entry), decoding: "async" }));
  button.addEventListener("click", () => {
    looking = true;
    quiet();
    show(entry);
    $("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
  item.append(button);
  return item;
}

/** Show the small images. */
export function renderGallery() {
  const shown = new Map([...$("gallery").children].map((item) => [Number(item.dataset.id), item]));
  $("gallery").replaceChildren(...entries.map((entry) => shown.get(entry.id) ?? itemOf(entry)));
  for (const id of shown.keys()) if (!entries.some((entry) => entry.id === id)) forget(`small ${id}`);
  const count = entries.length;
  $("kept").textContent = count
    ? `${count} image${count > 1 ? "s" : ""}, kept in this browser only, up to ${history.LIMIT}.`
    : "Images are kept in this browser only.";
  $("delete-all").hidden = $("last").disabled = !count;
}

function blank() {
  current = null;
  forget("shown");
  $("shown").hidden = $("about").hidden = true;
  $("shown").removeAttribute("src");
  $("empty").hidden = false;
  $("stage").classList.add("blank");
}

/** Delete the image that is shown. */
export async function removeCurrent() {
  const place = entries.indexOf(current);
  quiet();
  await history.remove(current.id);
  entries.splice(place, 1);
  renderGallery();
  if (entries.length) show(entries[Math.min(place, entries.length - 1)]);
  else blank();
  say("The image was deleted.");
}

/** Delete all images. */
export async function removeAll() {
  quiet();
  await history.clear();
  entries = [];
  renderGallery();
  blank();
}

/** Show what was kept before. */
export async function open() {
  try {
    entries = await history.all();
  } catch {
    fail(new Error("This browser keeps no images for this page: they are lost at a reload. Download what you want to keep."));
  }
  renderGallery();
  if (entries.length) show(entries[0]);
}
