"""Tokenizers of a bundle's text encoders: from text to token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, takewhile
from typing import cast

from tokenizers import Encoding, Tokenizer

from ..core.bundle import Bundle
from ..core.errors import BundleError, RequestError
from ..core.model import Model, TextEncoder
from ..core.reading import TABLE_BYTES, read_small
from ..core.record import shown
from ..core.vocabulary import check_tokenizer, mapped

MAX_CHUNKS = 20
MAX_CHARACTERS = 100_000
MOST_TOKENS = 64
"""Tokens per character: Unicode normalization makes at most 18 characters of one, of at most 3 bytes each."""


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
    several: Mapping[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    """Ids of tokens that stand for several, and the tokens, the first one included."""

    @property
    def room(self) -> int:
        """Number of prompt tokens in one chunk."""
        return self.length - (1 if self.start is None else 2)


def load_vocabularies(bundle: Bundle, model: Model | None = None) -> tuple[Vocabulary, ...]:
    """The tokenizer of each text encoder, in order; `model` is the bundle's if None, or its refiner's.

    Raises `BundleError` if one is missing or damaged.
    """
    return tuple(_load(bundle, encoder) for encoder in (model or bundle.manifest.model).text_encoders)


def ids_of(vocabulary: Vocabulary, prompt: str) -> list[int]:
    """The ids of a prompt as in diffusers' pipeline, without start, end and padding.

    Raises `RequestError` for more ids than `MAX_CHUNKS` chunks hold.
    """
    return _converted(vocabulary, prompt).ids


def units_of(vocabulary: Vocabulary, text: str) -> list[list[int]]:
    """The ids of a text, one by one; those of a textual inversion together.

    Raises `RequestError` for an id that the text encoder doesn't know.
    """
    encoded = _converted(vocabulary, text)
    size = vocabulary.size or 1 + max(encoded.ids, default=0)
    unknown = next((one for one in encoded.ids if one >= size), None)
    if unknown is not None:
        raise RequestError(
            f"The prompt has {shown(vocabulary.tokenizer.id_to_token(unknown))}, a token of the checkpoint's tokenizer "
            f"(id {unknown:,}) for which its text encoder has no embedding: it only knows ids up to {size - 1:,}. "
            "Leave it out."
        )
    if not vocabulary.several:
        return [[one] for one in encoded.ids]
    units: list[list[int]] = []
    for one in encoded.ids:
        tokens = vocabulary.several.get(units[-1][0], ()) if units else ()
        read = len(units[-1]) if units else 0
        if read < len(tokens) and one == vocabulary.tokenizer.token_to_id(tokens[read]):
            units[-1].append(one)
        else:
            units.append([one])
    return units


def too_long(count: int, vocabulary: Vocabulary) -> RequestError:
    """The error for a prompt of this many tokens."""
    return RequestError(
        f"The prompt has {count:,} tokens, but the limit is {MAX_CHUNKS * vocabulary.room:,} "
        f"({MAX_CHUNKS} chunks of {vocabulary.room}). Shorten it."
    )


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
def _parsed(content: bytes) -> tuple[Tokenizer, object, Mapping[int, tuple[str, ...]]]:
    """A tokenizer without truncation and padding, its file's padding settings, and tokens that stand for several.

    Loading takes 0.2 s and the result is immutable, so bundles and pipelines of one process share it.
    """
    settings = check_tokenizer(content)
    padding: object = settings.get("padding")
    # Truncation and padding settings would change `encode`; both are done here, in numpy.
    tokenizer = Tokenizer.from_str(json.dumps(settings | {"truncation": None, "padding": None}))
    return tokenizer, padding, _several(tokenizer)


def _several(tokenizer: Tokenizer) -> dict[int, tuple[str, ...]]:
    """The ids of added tokens with numbered companions, `_1` and so on, each with all of them.

    By ids: a tokenizer that reads lower case gives the text of a token in lower case.
    """
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    found: dict[int, tuple[str, ...]] = {}
    for token in sorted(added):
        numbered = tuple(takewhile(added.__contains__, (f"{token}_{number}" for number in count(1))))
        if numbered:
            found[added[token]] = (token, *numbered)
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
        raise too_long(len(ids), vocabulary)
    return encoded


def _converted(vocabulary: Vocabulary, prompt: str) -> Encoding:
    """The encoding of a prompt with every vector of its textual inversions."""
    encoded = _encoded(vocabulary, prompt)
    wide = [number for number in dict.fromkeys(encoded.ids) if number in vocabulary.several]
    if not wide:
        return encoded
    written = prompt
    for number in wide:
        token, *_ = tokens = vocabulary.several[number]
        if prompt.count(token) != encoded.ids.count(number):
            raise RequestError(
                f"The prompt writes the token {shown(token)} of a textual inversion with other letters, so that only "
                "one of its vectors would be read. Write it exactly so."
            )
        several = " ".join(tokens)
        longer = len(written) + written.count(token) * (len(several) - len(token))
        if longer > MAX_CHARACTERS:
            raise RequestError(
                f"The prompt has {longer:,} characters with every vector of {shown(token)} written out, but the limit "
                f"is {MAX_CHARACTERS:,}. Shorten it."
            )
        written = written.replace(token, several)
    return _encoded(vocabulary, written)
