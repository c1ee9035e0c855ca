"""From a prompt's text to the denoiser's condition, without truncation: long prompts take several chunks.

CLIP reads 77 tokens (a few models fewer or more): a start, at most 75 of the prompt, an end, and
padding. A prompt of up to 75 tokens gives exactly the ids of diffusers' pipeline. A longer one is
split into chunks of 75, each with its own start and end; each chunk is encoded separately, and the embeddings
are joined along the sequence. Prompt and negative prompt are padded to the same length with empty
chunks. A whole-prompt embedding (SDXL's `text_embeds`) is that of the first chunk.

T5 reads 256 tokens: at most 255 of the prompt, an end, and padding. It has as many rows as hold the chunks of
CLIP: one for up to three, two for up to six.

A textual inversion of several vectors has a token for each: `<toy>`, `<toy>_1`, `<toy>_2`. Its first token
in a prompt stands for all of them, as in diffusers' `maybe_convert_prompt`. They are never split between chunks.

In the syntax of AUTOMATIC1111's web UI (`emphasis.py`), words have weights, `BREAK` ends a chunk, and a chunk of CLIP
ends at a comma near its end. T5 reads such a prompt without weights, as in the web UI.

In the syntax of compel (`compel.py`), an embedding is a sum of those of several rows (`mixture.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..core.model import Model
from ..core.record import shown
from ..core.references import IDS, MASK, hide
from ..core.request import Downweight, PromptSyntax
from ..core.shapes import rows_of
from ..core.tensors import Array, check_finite
from ..core.wires import skipped
from .compel import parse_compel
from .emphasis import COMMA_TOKENS, WeightedText, emphasized, parse_weights
from .mixture import mixture
from .vocabulary import MAX_CHARACTERS, MAX_CHUNKS, Vocabulary, too_long, units_of

COMMA = ",</w>"
"""CLIP's token of a comma."""

Chunk = tuple[list[int], list[float]]
"""Token ids of a prompt that are encoded together, and their weights."""

Call = Callable[[str, Mapping[str, Array]], dict[str, Array]]
"""Runs a part, by name, on its inputs."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of the prompts, for each text encoder."""

    rows: tuple[NDArray[np.int64], ...]
    """One array per text encoder, [prompts, chunks, 77] (T5: [prompts, rows, 256]); the negative prompt, if any, comes
    first. Hidden ids are negative (`core.references.hide`)."""
    used: tuple[NDArray[np.int64], ...]
    """Number of ids in each row that aren't padding, [prompts, chunks]."""
    counts: tuple[int, ...]
    """Number of tokens of each prompt, without start, end and padding."""
    chunks: int
    """Number of chunks of the model's own length, the same for every prompt."""
    weights: tuple[NDArray[np.float32] | None, ...]
    """Weight of each id, of the shape of `rows`; None for a text encoder whose embeddings stay as they are."""
    mixed: tuple[NDArray[np.float32], ...] = ()
    """In compel's syntax, for each text encoder: the factors with which the embeddings of all rows are added to those
    of each chunk, [prompts, chunks, rows, 77]. `rows` then has more rows than chunks."""


def tokenize(
    vocabularies: tuple[Vocabulary, ...],
    prompts: tuple[str, ...],
    syntax: PromptSyntax = "plain",
    downweight: Downweight = "remove",
) -> Tokens:
    """The ids of the prompts of one request, all padded to the same number of chunks.

    The last prompt is the prompt itself; one before it is the negative prompt. `downweight` is for compel's syntax.
    Raises `RequestError` for a prompt of more than `MAX_CHUNKS` chunks, one that isn't Unicode text, or one that is not
    valid in the syntax.
    """
    if syntax == "compel":
        return _mixed(vocabularies, prompts, downweight)
    pieces = [pieces_of(prompt, syntax, which) for which, prompt in _named(prompts)]
    comma = COMMA_TOKENS if syntax == "a1111" else 0
    found = [[_chunks(vocabulary, each, comma) for each in pieces] for vocabulary in vocabularies]
    base, chunks = min(vocabulary.length for vocabulary in vocabularies), 1
    for vocabulary, each in zip(vocabularies, found, strict=True):
        while rows_of(vocabulary.length, base, chunks) < max(map(len, each)):
            chunks += 1
    if chunks > MAX_CHUNKS:
        raise _too_many(chunks)
    framed = [
        [_framed(vocabulary, one, rows_of(vocabulary.length, base, chunks)) for one in each]
        for vocabulary, each in zip(vocabularies, found, strict=True)
    ]
    weights = [np.stack([weights for _, _, weights in each]) for each in framed]
    counts = [[sum(len(ids) for ids, _ in one) for one in each] for each in found]
    return Tokens(
        rows=tuple(np.stack([rows for rows, _, _ in each]) for each in framed),
        used=tuple(np.stack([used for _, used, _ in each]) for each in framed),
        counts=tuple(map(max, zip(*counts, strict=True))),
        chunks=chunks,
        weights=tuple(one if (one != 1).any() else None for one in weights),
    )


