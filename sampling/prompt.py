"""From a prompt's text to the denoiser's condition, with no cut: long prompts take several chunks.

A text encoder reads 77 tokens: a start, at most 75 of the prompt, an end, and padding. A prompt of
up to 75 tokens gives exactly the ids that transformers' CLIPTokenizer gives. A longer one is split
into chunks of 75, each with its own start and end; each chunk is encoded apart, and the embeddings
are joined along the sequence. Prompt and negative prompt are brought to the same length with empty
chunks. A whole-prompt embedding (SDXL's `text_embeds`) is that of the first chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..core.bundle import Bundle, Model, TextEncoder
from ..core.errors import BundleError, RequestError
from ..core.reading import TABLE_BYTES, read_small
from ..core.record import shown
from ..core.tensors import Array
from ..core.vocabulary import check_tokenizer, mapped
from .finite import check_finite

LENGTH = 77
MAX_CHUNKS = 20
MAX_CHARACTERS = 100_000
MAX_LENGTH = 4096
MOST_TOKENS = 64
"""Of one character: Unicode makes at most 18 of it, of at most 3 bytes each."""

Call = Callable[[str, Mapping[str, Array]], dict[str, Array]]
"""Runs a part on these feeds."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the ids that frame its chunks. Nothing changes after loading, so threads may share it."""

    tokenizer: Tokenizer
    start: int
    end: int
    pad: int
    length: int

    @property
    def room(self) -> int:
        """Tokens of the prompt in one chunk."""
        return self.length - 2


@dataclass(frozen=True)
class Tokens:
    """Prompts as each text encoder reads them."""

    rows: tuple[NDArray[np.int64], ...]
    """One array per text encoder, [prompts, chunks, 77]; the negative prompt, if any, is the first."""
    counts: tuple[int, ...]
    """Tokens of each prompt, without frame and padding."""

    @property
    def chunks(self) -> int:
        """Chunks that every prompt was brought to."""
        return self.rows[0].shape[1]


def load_vocabularies(bundle: Bundle) -> tuple[Vocabulary, ...]:
    """The tokenizer of each text encoder, in order. Raises `BundleError` for one that is missing or damaged."""
    return tuple(_load(bundle, encoder) for encoder in bundle.manifest.model.text_encoders)


