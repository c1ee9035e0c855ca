"""From a prompt's text to the denoiser's condition, without truncation: long prompts take several chunks.

CLIP reads 77 tokens (a few models fewer or more): a start, at most 75 of the prompt, an end, and
padding. A prompt of up to 75 tokens gives exactly the ids of diffusers' pipeline. A longer one is
split into chunks of 75, each with its own start and end; each chunk is encoded separately, and the embeddings
are joined along the sequence. Prompt and negative prompt are padded to the same length with empty
chunks. A whole-prompt embedding (SDXL's `text_embeds`) is that of the first chunk.

T5 reads 256 tokens: at most 255 of the prompt, an end, and padding. It has as many rows as hold the chunks of
CLIP: one for up to three, two for up to six.

A textual inversion of several vectors has a token for each: `<toy>`, `<toy>_1`, `<toy>_2`. Its first token
in a prompt stands for all of them, as in diffusers' `maybe_convert_prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, pairwise, takewhile
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..core.bundle import Bundle
from ..core.errors import BundleError, RequestError
from ..core.manifest import Model, TextEncoder
from ..core.reading import TABLE_BYTES, read_small
from ..core.record import shown
from ..core.references import IDS, MASK
from ..core.shapes import rows_of
from ..core.tensors import Array, check_finite
from ..core.vocabulary import check_tokenizer, mapped

MAX_CHUNKS = 20
MAX_CHARACTERS = 100_000
MOST_TOKENS = 64
"""Tokens per character: Unicode normalization makes at most 18 characters of one, of at most 3 bytes each."""

Call = Callable[[str, Mapping[str, Array]], dict[str, Array]]
"""Runs a part, by name, on its inputs."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the ids that frame its chunks. Immutable after loading, so threads may share it."""

    tokenizer: Tokenizer
    start: int | None
    """None for a tokenizer whose rows have no start (T5)."""
    end: int
    pad: int
    length: int
    size: int | None = None
    """Number of ids that the text encoder knows, as a tokenizer may have more; None for no limit."""
    several: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tokens that stand for several, and all of these, separated by spaces."""

    @property
    def room(self) -> int:
        """Number of prompt tokens in one chunk."""
        return self.length - (1 if self.start is None else 2)


@dataclass(frozen=True)
class Tokens:
    """Token ids of the prompts, for each text encoder."""

    rows: tuple[NDArray[np.int64], ...]
    """One array per text encoder, [prompts, chunks, 77] (T5: [prompts, rows, 256]); the negative prompt, if any, comes
    first."""
    used: tuple[NDArray[np.int64], ...]
    """Number of ids in each row that aren't padding, [prompts, chunks]."""
    counts: tuple[int, ...]
    """Number of tokens of each prompt, without start, end and padding."""
    chunks: int
    """Number of chunks of the model's own length, the same for every prompt."""


def load_vocabularies(bundle: Bundle) -> tuple[Vocabulary, ...]:
    """The tokenizer of each text encoder, in order. Raises `BundleError` if one is missing or damaged."""
    return tuple(_load(bundle, encoder) for encoder in bundle.manifest.model.text_encoders)


def tokenize(vocabularies: tuple[Vocabulary, ...], prompts: tuple[str, ...]) -> Tokens:
    """The ids of the prompts of one request, all padded to the same number of chunks.

    Raises `RequestError` for a prompt of more than `MAX_CHUNKS` chunks, or one that isn't Unicode text.
    """
    found = [[_ids(vocabulary, prompt) for prompt in prompts] for vocabulary in vocabularies]
    base, chunks = min(vocabulary.length for vocabulary in vocabularies), 1
    for vocabulary, prompt in zip(vocabularies, found, strict=True):
        needed = max(map(len, prompt))
        while rows_of(vocabulary.length, base, chunks) * vocabulary.room < needed:
            chunks += 1
    if chunks > MAX_CHUNKS:
        raise RequestError(f"The prompt takes {chunks} chunks, but the limit is {MAX_CHUNKS}. Shorten it.")
    framed = [
        [_framed(vocabulary, ids, rows_of(vocabulary.length, base, chunks)) for ids in rows]
        for vocabulary, rows in zip(vocabularies, found, strict=True)
    ]
    return Tokens(
        rows=tuple(np.stack([rows for rows, _ in each]) for each in framed),
        used=tuple(np.stack([used for _, used in each]) for each in framed),
        counts=tuple(max(len(rows[prompt]) for rows in found) for prompt in range(len(prompts))),
        chunks=chunks,
    )


def ids_of(vocabulary: Vocabulary, prompt: str) -> list[int]:
    """The ids of a prompt as in diffusers' pipeline, without start, end and padding.

    Raises `RequestError` for more ids than `MAX_CHUNKS` chunks hold.
    """
    encoded = _encoded(vocabulary, prompt)
    tokens = dict.fromkeys(encoded.tokens) if vocabulary.several else ()
    wide = [token for token in tokens if token in vocabulary.several]
    if not wide:
        return encoded.ids
    written = prompt
    for token in wide:
        several = vocabulary.several[token]
        longer = len(written) + written.count(token) * (len(several) - len(token))
        if longer > MAX_CHARACTERS:
            raise RequestError(
                f"The prompt has {longer:,} characters with every vector of {shown(token)} written out, but the limit "
                f"is {MAX_CHARACTERS:,}. Shorten it."
            )
        written = written.replace(token, several)
    return _encoded(vocabulary, written).ids


