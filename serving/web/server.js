// The images that the server keeps, for everyone; the same functions as `history.js`.

import { json, picture, remove as send } from "./api.js";

const PAGE = 60; // entries of one request

/** The newest entries, or those older than an id: `{entries, more}`; `complete` adds the rest. */
export async function load(before = null) {
  const { data, has_more: more } = await json(`v1/history?limit=${PAGE}${before === null ? "" : `&before=${before}`}`);
  return { entries: data.map(({ id, request, thumbnail }) => ({ id, about: { request }, thumbnail })), more };
}

/** Add what only one image needs: its file, and what it says of its making. */
export async function complete(entry) {
  if (entry.png) return;
  const [png, { about }] = await Promise.all([picture(`v1/history/${entry.id}/image`), json(`v1/history/${entry.id}`)]);
  Object.assign(entry, { png, about });
}

export async function remove(id) {
  try {
    await send(`v1/history/${id}`);
  } catch (error) {
    if (error.status !== 404) throw error; // someone else has deleted it
  }
}

export const clear = () => send("v1/history");
