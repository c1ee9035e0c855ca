// Elements, object URLs, and messages to the user.

export const $ = (id) => document.getElementById(id);
export const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

const urls = new Map(); // object URLs by what shows them

export function url(key, blob) {
  if (urls.has(key)) URL.revokeObjectURL(urls.get(key));
  urls.set(key, URL.createObjectURL(blob));
  return urls.get(key);
}

export function forget(key) {
  URL.revokeObjectURL(urls.get(key));
  urls.delete(key);
}

/** Decode an image, or say that it is none. */
export async function opened(blob) {
  const image = await createImageBitmap(blob).catch(() => null);
  if (!image) throw new Error("The file is not an image that this browser can open. Use a PNG, JPEG or WebP.");
  return image;
}

/** A button that chooses a file. */
export function picker(button, input, take) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", safely(async () => {
    const [file] = input.files;
    input.value = "";
    if (file) await take(file);
  }));
}

/** A slider in a label that shows its value: `[label, input]`. */
export function slider(text, properties) {
  const label = make("label");
  const input = make("input", { type: "range", step: 0.05, ...properties });
  const said = make("span", { ariaHidden: true }); // a label with an output would be that output's
  const show = () => { said.textContent = Number(input.value).toFixed(2); };
  input.addEventListener("input", show);
  show();
  label.append(`${text} `, said, input);
  return [label, input];
}

/** Set a slider to a value that may be between its steps, or outside of its range. */
export function setRange(input, value) {
  input.min = Math.min(input.min, value);
  input.max = Math.max(input.max, value);
  input.value = value;
  if (Number(input.value) !== value) {
    input.step = "any";
    input.value = value;
  }
  input.dispatchEvent(new Event("input"));
}

/** Tell the user of an error. */
export function fail(error) {
  $("error").textContent = error?.message ?? String(error);
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}

/** Hide an element; a focus in it goes to another. */
export function conceal(element, to = $("prompt")) {
  if (element.contains(document.activeElement)) to.focus();
  element.hidden = true;
}

/** Replace the notices. */
export function notice(sentences) {
  $("notices").replaceChildren(...sentences.map((text) => make("li", { textContent: text })));
}

/** For screen readers: changes of state, not every step. */
export function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Leave out errors and notices. */
export function quiet() {
  $("error").hidden = true;
  notice([]);
}

/** Run an action of a button; its error is shown in words. */
export const safely = (work) => async (...given) => {
  try {
    await work(...given);
  } catch (error) {
    fail(error);
  }
};
