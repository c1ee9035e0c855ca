"""Which tokenizer files are passed to the `tokenizers` library: only those that describe a CLIP or T5 tokenizer.

The library accepts anything: a normalizer that multiplies a prompt, a regular expression that never finishes, a prefix
that makes it panic. So a file is first compared with what transformers writes for CLIP and T5.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from .errors import LatentcError
from .reading import parse_json
from .record import in_a_line, shown

MAX_TOKENS = 500_000
MAX_ADDED = 20_000
"""Limit of tokens added to the vocabulary; textual inversions have a few hundred."""
MAX_TOKEN = 1024
"""Limit of characters in a token."""

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPLITS = (_WORDS, rf"<\|startoftext\|>|<\|endoftext\|>|{_WORDS}")
"""Regular expressions that split a text into words, as transformers' converters write them."""
SPACES = ([r"\s+", " "], [" {2,}", " "])
"""Patterns with what replaces them: CLIP's and T5's."""
T5_CHARACTERS = "ce10d747170c5e102c99b841d1cdea976d54405ebc44791f9c3636741a894d8f"
"""SHA-256 of the table with which every published T5 normalizes characters (SentencePiece's nmt_nfkc)."""

_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "BertNormalizer"})
_PRE_TOKENIZERS = frozenset({"ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace"})
_POST_PROCESSORS = frozenset({"RobertaProcessing", "BertProcessing", "TemplateProcessing", "ByteLevel"})
_DECODERS = frozenset({"ByteLevel", "BPEDecoder", "Metaspace"})


MODELS = ("BPE", "Unigram")
"""Kinds of tokenizers: byte pairs (CLIP), and unigrams (T5)."""


def check_tokenizer(raw: bytes, models: Collection[str] = MODELS) -> dict[str, Any]:
    """Parse a `tokenizer.json`; raises `ValueError` for anything but byte pairs like CLIP's or unigrams like T5's."""
    found = _table("tokenizer.json", parse_json(raw))
    _each("normalizer", found.get("normalizer"), "normalizers", _normalizer)
    _each("pre_tokenizer", found.get("pre_tokenizer"), "pretokenizers", _pre_tokenizer)
    _each("post_processor", found.get("post_processor"), "processors", _post_processor)
    _each("decoder", found.get("decoder"), "decoders", _decoder)
    model = _table("model", found.get("model"))
    _one_of("model.type", model.get("type", "BPE"), models)
    for key, values in _MODEL.items():
        _one_of(f"model.{key}", model.get(key), values)
    if model.get("type") == "Unigram":
        _check_unigrams(model)
    else:
        vocabulary = _vocabulary("model.vocab", model.get("vocab"), MAX_TOKENS)
        check_merges(model.get("merges"))
        _one_of("model.unk_token", model.get("unk_token"), (None, *vocabulary))
    added = _list("added_tokens", found.get("added_tokens", []), MAX_ADDED)
    for token in added:
        entry = _table("added_tokens", token)
        _token("added_tokens.content", entry.get("content"))
        _id("added_tokens.id", entry.get("id"))
    return found


def _check_unigrams(model: Mapping[str, Any]) -> None:
    """Raise `ValueError` for anything but tokens with their log probabilities, and the id of the unknown token."""
    tokens: set[object] = set()
    for entry in _list("model.vocab", model.get("vocab"), MAX_TOKENS):
        pair = _list("model.vocab", entry, 2)
        token, score = pair if len(pair) == 2 else (None, None)
        _token("model.vocab", token)
        if type(score) not in (int, float) or not math.isfinite(cast("float", score)):
            raise ValueError(f"model.vocab gives {shown(token)} the score {shown(score)}; expected a number")
        tokens.add(token)
    count = len(cast("list[object]", model["vocab"]))
    if len(tokens) != count:
        raise ValueError("model.vocab has a token twice")
    unknown: object = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < count:
        raise ValueError(f"model.unk_id is {shown(unknown)}; expected an id from 0 to {count - 1:,}")


def check_vocabulary(raw: bytes) -> dict[str, int]:
    """Parse a `vocab.json` or `added_tokens.json`; raises `ValueError` for anything but tokens and their ids."""
    return _vocabulary("it", parse_json(raw), MAX_TOKENS)


def check_settings(raw: bytes) -> dict[str, Any]:
    """Parse a `tokenizer_config.json` or `special_tokens_map.json`, dropping entries that refer to files or code."""
    found = _table("it", parse_json(raw))
    for key, value in found.items():
        if isinstance(value, list | dict) and len(cast("list[object]", value)) > MAX_ADDED:
            raise ValueError(f"{key} has more than {MAX_ADDED:,} entries")
    return {key: value for key, value in found.items() if not key.endswith("_file") and key != "auto_map"}


