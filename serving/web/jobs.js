// One job at a time: sent, followed, stopped, and followed again after a reload.

import { base64, events, json, picture } from "./api.js";
import { $, conceal, fail, quiet, say } from "./dom.js";
import { gather } from "./form.js";
import { allowPreviews, keep, preview, renderGallery, restore, show } from "./gallery.js";
import * as guides from "./guides.js";
import { taken } from "./source.js";

const JOB = "latentc.job"; // of this tab
const RETRIES = 5;
const ENDED = ["completed", "failed", "cancelled"];

const before = sessionStorage.getItem(JOB); // a reload
let job = before; // the id of the job that is followed
let stopped = false;

/** Send the form's request, and follow its job. */
export async function generate() {
  if (job !== null) return;
  quiet();
  job = "";
  stopped = false;
  busy(true);
  try {
    const { images, fields } = guides.taken();
    const sent = { ...await taken(), ...images };
    const body = { ...gather(sent.image !== null), ...fields };
    for (const [name, one] of Object.entries(sent)) {
      if (one) body[name] = Array.isArray(one) ? (await Promise.all(one.map(base64))).map((text, at, [first]) => (at && text === first ? null : text)) : await base64(one);
    }
    progress({ status: "sent" });
    await follow((await json("v1/jobs", body)).id, sent);
  } catch (error) {
    fail(error);
    say("");
  } finally {
    job = null;
    busy(false);
  }
}

/** Follow a job to its end, and keep its images. */
async function follow(id, sent = {}) {
  job = id;
  sessionStorage.setItem(JOB, id);
  if (stopped) await stop();
  try {
    const { status } = await watch(id);
    if (status === "cancelled" && stopped) return say("Stopped.");
    const { images: all } = await json(`v1/jobs/${id}/result`); // of another end, its error
    const images = all.filter(({ url }) => url);
    const kept = [];
    for (const image of images) kept.push(await keep(await picture(image.url), sent, image.history));
    renderGallery();
    await show(kept[0]);
    say(images.length > 1 ? `${images.length} images are ready.` : "The image is ready.");
  } catch (error) {
    if (error.status === 0) id = null; // not reached: a reload tries it again
    throw error;
  } finally {
    if (id) sessionStorage.removeItem(JOB);
  }
}

/** The job's last state; connections that break off are made again. */
async function watch(id) {
  const began = { step: 0, time: 0 };
  for (let tries = 0; ;) {
    try {
      let last = null;
      for await (last of events(`v1/jobs/${id}/events?previews=true`)) {
        tries = 0;
        progress(last, began);
        if (ENDED.includes(last.status)) return last;
      }
      if (last === null && ++tries > RETRIES) throw new Error("The server says nothing about the job.");
    } catch (error) {
      if (error.status !== 0 || ++tries > RETRIES) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/** Cancel the job. */
export async function stop() {
  stopped = true;
  $("detail").textContent = "Stopping…";
  if (!job) return; // once the server has named it
  try {
    await json(`v1/jobs/${job}/cancel`, {});
  } catch (error) {
    if (error.status !== 409) throw error; // it has just ended
  }
}

/** Follow the job of this tab that was running before a reload. */
export async function resume() {
  if (!before) return;
  busy(true);
  try {
    await follow(before);
  } catch (error) {
    const gone = error.status === 404 || error.status === 410;
    fail(gone ? new Error("The job that was running before the reload is gone: the server has no result of it.") : error);
  } finally {
    job = null;
    busy(false);
  }
}

function busy(yes) {
  $("go").setAttribute("aria-disabled", yes);
  $("stage").setAttribute("aria-busy", yes);
  $("bar").removeAttribute("value");
  if (yes) {
    $("progress").hidden = false;
    allowPreviews();
    $("progress").scrollIntoView({ block: "nearest" });
    return;
  }
  conceal($("progress"), $("go"));
  document.title = "latentc";
  document.dispatchEvent(new Event("jobend"));
  restore();
}

function progress({ status, step, steps, queue_position: before, preview: image }, began) {
  if (status === "sent") {
    $("detail").textContent = "Sending…";
  } else if (status === "queued") {
    say($("detail").textContent = `Waiting: ${before ? `number ${before + 1}` : "next"} in the queue.`);
  } else if (status === "generating" && steps) {
    const now = performance.now();
    if (!began.step) Object.assign(began, { step, time: now });
    const left = step > began.step ? ((now - began.time) / (step - began.step)) * (steps - step) : null;
    $("bar").value = step / steps;
    $("detail").textContent = `Step ${step} of ${steps}${left === null ? "" : `, ${duration(left / 1000)} left`}`;
    document.title = `${Math.round((100 * step) / steps)} % – latentc`;
    say("Generating.");
    if (image) preview(image);
  } else if (status === "generating") {
    $("detail").textContent = "Starting…";
  }
}

function duration(seconds) {
  if (seconds < 1) return "less than 1 s";
  return seconds < 90 ? `about ${Math.round(seconds)} s` : `about ${Math.round(seconds / 60)} min`;
}
