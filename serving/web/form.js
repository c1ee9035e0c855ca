// The form: a request from its controls, and back. What it has beyond them is kept as further parameters.

import { $, make, setRange, slider } from "./dom.js";
import { offer } from "./guides.js";

const DRAFT = "latentc.draft";
const KEPT = ["model", "prompt", "negative_prompt", "width", "height", "steps", "guidance", "count", "scheduler", "seed"];
const NUMBERS = ["width", "height", "steps", "guidance", "count"];
const RATIOS = [[1, 1], [5, 4], [4, 5], [3, 2], [2, 3], [16, 9], [9, 16]];
const SENT = { image_sha256: "image", mask_sha256: "mask", control_sha256: "image for ControlNets", style_sha256: "style image" };
const OWN = new Set([...KEPT, "preset", "strength", "adapters", "control_scale", "style_strength", ...Object.keys(SENT)]);
const PLAIN = { guidance_rescale: 0, control_start: 0, control_end: 1, guess_mode: false };

let models = {};
let extras = {};

/** Whether a value, or each of a list, is as good as none. */
export const plain = (name, value) => [value].flat().every((one) => one == null || one === PLAIN[name]);

/** The model that is selected, as the server describes it. */
export function model() {
  const one = models[$("model").value];
  if (!one) throw new Error("The server has not described its models yet. Try again in a moment.");
  return one;
}

/** Fill the controls from the server's capabilities, and restore the draft. */
export function setup({ models: found, limits, history }) {
  models = found;
  $("storing").hidden = !history;
  $("model").replaceChildren(...Object.keys(models).map((name) => new Option(name, name)));
  $("steps").max = limits.steps;
  $("count").max = limits.count;
  let draft = {};
  try {
    draft = JSON.parse(localStorage.getItem(DRAFT) ?? "{}");
  } catch { /* of another version */ }
  if (draft.model in models) $("model").value = draft.model;
  changeModel();
  for (const id of KEPT) if (id !== "model" && typeof draft[id] === "string") select(id, draft[id]);
  fix(model());
  for (const [name, strength] of Object.entries(draft.adapters ?? {})) setStrength(name, strength);
  $("store").checked = draft.store ?? true;
  extras = draft.extras ?? {};
  showExtras();
  matchSize();
  matchPreset();
  $("model").addEventListener("change", () => { changeModel(); changed(); });
  $("size").addEventListener("change", takeSize);
  $("preset").addEventListener("change", takePreset);
  for (const id of ["steps", "scheduler"]) $(id).addEventListener("input", matchPreset);
  for (const id of ["width", "height"]) $(id).addEventListener("input", matchSize);
  $("swap").addEventListener("click", swap);
  $("dice").addEventListener("click", () => setSeed(""));
  $("ask").addEventListener("input", changed);
  $("ask").addEventListener("change", changed);
}

export function setPrompt(text) {
  $("prompt").value = text;
  changed();
}

/** Empty is a random one for each request. */
export function setSeed(seed) {
  $("seed").value = seed;
  changed();
}

/** Keep the draft, and let others know of a change. */
export function changed() {
  document.dispatchEvent(new Event("asked"));
  const draft = Object.fromEntries(KEPT.map((id) => [id, $(id).value]));
  localStorage.setItem(DRAFT, JSON.stringify({ ...draft, store: $("store").checked, extras, adapters: strengths() }));
}

function select(id, value) {
  const control = $(id);
  if (control.tagName === "SELECT" && value && ![...control.options].some((one) => one.value === value)) {
    control.add(new Option(value, value)); // the server says if it doesn't know it
  }
  control.value = value;
}

