// The page: its buttons, files and dialogs.

import { json, onToken, read } from "./api.js";
import { $, fail, make, notice, picker, quiet, safely, say } from "./dom.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as guides from "./guides.js";
import { generate, resume, stop } from "./jobs.js";
import * as source from "./source.js";

/** Fill the form with an image's parameters, and the images that this browser has. */
async function use(about, inputs) {
  const left = form.fill(about, inputs);
  forgetOriginal();
  await guides.fill(about.request, inputs);
  if (inputs.image) {
    await source.start(inputs.image, about.request.strength, inputs.mask);
  } else if (about.request.strength == null) {
    source.withdraw();
  }
  notice([...left, ...about.notices]);
  $("prompt").focus();
}

async function copy() {
  const text = gallery.current.about.text;
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else { // not at a secure address
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("The browser does not let this page copy. Select the text, and copy it by hand.");
  }
  $("copy").textContent = "Copied";
  say("The parameters were copied.");
  setTimeout(() => { $("copy").textContent = "Copy parameters"; }, 1500);
}

async function readFile(file) {
  quiet();
  await use(await read(file), {});
  say(`The parameters of ${file.name} are in the form.`);
}

async function dropped(event) {
  document.body.classList.remove("dragging");
  const file = event.dataTransfer?.files[0];
  if (!file) return;
  event.preventDefault();
  quiet();
  const within = $("source").contains(event.target) && !$("source").hidden;
  const guide = guides.at(event.target);
  await (guide ? guide.take(file) : within ? source.start(file) : readFile(file));
}

function answer(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

async function askToken(again) {
  $("token-wrong").hidden = !again;
  $("token-value").value = "";
  return (await answer($("token"))) === "ok" ? $("token-value").value.trim() : "";
}

function connect() {
  const on = (id, work) => $(id).addEventListener("click", safely(work));
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      generate();
    }
  });
  on("stop", stop);
  on("use", () => use(gallery.current.about, gallery.current));
  on("copy", copy);
  on("start", () => source.start(gallery.current.png));
  on("delete", gallery.removeCurrent);
  on("delete-all", async () => { if (await answer($("sure")) === "yes") await gallery.removeAll(); });
  on("expand", expand);
  on("restore", restorePrompt);
  on("more", gallery.showMore);
  on("last", async () => form.setSeed(await gallery.lastSeed()));
  $("model").addEventListener("change", () => { $("start").hidden = !form.model().image; });
  picker($("choose"), $("file"), (file) => source.start(file));
  picker($("read"), $("record"), readFile);
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  document.addEventListener("drop", safely(dropped));
  const wide = matchMedia("(min-width: 900px)");
  const unfold = () => { $("settings").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
}

onToken(askToken);
connect();
source.connect();
function inCredits({ credits }) {
  const words = credits.toLocaleString("en", { maximumFractionDigits: 3 });
  return `${words} credit${words === "1" ? "" : "s"}`;
}

async function showCredits() {
  $("credits").textContent = `${inCredits(await json("v1/user/balance"))} left`;
  $("credits").hidden = false;
}

let priced = ""; // the request whose cost is shown

async function showCost() {
  const extent = source.extent();
  const { negative_prompt: _, seed, store, ...body } = { ...form.gather("image" in extent), ...extent, prompt: "" };
  const asked = JSON.stringify(body);
  if (asked === priced) return;
  priced = asked;
  const words = await json("v1/jobs/cost", body).then(inCredits, () => "");
  if (asked !== priced) return;
  $("cost").textContent = words && `Costs ${words}.`;
  if (!words) priced = "";
}

let original = null; // the prompt before it was expanded

async function expand() {
  if ($("expand").getAttribute("aria-disabled") === "true") return;
  quiet();
  $("expand").setAttribute("aria-disabled", true);
  $("expand").textContent = "Adding detail…";
  const asked = $("prompt").value;
  try {
    const { expanded } = await json("v1/prompts/expand", { prompt: asked });
    if ($("prompt").value !== asked) throw new Error("The prompt was changed meanwhile, so it is left as it is.");
    original ??= asked;
    form.setPrompt(expanded);
    $("restore").hidden = false;
    say("The prompt has more detail. Undo brings the first one back.");
  } finally {
    $("expand").setAttribute("aria-disabled", false);
    $("expand").textContent = "Add detail";
  }
}

function forgetOriginal() {
  original = null;
  $("restore").hidden = true;
}

function restorePrompt() {
  form.setPrompt(original);
  forgetOriginal();
  $("prompt").focus();
  say("The first prompt is back.");
}

let able = {};
try {
  able = await json("v1/capabilities");
  form.setup(able);
  $("start").hidden = !form.model().image;
  $("helping").hidden = !able.prompts;
  if (able.credits) {
    document.addEventListener("jobend", safely(showCredits));
    await showCredits();
    let due = 0;
    document.addEventListener("asked", () => {
      clearTimeout(due);
      due = setTimeout(() => showCost().catch(() => { $("cost").textContent = priced = ""; }), 200);
    });
    await showCost();
  }
} catch (error) {
  fail(error);
}
await gallery.open(able.history).catch(fail);
await resume();
document.documentElement.dataset.ready = "";