def check_merges(merges: object) -> None:
    """Raise `ValueError` for anything but pairs of tokens: lists of two, or texts with one space."""
    for merge in _list("merges", merges, MAX_TOKENS):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(cast("list[object]", pair)) == 2):
            raise ValueError(f"merges has {shown(merge)}; expected two tokens")
        for token in cast("list[object]", pair):
            _token("merges", token)


_MODEL: Mapping[str, tuple[object, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, "", "</w>"),
    "fuse_unk": (None, False, True),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False, True),
}


@contextmanager
def mapped(error: type[LatentcError], sentence: str, advice: str) -> Generator[None]:
    """Map anything that the library raises in the block to `error`; its panics are not `Exception`s."""
    try:
        yield
    except (LatentcError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:
        raise error(f"{sentence} ({in_a_line(exc)}). {advice}") from exc


def _each(where: str, value: object, inner: str, check: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Check one step, or each step of a sequence."""
    if value is None:
        return
    step = _table(where, value)
    if step.get("type") != "Sequence":
        check(where, step)
        return
    for one in _list(f"{where}.{inner}", step.get(inner), 16):
        check(where, _table(where, one))


def _normalizer(where: str, step: Mapping[str, Any]) -> None:
    if step.get("type") == "Replace":
        pattern = _table(f"{where}.pattern", step.get("pattern"))
        _one_of(f"{where}.pattern", str([pattern.get("Regex"), step.get("content")]), list(map(str, SPACES)))
        return
    if step.get("type") == "Precompiled":
        table = str(step.get("precompiled_charsmap"))
        _one_of(f"{where}.precompiled_charsmap", hashlib.sha256(table.encode()).hexdigest(), (T5_CHARACTERS,))
        return
    _one_of(f"{where}.type", step.get("type"), _NORMALIZERS)


def _pre_tokenizer(where: str, step: Mapping[str, Any]) -> None:
    if step.get("type") == "Split":
        pattern = _table(f"{where}.pattern", step.get("pattern"))
        _one_of(f"{where}.pattern", pattern.get("Regex"), SPLITS)
        return
    _one_of(f"{where}.type", step.get("type"), _PRE_TOKENIZERS)
    if step.get("type") == "Metaspace":
        _one_of(f"{where}.replacement", step.get("replacement"), ("\u2581",))


def _post_processor(where: str, step: Mapping[str, Any]) -> None:
    _one_of(f"{where}.type", step.get("type"), _POST_PROCESSORS)
    for key in ("sep", "cls"):
        if key in step:
            pair = _list(f"{where}.{key}", step[key], 2)
            if len(pair) != 2:
                raise ValueError(f"{where}.{key} is {shown(pair)}; expected a token with its id")
            _token(f"{where}.{key}", pair[0])
            _id(f"{where}.{key}", pair[1])
    for key in ("single", "pair"):
        _list(f"{where}.{key}", step.get(key, []), 16)
    for name, special in _table(f"{where}.special_tokens", step.get("special_tokens", {})).items():
        ids = _list(f"{where}.special_tokens", _table(name, special).get("ids"), 16)
        for one in ids:
            _id(f"{where}.special_tokens", one)


def _decoder(where: str, step: Mapping[str, Any]) -> None:
    _one_of(f"{where}.type", step.get("type"), _DECODERS)


def _vocabulary(where: str, value: object, most: int) -> dict[str, int]:
    table = _table(where, value)
    if len(table) > most:
        raise ValueError(f"{where} has {len(table):,} tokens; the limit is {most:,}")
    for token, number in table.items():
        if len(token) > MAX_TOKEN:
            _token(where, token)
        if type(number) is not int or not 0 <= number < 2 * MAX_TOKENS:
            _id(where, number)
    if len(set(table.values())) != len(table):
        raise ValueError(f"{where} gives two tokens the same id")
    return table


def _table(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {shown(value)}; expected an object")  # noqa: TRY004 - an error in a file
    return cast("dict[str, Any]", value)


def _list(where: str, value: object, most: int) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {shown(value)}; expected a list")  # noqa: TRY004 - an error in a file
    found = cast("list[object]", value)
    if len(found) > most:
        raise ValueError(f"{where} is a list of {len(found):,} elements; the limit is {most:,}")
    return found


def _one_of(where: str, value: object, known: Collection[object]) -> None:
    if isinstance(value, list | dict) or value not in known:
        listed = ", ".join(shown(one) for one in sorted(known, key=str)[:8])
        raise ValueError(f"{where} is {shown(cast('object', value))}; known values: {listed}")


def _token(where: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TOKEN:
        raise ValueError(f"{where} has {shown(value)}; expected a token of 1 to {MAX_TOKEN} characters")


def _id(where: str, value: object) -> None:
    if type(value) is not int or not 0 <= value < 2 * MAX_TOKENS:
        raise ValueError(f"{where} has {shown(value)}; expected an id from 0 to {2 * MAX_TOKENS:,}")
