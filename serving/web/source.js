// The image to start from, and its mask.

import { $, forget, opened, safely, url } from "./dom.js";
import * as form from "./form.js";
import { Mask } from "./mask.js";

const STRENGTH = { image: 0.8, mask: 1 }; // the server's defaults

let source = null; // a blob
let size = []; // its width and height in pixels
let painted = false;
const mask = new Mask($("mask"), masked);

/** Take an image, a blob; `strength` and `area`, a mask, are those of an earlier request. */
export async function start(blob, strength = null, area = null) {
  const { width, height } = await opened(blob);
  source = blob;
  size = [width, height];
  painted = false;
  $("original").src = url("source", blob);
  mask.reset(width, height);
  if (area) await mask.load(area);
  form.setStrengthOfImage(strength ?? STRENGTH.image);
  form.showOwnSize(true);
  $("editor").hidden = false;
  $("drop").hidden = true;
  $("source").open = true;
  $("editor").scrollIntoView({ block: "nearest" });
}

/** Leave it out. */
export function withdraw() {
  source = null;
  form.showOwnSize(false);
  forget("source");
  $("original").removeAttribute("src");
  $("editor").hidden = true;
  $("drop").hidden = false;
  $("choose").focus();
  form.changed();
}

/** What a cost depends on: the size of the image in pixels, and whether it has a mask. */
export function extent() {
  const able = form.model();
  return source && able.image ? { image: size, mask: able.mask && !mask.empty } : {};
}

/** The first stroke sets the strength of inpainting, unless it was changed. */
function masked() {
  const any = !mask.empty;
  const [before, after] = any ? [STRENGTH.image, STRENGTH.mask] : [STRENGTH.mask, STRENGTH.image];
  if (any !== painted && Number($("strength").value) === before) form.setStrengthOfImage(after);
  painted = any;
  form.changed();
}

/** What the selected model takes of it: `{image, mask}`, blobs or null. */
export async function taken() {
  const able = form.model();
  const image = able.image ? source : null;
  return { image, mask: image && able.mask ? await mask.blob() : null };
}

/** Connect its controls. */
export function connect() {
  const on = (id, work) => $(id).addEventListener("click", safely(work));
  on("undo", () => mask.undo());
  on("clear", () => mask.clear());
  on("remove", withdraw);
  on("erase", () => {
    mask.erasing = !mask.erasing;
    $("erase").setAttribute("aria-pressed", mask.erasing);
  });
  $("brush").addEventListener("input", () => { mask.brush = Number($("brush").value) / 100; });
  $("strength").addEventListener("input", () => { $("strength-value").textContent = Number($("strength").value).toFixed(2); });
}
