// Requests to the server that this page came from, with the token that it may ask for.

const KEY = "latentc.token";
let asking = null; // one dialog for all requests that are refused meanwhile
let askToken = async () => "";

/** An answer other than a result, or no answer: `message` is a sentence, `status` 0 without an answer. */
class ServerError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** `ask(again)` shows the user a dialog, and resolves to the token; empty if there is none. */
export function onToken(ask) {
  askToken = ask;
}

function credential(token) {
  if (!token.includes(":")) return `Bearer ${token}`;
  return `Basic ${btoa(String.fromCharCode(...new TextEncoder().encode(token)))}`;
}

async function renew(refused) {
  const known = sessionStorage.getItem(KEY) ?? "";
  if (known !== refused) return; // another request was faster
  asking ??= askToken(refused !== "").finally(() => { asking = null; });
  const token = await asking;
  if (!token) throw new ServerError("The server needs a token. Reload the page to enter it.", 401);
  sessionStorage.setItem(KEY, token);
}

/** Fetch a path; raises `ServerError` with the server's own words. */
async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY) ?? "";
    const headers = new Headers(options.headers);
    if (token) headers.set("authorization", credential(token));
    let response;
    try {
      response = await fetch(new URL(path.replace(/^\//, ""), document.baseURI), {
        ...options, headers, credentials: "omit", cache: "no-store",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server can't be reached. Check that it runs, and try again.");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await problem(response);
    await renew(token);
  }
}

async function problem(response) {
  let about = {};
  try {
    about = (await response.json()).error ?? {};
  } catch { /* no JSON: a proxy's answer */ }
  const wait = response.headers.get("retry-after");
  const words = about.message ?? `The server answered ${response.status}.`;
  const more = response.status === 429 && wait ? ` It may have room in about ${wait} s.` : "";
  return new ServerError(words + more, response.status, about.code ?? "");
}

/** The JSON of a path; `body` is sent if it is given. */
export async function json(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" },
  };
  return (await call(path, options)).json();
}

/** Delete what a path names. */
export const remove = (path) => call(path, { method: "DELETE" });

/** What a file says of how it was made: `{request, text, ...}`; seeds are texts, for those above 2**53. */
export const read = async (blob) => (await call("v1/read", {
  method: "POST", body: blob, headers: { "content-type": "application/octet-stream" },
})).json();

/** The file of a path. */
export const picture = async (path) => (await call(path)).blob();

/** The data of the server-sent events of a path; a stream that breaks off raises `ServerError` with status 0. */
export async function* events(path) {
  const response = await call(path, { headers: { accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch {
      throw new ServerError("The connection to the server was lost.");
    }
    if (part.done) return;
    text += part.value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

/** Base64 of a blob, as the server takes images. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