def _mixed(vocabularies: tuple[Vocabulary, ...], prompts: tuple[str, ...], downweight: Downweight) -> Tokens:
    """The ids of prompts in compel's syntax."""
    for prompt in prompts:
        check_text(prompt)
    parts = [parse_compel(prompt, which) for which, prompt in _named(prompts)]
    found = [
        [mixture(vocabulary, prompt, each, downweight) for prompt, each in zip(prompts, parts, strict=True)]
        for vocabulary in vocabularies
    ]
    chunks = max(len(one.chunks) for each in found for one in each)
    if chunks > MAX_CHUNKS:
        raise _too_many(chunks)
    rows, mixed = list[NDArray[np.int64]](), list[NDArray[np.float32]]()
    for vocabulary, each in zip(vocabularies, found, strict=True):
        for one in each:
            one.row([])
        most = max(len(one.rows) for one in each)
        framed = [_framed(vocabulary, [([*ids], [1.0] * len(ids)) for ids, _ in one.rows], most)[0] for one in each]
        hidden = [one.hidden(most, vocabulary.length) for one in each]
        rows.append(hide(np.stack(framed), np.stack(hidden)))
        mixed.append(np.stack([one.factors(chunks, most, vocabulary.length) for one in each]))
    return Tokens(
        rows=tuple(rows),
        used=tuple(np.full(each.shape[:2], each.shape[2]) for each in rows),  # compel hides no padding
        counts=tuple(max(one.count for one in each) for each in zip(*found, strict=True)),
        chunks=chunks,
        weights=(None,) * len(rows),
        mixed=tuple(mixed),
    )


def _too_many(chunks: int) -> RequestError:
    return RequestError(f"The prompt takes {chunks} chunks, but the limit is {MAX_CHUNKS}. Shorten it.")


def pieces_of(prompt: str, syntax: PromptSyntax, which: str) -> tuple[WeightedText, ...]:
    """The pieces of a prompt, by its syntax; `which` is `prompt` or `negative prompt`.

    Raises `RequestError` for a prompt that is too long, isn't Unicode text, or is not valid in the syntax.
    """
    check_text(prompt)
    if syntax == "compel":
        return tuple(piece for part in parse_compel(prompt, which) for text in part.texts for piece in text)
    return parse_weights(prompt, which) if syntax == "a1111" else (WeightedText(prompt),)


