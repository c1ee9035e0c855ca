// The image that is shown, and those that are kept: by the server's history, or else by the browser.

import { picture, read } from "./api.js";
import { $, conceal, fail, forget, make, notice, quiet, safely, say, url } from "./dom.js";
import * as form from "./form.js";
import * as browser from "./history.js";
import * as server from "./server.js";

const ENLARGED = 512; // pixels to which smaller images are enlarged on the screen, at most 4 times
const WORDS = {
  prompt: "Prompt", negative_prompt: "Negative prompt", size: "Size", steps: "Steps", guidance: "Guidance",
  seed: "Seed", scheduler: "Scheduler", preset: "Preset", strength: "Strength", adapters: "LoRA strengths", control_scale: "Control strengths", style_strength: "Style strength", model: "Model",
  engines: "Engines", seconds: "Time", standing: "Proof",
};
const UNSAID = new Set(["width", "height", "count"]);

let store = browser;
let entries = [];
let more = false; // whether the store has older ones
let loose = 0; // the last id of an entry that is kept nowhere
let looking = false; // at another image while a job goes on: no previews

/** The entry that is shown, or null. */
export let current = null;
let wanted = null; // the entry that was chosen last, whose file may be on its way

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
export async function show(entry) {
  wanted = entry;
  await store.complete(entry);
  if (wanted === entry) present(entry);
}

function present(entry) {
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
  const said = Object.entries(every).filter(([name, value]) => value !== "" && !form.plain(name, value) && !UNSAID.has(name));
  return said.map(([name, value]) => {
    const words = typeof value === "object" ? JSON.stringify(value) : String(value);
    const pair = make("div", { className: words.length > 24 ? "long" : "" });
    pair.append(make("dt", { textContent: WORDS[name] ?? name }), make("dd", { textContent: words }));
    return pair;
  });
}

/** The entry again, after previews. */
export function restore() {
  if (current) present(current);
  else blank();
}

/** Let previews replace the image, until another one is clicked. */
export function allowPreviews() {
  looking = false;
  conceal($("about"));
}

/** Show a preview, a PNG in base64 at 1/8 of the size. */
export function preview(text) {
  if (!looking) display(`data:image/png;base64,${text}`, "Preview of the image", 8);
}

/** The seed of the last request, whose images have it and those after it. */
export async function lastSeed() {
  await store.complete(entries[0]);
  const { request, drawing } = entries[0].about;
  return request.seed === null ? "" : String(BigInt(request.seed) - BigInt(drawing?.index ?? 0));
}

/** Add an image, with what its file says; `id` is the server's, if it keeps it. Returns its entry. */
export async function keep(png, sent, id) {
  const entry = { time: Date.now(), png, about: await read(png), ...sent };
  if (store === browser) {
    try {
      const kept = await browser.add(entry);
      entries = [kept, ...entries].slice(0, browser.LIMIT);
      return kept;
    } catch (error) {
      fail(new Error(`The browser could not keep the image (${error?.name ?? "no reason"}). Download it before you reload the page.`));
    }
  }
  const kept = { ...entry, small: png, id: id ?? (loose -= 1) };
  if (store === server && id === null && !form.forgets()) {
    fail(new Error("The server could not keep the image. Download it before you reload the page."));
  }
  entries = [kept, ...entries.filter((one) => one.id !== kept.id)];
  return kept;
}

function itemOf(entry) {
  const item = make("li");
  const button = make("button", { type: "button", title: title(entry) });
  item.dataset.id = entry.id;
  const image = make("img", { alt: title(entry), decoding: "async" });
  const appear = (small) => { image.src = url(`small ${entry.id}`, small); };
  if (entry.small) appear(entry.small);
  else picture(entry.thumbnail).then(appear, () => {}); // its title stands for one that is gone
  button.append(image);
  button.addEventListener("click", safely(async () => {
    looking = true;
    quiet();
    await show(entry);
    $("stage").scrollIntoView({ block: "nearest" });
  }));
  item.append(button);
  return item;
}

/** Show the small images. */
export function renderGallery() {
  const shown = new Map([...$("gallery").children].map((item) => [Number(item.dataset.id), item]));
  $("gallery").replaceChildren(...entries.map((entry) => shown.get(entry.id) ?? itemOf(entry)));
  for (const id of shown.keys()) if (!entries.some((entry) => entry.id === id)) forget(`small ${id}`);
  const count = entries.length;
  $("kept").textContent = said(count);
  if (count) $("delete-all").hidden = false;
  else conceal($("delete-all"));
  $("last").disabled = !count;
  $("more").hidden = !more;
}

function said(count) {
  if (store === server) return "Kept by this server, and seen by everyone who uses it.";
  if (!count) return "Images are kept in this browser only.";
  return `${count} image${count > 1 ? "s" : ""}, kept in this browser only, up to ${browser.LIMIT}.`;
}

/** Show older images. */
export async function showMore() {
  const place = entries.length;
  const older = await store.load(entries.filter(({ id }) => id > 0).at(-1)?.id ?? null);
  const known = new Set(entries.map(({ id }) => id));
  entries = [...entries, ...older.entries.filter(({ id }) => !known.has(id))];
  more = older.more;
  renderGallery();
  $("gallery").children[place]?.firstChild.focus();
}

function blank() {
  current = wanted = null;
  forget("shown");
  conceal($("about"));
  $("shown").hidden = true;
  $("shown").removeAttribute("src");
  $("empty").hidden = false;
  $("stage").classList.add("blank");
}

/** Delete the image that is shown. */
export async function removeCurrent() {
  const place = entries.indexOf(current);
  quiet();
  if (current.id > 0) await store.remove(current.id);
  entries.splice(place, 1);
  renderGallery();
  if (entries.length) await show(entries[Math.min(place, entries.length - 1)]);
  else blank();
  say("The image was deleted.");
}

/** Delete all images. */
export async function removeAll() {
  quiet();
  await store.clear();
  entries = [];
  more = false;
  renderGallery();
  blank();
}

/** Show what was kept before, by the server if it has a history. */
export async function open(served) {
  store = served ? server : browser;
  try {
    ({ entries, more } = await store.load());
  } catch (error) {
    fail(served ? error : new Error("This browser keeps no images for this page: they are lost at a reload. Download what you want to keep."));
  }
  $("sure-title").textContent = served ? "Delete all images on this server?" : "Delete all images in this browser?";
  $("sure-what").textContent = served ? "Everyone who uses this server loses them. They can't be restored." : "They can't be restored.";
  renderGallery();
  if (entries.length) await show(entries[0]);
}