def tokenize(vocabularies: tuple[Vocabulary, ...], prompts: tuple[str, ...]) -> Tokens:
    """The ids of prompts that are drawn together, all brought to the same number of chunks.

    Raises `RequestError` for a prompt of more than `MAX_CHUNKS` chunks, or one that isn't Unicode text.
    """
    read = [[_ids(vocabulary, prompt) for prompt in prompts] for vocabulary in vocabularies]
    chunks = max(
        -(-len(ids) // vocabulary.room) or 1
        for vocabulary, rows in zip(vocabularies, read, strict=True)
        for ids in rows
    )
    return Tokens(
        rows=tuple(
            np.stack([_framed(vocabulary, ids, chunks) for ids in rows])
            for vocabulary, rows in zip(vocabularies, read, strict=True)
        ),
        counts=tuple(max(len(rows[prompt]) for rows in read) for prompt in range(len(prompts))),
    )


def encode(
    model: Model, tokens: Tokens, zero_negative: bool, call: Call, engines: Mapping[str, str]
) -> dict[str, dict[str, Array]]:
    """Run the text encoders, each once over all prompts and chunks; returns what each answers, by part and output.

    Embeddings are [prompts, 77 * chunks, width], pooled ones [prompts, width]: as `condition` reads
    them. `zero_negative` puts a row of zeros first (diffusers' `force_zeros_for_empty_prompt`). `engines`
    says what runs each part, for errors. Raises `NotFiniteError` if an encoder answers NaN or infinity.
    """
    encoded: dict[str, dict[str, Array]] = {}
    for encoder, rows in zip(model.text_encoders, tokens.rows, strict=True):
        prompts, chunks, length = rows.shape
        answer = call(encoder.part, {"input_ids": rows.reshape(prompts * chunks, length)})
        read = {encoder.embedding: answer[encoder.embedding].reshape(prompts, chunks * length, -1)}
        if encoder.pooled is not None:
            read[encoder.pooled] = answer[encoder.pooled].reshape(prompts, chunks, -1)[:, 0]
        for name, array in read.items():
            engine = engines.get(encoder.part, "its engine")
            check_finite(array, f"The prompt's {name}", encoder.part, engine)
        encoded[encoder.part] = {
            name: np.concatenate([np.zeros_like(array), array]) if zero_negative else array
            for name, array in read.items()
        }
    return encoded


def _load(bundle: Bundle, encoder: TextEncoder) -> Vocabulary:
    path = bundle.folder / encoder.tokenizer / "tokenizer.json"
    again = "Export the checkpoint again."
    try:
        said = check_tokenizer(read_small(path, TABLE_BYTES, BundleError, again))
    except ValueError as exc:
        raise BundleError(f"{path} can't be read as a tokenizer ({exc}). {again}") from exc
    padding: object = said.get("padding")
    # Whatever the file says of cutting and filling would change `encode`; both are done here, in numpy.
    said |= {"truncation": None, "padding": None}
    with mapped(BundleError, f"{path} can't be read as a tokenizer", again):
        tokenizer = Tokenizer.from_str(json.dumps(said))
        frame = tokenizer.encode("").ids
    if len(frame) != 2:
        raise BundleError(f"{path} frames a prompt with {len(frame)} tokens; 2 were expected: start and end. {again}")
    if not all(number < tokenizer.get_vocab_size() for number in frame):
        raise BundleError(f"{path} frames a prompt with ids {frame}, which its vocabulary doesn't have. {again}")
    name = _pad_token(bundle.json(f"{encoder.tokenizer}/tokenizer_config.json"))
    filled = cast("dict[str, object]", padding).get("pad_id") if isinstance(padding, dict) else None
    # The one file that transformers itself wrote; what stands beside it may say otherwise, as in SD 2's folders.
    pad = filled if type(filled) is int else tokenizer.token_to_id(name) if isinstance(name, str) else None
    if type(pad) is not int or not 0 <= pad < tokenizer.get_vocab_size():
        raise BundleError(f"{path} has no id for the padding token {shown(name)} of tokenizer_config.json. {again}")
    return Vocabulary(tokenizer, frame[0], frame[1], pad, _length(bundle, encoder))


def _pad_token(config: Mapping[str, object]) -> object:
    token = config.get("pad_token")
    return cast("dict[str, object]", token).get("content") if isinstance(token, dict) else token


def _length(bundle: Bundle, encoder: TextEncoder) -> int:
    """Ids in a row of the text encoder's input; raises `BundleError` where that has no room for a prompt."""
    for tensor in bundle.part(encoder.part).inputs:
        if tensor.name == "input_ids" and tensor.shape and isinstance(tensor.shape[-1], int):
            if not 3 <= tensor.shape[-1] <= MAX_LENGTH:
                raise BundleError(
                    f"{encoder.part} of {bundle.folder} reads {tensor.shape[-1]:,} ids at once; 3 to {MAX_LENGTH:,} "
                    "were expected. Export the checkpoint again."
                )
            return tensor.shape[-1]
    return LENGTH


def _ids(vocabulary: Vocabulary, prompt: str) -> list[int]:
    limit = MAX_CHUNKS * vocabulary.room
    if len(prompt) > MAX_CHARACTERS:
        raise RequestError(
            f"The prompt has {len(prompt):,} characters; {MAX_CHARACTERS:,} at most are read. Shorten it."
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(f"The prompt isn't Unicode text ({exc.reason} at {exc.start}). Remove that.") from exc
    with mapped(BundleError, "The bundle's tokenizer failed", "Export the checkpoint again."):
        ids = vocabulary.tokenizer.encode(prompt, add_special_tokens=False).ids
    if len(ids) > MOST_TOKENS * len(prompt):
        raise BundleError(
            f"The bundle's tokenizer makes {len(ids):,} tokens of {len(prompt):,} characters, so it isn't CLIP's. "
            "Export the checkpoint again."
        )
    if len(ids) > limit:
        raise RequestError(
            f"The prompt has {len(ids):,} tokens; {limit:,} at most are drawn "
            f"({MAX_CHUNKS} chunks of {vocabulary.room}). Shorten it."
        )
    return ids


def _framed(vocabulary: Vocabulary, ids: list[int], chunks: int) -> NDArray[np.int64]:
    """[chunks, 77]: start, up to 75 ids, end, padding."""
    rows = np.full((chunks, vocabulary.length), vocabulary.pad, np.int64)
    rows[:, 0] = vocabulary.start
    cuts = range(0, (chunks + 1) * vocabulary.room, vocabulary.room)
    for row, (first, last) in zip(rows, pairwise(cuts), strict=True):
        part = ids[first:last]
        row[1 : len(part) + 1] = part
        row[len(part) + 1] = vocabulary.end
    return rows
