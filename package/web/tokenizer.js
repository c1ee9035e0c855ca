// From a prompt to rows of token ids: CLIP's byte-pair encoding, and chunks of long prompts.

const MOST_CHUNKS = 20;
const BYTE_WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+/gu;
const SPACES = /\p{White_Space}+/gu;

/** The letter that stands for each byte: printable ones for themselves. */
function byteLetters() {
  let others = 256;
  const prints = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(prints(byte) ? byte : others++));
}

const LETTERS = byteLetters();
const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

/** A function that cuts a text at tokens that are read whole, the longest first: into texts, and numbers for tokens. */
function cutter(tokens) {
  if (!tokens.length) return (text) => [text];
  const ids = new Map(tokens.map(({ content, id }) => [content, id]));
  const longest = [...ids.keys()].sort((one, other) => other.length - one.length);
  const pattern = new RegExp(`(${longest.map(escaped).join("|")})`, "u");
  return (text) => text.split(pattern).map((piece, index) => (index % 2 ? ids.get(piece) : piece)).filter((piece) => piece !== "");
}

/** A function from a text to ids, without start and end; `data` is the package's `tokenizer.json`. */
export function encoder(data) {
  const vocabulary = new Map(Object.entries(data.vocabulary));
  const ranks = new Map(data.merges.map((pair, rank) => [pair, rank]));
  const words = new RegExp(data.words, "gu");
  const cut = [false, true].map((late) => cutter(data.added.filter((one) => one.normalized === late)));
  const known = new Map();

  function merged(word) {
    if (known.has(word)) return known.get(word);
    const pieces = [...new TextEncoder().encode(word)].map((byte) => LETTERS[byte]);
    pieces.push(`${pieces.pop()}</w>`);
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let index = 0; index + 1 < pieces.length; index++) {
        const rank = ranks.get(`${pieces[index]} ${pieces[index + 1]}`);
        if (rank < best) [best, at] = [rank, index];
      }
      if (at < 0) break;
      pieces.splice(at, 2, pieces[at] + pieces[at + 1]);
    }
    const ids = pieces.map((piece) => vocabulary.get(piece) ?? data.unknown);
    known.set(word, ids);
    return ids;
  }

  const each = (pieces, read) => pieces.flatMap((piece) => (typeof piece === "string" ? read(piece) : [piece]));
  const split = (text) => (text.match(words) ?? []).flatMap((word) => (data.splits_again ? word.match(BYTE_WORDS) ?? [] : [word]));
  // Lower case by characters: the end of a word in Greek is no exception.
  const normalized = (text) => [...text.normalize("NFC").replace(SPACES, " ")].map((one) => one.toLowerCase()).join("");
  return (text) => each(cut[0](text), (outer) => each(cut[1](normalized(outer)), (inner) => split(inner).flatMap(merged)));
}

/**
 * The ids of prompts that are encoded together, all padded to the same number of chunks: `ids`, a BigInt64Array of
 * [prompts * chunks, length], and `chunks`.
 */
export function rows(data, encode, prompts) {
  const room = data.length - 2;
  const found = prompts.map((prompt) => {
    if (/\p{Surrogate}/u.test(prompt)) throw new Error("The prompt is not valid Unicode text. Remove the damaged character.");
    const ids = encode(prompt);
    if (ids.length > MOST_CHUNKS * room) throw new Error(`The prompt has ${ids.length} tokens, but the limit is ${MOST_CHUNKS * room}. Shorten it.`);
    if (ids.some((id) => id >= data.size)) throw new Error("The prompt has a token for which the text encoder has no embedding. Reword it.");
    return ids;
  });
  const chunks = Math.max(1, ...found.map((ids) => Math.ceil(ids.length / room)));
  const made = new BigInt64Array(prompts.length * chunks * data.length).fill(BigInt(data.pad));
  found.forEach((ids, prompt) => {
    for (let chunk = 0; chunk < chunks; chunk++) {
      const own = [data.start, ...ids.slice(chunk * room, (chunk + 1) * room), data.end];
      made.set(own.map(BigInt), (prompt * chunks + chunk) * data.length);
    }
  });
  return { ids: made, chunks };
}