def check_text(prompt: str) -> None:
    """Raise `RequestError` for a prompt that is too long, or isn't Unicode text."""
    if len(prompt) > MAX_CHARACTERS:
        raise RequestError(
            f"The prompt has {len(prompt):,} characters, but the limit is {MAX_CHARACTERS:,}. Shorten it."
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(
            f"The prompt is not valid Unicode text ({exc.reason} at {exc.start}). Remove that character."
        ) from exc


def _named(prompts: tuple[str, ...]) -> list[tuple[str, str]]:
    """The prompts, and what each is: the last is the prompt itself."""
    return [("prompt" if index == len(prompts) - 1 else "negative prompt", one) for index, one in enumerate(prompts)]


def encode(
    model: Model, tokens: Tokens, zero_negative: bool, call: Call, engines: Mapping[str, str], clip_skip: int = 0
) -> dict[str, dict[str, Array]]:
    """Run each text encoder once over all prompts and chunks, or in compel's syntax once for each row of the prompts;
    returns their outputs by part and name.

    Embeddings are [prompts, 77 * chunks, width], those of whole prompts [prompts, width]. `zero_negative` puts a row of
    zeros first (diffusers' `force_zeros_for_empty_prompt`). `clip_skip` is the number of last layers that are skipped
    for the last prompt, which is the positive one, in text encoders that support it. `engines` names the engine of each
    part, for errors.
    Raises `NotFiniteError` if an encoder outputs NaN or infinity.
    """
    encoded: dict[str, dict[str, Array]] = {}
    for encoder, ids, used in zip(model.text_encoders, tokens.rows, tokens.used, strict=True):
        prompts, chunks, length = ids.shape
        feeds = {IDS: ids.reshape(prompts * chunks, length)}
        if encoder.masked:
            places: NDArray[np.int64] = np.arange(length, dtype=np.int64)
            feeds[MASK] = np.less(places, used.reshape(-1, 1)).astype(np.int64)
        answer = _each_row(call, encoder.part, feeds, chunks) if tokens.mixed else call(encoder.part, feeds)
        encoded[encoder.part] = read = {name: answer[name] for name in model.read_of(encoder.part)}
        for name in read if clip_skip and encoder.clip_skip else ():
            if (earlier := skipped(name, clip_skip)) is not None:
                read[name] = np.concatenate([answer[name][:-chunks], answer[earlier][-chunks:]])
        for name, array in read.items():
            engine = engines.get(encoder.part, "its engine")
            check_finite(array, f"The prompt's {name}", encoder.part, engine)
    _weigh(model, tokens, encoded)
    for index, (encoder, ids) in enumerate(zip(model.text_encoders, tokens.rows, strict=True)):
        prompts, chunks, length = ids.shape
        for name, array in encoded[encoder.part].items():
            rows = array.reshape(prompts, chunks, *array.shape[1:])
            of_ids = array.ndim > 2  # one embedding per id, else one per chunk
            if of_ids and tokens.mixed:
                rows = np.einsum("pcrt,prtw->pctw", tokens.mixed[index], rows)
            whole = rows.reshape(prompts, -1, array.shape[-1]) if of_ids else rows[:, 0]
            encoded[encoder.part][name] = np.concatenate([np.zeros_like(whole), whole]) if zero_negative else whole
    return encoded


def _each_row(call: Call, part: str, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Run a text encoder once for each row of the prompts, as engines of fixed sizes take no more at once."""
    answers = [
        call(part, {name: np.ascontiguousarray(array[row::rows]) for name, array in feeds.items()})
        for row in range(rows)
    ]
    return {
        name: np.stack([answer[name] for answer in answers], axis=1).reshape(-1, *array.shape[1:])
        for name, array in answers[0].items()
    }


def _weigh(model: Model, tokens: Tokens, encoded: dict[str, dict[str, Array]]) -> None:
    """Multiply the embeddings of ids by their weights.

    Those of one input that are padded together (Stable Diffusion 3) keep one mean, the others each its own (SDXL), as
    in the web UI.
    """
    each = zip(model.text_encoders, tokens.weights, strict=True)
    weighed = {one.part: weights for one, weights in each if weights is not None}
    done: set[str] = set()
    for name in dict.fromkeys(wire.input for wire in model.wires):
        wires = [wire for wire in model.wires if wire.input == name]
        of_ids = [wire for wire in wires if wire.owner in weighed and encoded[wire.owner][wire.name].ndim > 2]
        several = [wire for wire in of_ids if wire.source not in done]
        done |= {wire.source for wire in several}
        together = any(wire.pad is not None for wire in wires) and several
        for group in [several] if together else [[wire] for wire in several]:
            states = [encoded[wire.owner][wire.name] for wire in group]
            weights = [weighed[wire.owner].reshape(array.shape[:2]) for wire, array in zip(group, states, strict=True)]
            for wire, array in zip(group, emphasized(states, weights), strict=True):
                encoded[wire.owner][wire.name] = array


def _chunks(vocabulary: Vocabulary, pieces: tuple[WeightedText, ...], comma_tokens: int) -> list[Chunk]:
    """The chunks of a prompt, at least one. One of CLIP that is full ends at its last comma, if at most `comma_tokens`
    tokens follow. T5, whose rows have no start, has neither weights nor commas nor BREAK.

    Source: `tokenize_line` of AUTOMATIC1111's `modules/sd_hijack_clip.py`.
    """
    weighs = vocabulary.start is not None
    comma = vocabulary.tokenizer.token_to_id(COMMA) if weighs and comma_tokens else None
    limit = MAX_CHUNKS * vocabulary.room
    done: list[Chunk] = []
    ids, weights, last, total = list[int](), list[float](), -1, 0
    for piece in pieces:
        if piece.ends_chunk and weighs:
            done.append((ids, weights))
            ids, weights, last = [], [], -1
        for unit in units_of(vocabulary, piece.text):
            total += len(unit)
            if total > limit:
                raise too_long(total, vocabulary)
            if len(done) > MAX_CHUNKS:
                raise RequestError(
                    f"The prompt takes more than {MAX_CHUNKS} chunks, which is the limit. Write fewer BREAKs, or "
                    "shorten it."
                )
            if len(unit) > vocabulary.room:
                name = shown(vocabulary.tokenizer.id_to_token(unit[0]))
                raise RequestError(
                    f"{name} has {len(unit)} vectors, but a chunk of the prompt holds {vocabulary.room}. Leave it out."
                )
            if unit == [comma]:
                last = len(ids)
            elif len(ids) == vocabulary.room and last >= 0 and len(ids) - last <= comma_tokens:
                done.append((ids[: last + 1], weights[: last + 1]))
                ids, weights, last = ids[last + 1 :], weights[last + 1 :], -1
            if len(ids) + len(unit) > vocabulary.room:
                done.append((ids, weights))
                ids, weights, last = [], [], -1
            ids += unit
            weights += [piece.weight if weighs else 1.0] * len(unit)
    if ids or not done:
        done.append((ids, weights))
    return done


def _framed(
    vocabulary: Vocabulary, chunks: list[Chunk], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows of start, up to 75 ids, end and padding, [count, 77]; how many ids aren't padding, [count]; and the weight
    of each id, [count, 77].
    """
    rows = np.full((count, vocabulary.length), vocabulary.pad, np.int64)
    weights = np.ones((count, vocabulary.length), np.float32)
    begin = 0 if vocabulary.start is None else 1
    rows[:, :begin] = vocabulary.start or 0
    used = np.empty(count, np.int64)
    for index in range(count):
        part, weighed = chunks[index] if index < len(chunks) else ([], [])
        end = begin + len(part)
        rows[index, begin:end], weights[index, begin:end] = part, weighed
        rows[index, end] = vocabulary.end
        used[index] = end + 1
    return rows, used, weights