def encode(
    model: Model, tokens: Tokens, zero_negative: bool, call: Call, engines: Mapping[str, str]
) -> dict[str, dict[str, Array]]:
    """Run each text encoder once over all prompts and chunks; returns their outputs by part and name.

    Embeddings are [prompts, 77 * chunks, width], those of whole prompts [prompts, width]. `zero_negative` puts a row of
    zeros first (diffusers' `force_zeros_for_empty_prompt`). `engines` names the engine of each part, for errors.
    Raises `NotFiniteError` if an encoder outputs NaN or infinity.
    """
    encoded: dict[str, dict[str, Array]] = {}
    for encoder, ids, used in zip(model.text_encoders, tokens.rows, tokens.used, strict=True):
        prompts, chunks, length = ids.shape
        feeds = {IDS: ids.reshape(prompts * chunks, length)}
        if encoder.masked:
            places: NDArray[np.int64] = np.arange(length, dtype=np.int64)
            feeds[MASK] = np.less(places, used.reshape(-1, 1)).astype(np.int64)
        answer = call(encoder.part, feeds)
        read: dict[str, Array] = {}
        for name in model.read_of(encoder.part):
            rows = answer[name].reshape(prompts, chunks, *answer[name].shape[1:])
            of_ids = answer[name].ndim > 2  # one embedding per id, else one per chunk
            read[name] = rows.reshape(prompts, chunks * length, -1) if of_ids else rows[:, 0]
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
    content = read_small(path, TABLE_BYTES, BundleError, again)
    with mapped(BundleError, f"{path} is not a valid tokenizer", again):
        tokenizer, padding, several = _parsed(content)
        frame = tokenizer.encode("").ids
    if len(frame) not in (1, 2):
        raise BundleError(
            f"{path} adds {len(frame)} tokens to a prompt, but 2 were expected (start and end), or 1 (end). {again}"
        )
    if not all(number < tokenizer.get_vocab_size() for number in frame):
        raise BundleError(f"{path} adds ids {frame} to a prompt, which are not in its vocabulary. {again}")
    pad = cast("dict[str, object]", padding).get("pad_id") if isinstance(padding, dict) else None
    if type(pad) is not int or not 0 <= pad < tokenizer.get_vocab_size():
        raise BundleError(f"{path} has no valid padding id (pad_id is {shown(pad)}). {again}")
    length = encoder.length or bundle.manifest.model.length
    for tensor in bundle.part(encoder.part).inputs:
        if tensor.shape[1:] != (length,):
            raise BundleError(
                f"{encoder.part} of {bundle.folder} reads {tensor.name} {list(tensor.shape)}, but rows of {length} ids "
                f"were expected. {again}"
            )
    start = frame[0] if len(frame) == 2 else None
    return Vocabulary(tokenizer, start, frame[-1], pad, length, encoder.vocabulary, several)


@lru_cache(maxsize=4)
def _parsed(content: bytes) -> tuple[Tokenizer, object, Mapping[str, str]]:
    """A tokenizer without truncation and padding, its file's padding settings, and tokens that stand for several.

    Loading takes 0.2 s and the result is immutable, so bundles and pipelines of one process share it.
    """
    settings = check_tokenizer(content)
    padding: object = settings.get("padding")
    # Truncation and padding settings would change `encode`; both are done here, in numpy.
    tokenizer = Tokenizer.from_str(json.dumps(settings | {"truncation": None, "padding": None}))
    return tokenizer, padding, _several(tokenizer)


def _several(tokenizer: Tokenizer) -> dict[str, str]:
    """Added tokens with numbered companions, `_1` and so on, each with the text of all of them."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found: dict[str, str] = {}
    for token in sorted(added):
        numbered = takewhile(added.__contains__, (f"{token}_{number}" for number in count(1)))
        whole = " ".join([token, *numbered])
        if whole != token:
            found[token] = whole
    return found


def _encoded(vocabulary: Vocabulary, prompt: str) -> Encoding:
    with mapped(BundleError, "The bundle's tokenizer failed", "Export the checkpoint again."):
        encoded = vocabulary.tokenizer.encode(prompt, add_special_tokens=False)
    ids, limit = encoded.ids, MAX_CHUNKS * vocabulary.room
    if len(ids) > MOST_TOKENS * len(prompt):
        raise BundleError(
            f"The bundle's tokenizer makes {len(ids):,} tokens of {len(prompt):,} characters, so it is not the "
            "checkpoint's. Export the checkpoint again."
        )
    if len(ids) > limit:
        raise RequestError(
            f"The prompt has {len(ids):,} tokens, but the limit is {limit:,} "
            f"({MAX_CHUNKS} chunks of {vocabulary.room}). Shorten it."
        )
    return encoded


def _ids(vocabulary: Vocabulary, prompt: str) -> list[int]:
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
    ids = ids_of(vocabulary, prompt)
    size = vocabulary.size or 1 + max(ids, default=0)
    unknown = next((one for one in ids if one >= size), None)
    if unknown is not None:
        raise RequestError(
            f"The prompt has {shown(vocabulary.tokenizer.id_to_token(unknown))}, a token of the checkpoint's tokenizer "
            f"(id {unknown:,}) for which its text encoder has no embedding: it only knows ids up to {size - 1:,}. "
            "Leave it out."
        )
    return ids


def _framed(vocabulary: Vocabulary, ids: list[int], chunks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of start, up to 75 ids, end and padding, [chunks, 77]; and how many ids aren't padding, [chunks]."""
    rows = np.full((chunks, vocabulary.length), vocabulary.pad, np.int64)
    begin = 0 if vocabulary.start is None else 1
    rows[:, :begin] = vocabulary.start or 0
    cuts = range(0, (chunks + 1) * vocabulary.room, vocabulary.room)
    used = np.empty(chunks, np.int64)
    for index, (first, last) in enumerate(pairwise(cuts)):
        part = ids[first:last]
        rows[index, begin : begin + len(part)] = part
        rows[index, begin + len(part)] = vocabulary.end
        used[index] = begin + len(part) + 1
    return rows, used