function changeModel() {
  const chosen = model();
  const scheduler = $("scheduler").value;
  const own = `The model's own${chosen.scheduler ? `: ${chosen.scheduler}` : ""}`;
  $("scheduler").replaceChildren(new Option(own, ""), ...chosen.scheduler_groups.map(group));
  if (chosen.schedulers.includes(scheduler)) $("scheduler").value = scheduler;
  const [width, height] = chosen.default_size.split("x").map(Number);
  $("width").step = $("height").step = chosen.multiple;
  const sizes = chosen.sizes?.map((size) => size.split("x").map(Number)) ?? RATIOS.map((ratio) => near(ratio, width, height));
  $("size").replaceChildren(
    new Option("", ""),
    ...sizes.map(([w, h]) => new Option(`${w} × ${h}${shape(w, h)}`, `${w}x${h}`)),
    new Option("Other", "other"),
  );
  $("adapters").hidden = !Object.keys(chosen.adapters).length;
  $("adapters").replaceChildren($("adapters").firstElementChild, ...Object.entries(chosen.adapters).map(adapter));
  offer(chosen);
  $("source").hidden = !chosen.image;
  $("masking").hidden = !chosen.mask;
  $("strengths").hidden = !chosen.mask;
  if (chosen.image && chosen.tasks[0] !== "text") $("source").open = true;
  $("profile").textContent = `${chosen.profile}: ${[...new Set(Object.values(chosen.engines))].join(", ")}`;
  showOwnSize();
  fix(chosen);
  const presets = Object.entries(chosen.presets).map(([name, { scheduler, steps }]) => (
    new Option(`${name}: ${steps} steps${scheduler ? ` of ${scheduler}` : ""}`, name)
  ));
  $("preset").replaceChildren(new Option("Custom", ""), ...presets);
  matchSize();
  matchPreset();
}

/** Set what the model's engines fix, and set back what another's did. */
function fix({ images, guided }) {
  for (const [id, value] of [["count", images], ["guidance", guided === false && 1]]) {
    if (value || $(id).disabled) $(id).value = value || $(id).defaultValue;
    $(id).disabled = !!value;
  }
}

function group({ label, names }) {
  const made = make("optgroup", { label });
  made.append(...names.map((name) => new Option(name, name)));
  return made;
}

let fromImage = false;

/** What an empty size stands for. */
export function showOwnSize(image = fromImage) {
  fromImage = image;
  const [width, height] = model().default_size.split("x");
  $("size").options[0].text = image ? "Near the image's" : `The model's own: ${width} × ${height}`;
  $("width").placeholder = image ? "" : width;
  $("height").placeholder = image ? "" : height;
}

/** A size of a ratio with about as many pixels as the model's own. */
function near([wide, high], width, height) {
  const step = Math.max(model().multiple, Math.min(width, height) >= 512 ? 64 : 8);
  const side = Math.sqrt((width * height * wide) / high);
  return [side, (width * height) / side].map((one) => Math.max(64, Math.round(one / step) * step));
}

function shape(width, height) {
  if (width === height) return ", square";
  return width > height ? ", landscape" : ", portrait";
}

function takeSize() {
  const { value } = $("size");
  if (value === "other") {
    $("width").focus();
    return;
  }
  [$("width").value, $("height").value] = value ? value.split("x") : ["", ""];
}

function matchSize() {
  const [width, height] = [$("width").value, $("height").value];
  const value = width || height ? `${width}x${height}` : "";
  const known = [...$("size").options].some((option) => option.value === value);
  $("size").value = known ? value : "other";
}

/** Choosing a preset sets scheduler and steps, and changing one of them leaves it. */
function takePreset() {
  const chosen = model().presets[$("preset").value];
  if (chosen) [$("scheduler").value, $("steps").value] = [chosen.scheduler ?? "", chosen.steps];
  matchPreset();
}

function matchPreset() {
  const own = model().scheduler ?? "";
  const [scheduler, steps] = [$("scheduler").value || own, Number($("steps").value)];
  const found = Object.entries(model().presets).find(([, one]) => (one.scheduler ?? own) === scheduler && one.steps === steps);
  $("preset").value = found?.[0] ?? "";
}

function swap() {
  const sides = ["height", "width"].map((id) => $(id).value || $(id).placeholder);
  [$("width").value, $("height").value] = sides;
  matchSize();
  changed();
}

function adapter([name, strength]) {
  const [label, input] = slider(name, { min: -1, max: 2, value: strength, disabled: !model().takes_strengths });
  input.dataset.adapter = name;
  return label;
}

