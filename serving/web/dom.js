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

/** Tell the user of an error. */
export function fail(error) {
  $("error").textContent = error?.message ?? String(error);
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}

/** Replace the notices. */
export function notice(sentences) {
  $("notices").replaceChildren(...sentences.map((text) => make("li", { textContent: text })));
  $("notices").hidden = !sentences.length;
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