const sliders = () => [...$("adapters").querySelectorAll("input")];
const strengths = () => Object.fromEntries(sliders().map((one) => [one.dataset.adapter, Number(one.value)]));

function setStrength(name, strength) {
  const input = sliders().find((one) => one.dataset.adapter === name);
  if (!input) return false;
  setRange(input, strength);
  return true;
}

function showExtras() {
  const items = Object.entries(extras).map(([name, value]) => {
    const item = make("li");
    const button = make("button", { type: "button", textContent: "×", ariaLabel: `Remove ${name}` });
    button.addEventListener("click", () => {
      delete extras[name];
      showExtras();
      $("seed").focus();
      changed();
    });
    item.append(`${name}: ${typeof value === "string" ? value : JSON.stringify(value)} `, button);
    return item;
  });
  $("extras").querySelector("ul").replaceChildren(...items);
  $("extras").hidden = !items.length;
  if (items.length) $("settings").open = true;
}

/** Whether images are not to enter the server's history. */
export const forgets = () => !$("storing").hidden && !$("store").checked;

/** The fields of a request; `image` is whether one is sent too. Raises an error in words for what isn't a number. */
export function gather(image) {
  const fields = { ...extras, model: $("model").value, prompt: $("prompt").value };
  if ($("negative_prompt").value) fields.negative_prompt = $("negative_prompt").value;
  for (const id of NUMBERS) {
    if ($(id).validity.badInput) throw new Error(`${$(id).labels[0].textContent.trim()}: it is not a number.`);
    if ($(id).value !== "") fields[id] = Number($(id).value);
  }
  if ($("scheduler").value) fields.scheduler = $("scheduler").value;
  if ($("preset").value) fields.preset = $("preset").value;
  if ($("seed").value.trim()) fields.seed = $("seed").value.trim();
  if (sliders().length && model().takes_strengths) fields.adapters = strengths();
  if (forgets()) fields.store = false;
  if (image && !$("strengths").hidden) fields.strength = Number($("strength").value);
  return fields;
}

/** Set the controls to a file's request; returns what could not be taken over beside `inputs`, in sentences. */
export function fill({ request, drawing, rest }, inputs) {
  const left = [];
  const served = Object.keys(models).find((name) => models[name].checkpoint === drawing?.model);
  if (served && model().checkpoint !== drawing.model) {
    $("model").value = served;
    changeModel();
  } else if (drawing && !served) {
    left.push(`The image was made by the model ${drawing.model}, which is not served here.`);
  }
  const unused = drawing ? [] : Object.entries(rest);
  if (unused.length) left.push(`Not taken over: ${unused.map(([name, value]) => `${name}: ${value}`).join(", ")}.`);
  for (const id of KEPT) {
    if (id !== "model" && id !== "count") select(id, String(request[id] ?? ""));
  }
  $("count").value = 1;
  if (request.strength != null) setStrengthOfImage(request.strength);
  for (const input of sliders()) setStrength(input.dataset.adapter, request.adapters?.[input.dataset.adapter] ?? 0);
  const missing = Object.keys(request.adapters ?? {}).filter((name) => request.adapters[name] && !setStrength(name, request.adapters[name]));
  if (missing.length) left.push(`The image was made with the LoRA ${missing.join(", ")}, which this model does not have here.`);
  const images = Object.keys(SENT).filter((name) => request[name] != null && !inputs[name.replace("_sha256", "")]).map((name) => SENT[name]);
  if (images.length) left.push(`The image was made from another ${images.join(", and a ")}, which the file does not contain: add it again.`);
  extras = Object.fromEntries(Object.entries(request).filter(
    ([name, value]) => !OWN.has(name) && !plain(name, value),
  ));
  showExtras();
  matchSize();
  matchPreset();
  changed();
  return left;
}

/** The strength of image to image. */
export function setStrengthOfImage(value) {
  setRange($("strength"), value);
  document.dispatchEvent(new Event("asked"));
}
