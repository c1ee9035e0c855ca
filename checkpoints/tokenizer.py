"""CLIP's and T5's tokenizers: the vocabularies that ship with the package, and a checkpoint's tokenizer files.

In a bundle, only `tokenizer.json` is read. It is generated from all the files by the transformers class that
model_index.json names, and compared with that class before it is written.

All families share OpenAI CLIP's byte-pair encoding and differ only in the padding token. Its merges ship
compressed (NOTICE.md); the vocabulary follows from them. T5's tokenizer ships whole, compressed.
"""

from __future__ import annotations

import json
import lzma
import os
import tempfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CheckpointError, RuntimeMissing
from ..core.install import install
from ..core.reading import TABLE_BYTES, read_small
from ..core.record import shown
from ..core.vocabulary import check_merges, check_settings, check_tokenizer, check_vocabulary, mapped
from .families import Family, TokenizerFacts

USUAL_LENGTH = 77
"""Token ids per row where nothing reads a prompt, so that the number has no effect."""

CONFIG = "tokenizer_config.json"
FILES = ("vocab.json", "merges.txt", CONFIG, "special_tokens_map.json", "tokenizer.json")
START, END = "<|startoftext|>", "<|endoftext|>"

SAMPLES = (
    "",
    "a photo of a cat",
    "Two SMALL Houses, it's 3 o'clock! caf\u00e9 \u732b",
    f"a {START} in {END} it",
    "  spaces\tand\nlines ",
)
"""Texts whose ids are compared with those of transformers when a tokenizer is opened."""

MAX_SAMPLES = 200
"""At most this many added tokens are compared as well."""

_MERGES = Path(__file__).parent / "clip_merges.xz"
_T5 = Path(__file__).parent / "t5_tokenizer.xz"


@dataclass(frozen=True)
class TokenizerKind:
    """What distinguishes the tokenizers of one kind of text encoder."""

    title: str
    model: str
    """Its model in the `tokenizers` library."""
    classes: tuple[str, ...]
    """Classes of transformers that model_index.json may name; the first is the default. The last two read
    `tokenizer.json` unmodified."""
    vocabulary: frozenset[str]
    """Files that may replace `tokenizer.json`, all together; empty if none may."""
    shipped: Callable[[TokenizerFacts], dict[str, bytes]]
    """The files that ship with the package."""


@cache
def clip_merges() -> tuple[str, ...]:
    """The 48894 merges of OpenAI CLIP, `left right` each, most frequent first.

    The file holds, compressed, the ids of all left tokens and those of all right ones, both as 16-bit integers whose
    first bytes come before all second bytes. A merge makes the next id.
    """
    ids = np.frombuffer(lzma.decompress(_MERGES.read_bytes()), np.uint8).reshape(2, 2, -1)
    left, right = cast("tuple[list[int], list[int]]", (ids[:, 0] | ids[:, 1].astype(np.uint16) << 8).tolist())
    tokens, merges = _byte_tokens(), list[str]()
    for one, other in zip(left, right, strict=True):
        merges.append(f"{tokens[one]} {tokens[other]}")
        tokens.append(tokens[one] + tokens[other])
    return tuple(merges)


@cache
def clip_vocabulary() -> Mapping[str, int]:
    """CLIP's 49408 tokens and their ids: bytes, bytes at the end of a word, merges, start and end."""
    merged = [merge.replace(" ", "") for merge in clip_merges()]
    return {token: number for number, token in enumerate([*_byte_tokens(), *merged, START, END])}


def _byte_tokens() -> list[str]:
    """The tokens of single bytes, and of those at the end of a word."""
    letters = _byte_letters()
    return [*letters, *(letter + "</w>" for letter in letters)]


def t5_tokenizer() -> bytes:
    """T5's `tokenizer.json`.

    The file holds, compressed, lines of text: the JSON without its vocabulary and map of characters, and the pieces;
    after a zero byte, the differences of the bits of the pieces' scores, and the map, both as 32-bit integers whose
    first bytes come before all second bytes, and so on.
    """
    text, _, values = lzma.decompress(_T5.read_bytes()).partition(b"\0")
    head, *pieces = text.decode("utf-8").split("\n")
    made, size = json.loads(head), 4 * len(pieces)
    scores = np.cumsum(_integers(values[:size]), dtype=np.uint32).view(np.float32).tolist()
    made["model"]["vocab"] = [*zip(pieces, scores, strict=True)]
    normalizer = made["normalizer"]["normalizers"][0]
    characters = _integers(values[size:]).tobytes()[: normalizer["precompiled_charsmap"]]
    normalizer["precompiled_charsmap"] = b64encode(characters).decode()
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


def _integers(planes: bytes) -> NDArray[np.uint32]:
    """32-bit integers of which all first bytes come first, then all second bytes, and so on."""
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<u4").ravel().astype(np.uint32)


def shipped_files(facts: TokenizerFacts) -> dict[str, bytes]:
    """The tokenizer files that ship with the package, in the form that transformers reads."""
    return KINDS[facts.kind].shipped(facts)


def _clip_files(facts: TokenizerFacts) -> dict[str, bytes]:
    """The files of CLIP's tokenizer, except `tokenizer.json`."""
    special = {"bos_token": _token(START), "eos_token": _token(END), "unk_token": _token(END)}
    typed = {key: {"__type": "AddedToken", **token} for key, token in special.items()}
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": facts.length,
        "tokenizer_class": "CLIPTokenizer",
    }
    return {
        "vocab.json": _json(clip_vocabulary()),
        "merges.txt": ("#version: 0.2\n" + "\n".join(clip_merges()) + "\n").encode(),
        "tokenizer_config.json": _json({**config, **typed, "pad_token": facts.pad}, indent=2),
        "special_tokens_map.json": _json({**special, "pad_token": facts.pad}, indent=2),
    }


def _t5_files(facts: TokenizerFacts) -> dict[str, bytes]:
    """The files of T5's tokenizer, except the model of SentencePiece that `tokenizer.json` replaces."""
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": facts.pad}
    config: dict[str, Any] = {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    return {
        "tokenizer.json": t5_tokenizer(),
        "tokenizer_config.json": _json(config | special, indent=2),
        "special_tokens_map.json": _json(special, indent=2),
    }


KINDS: dict[str, TokenizerKind] = {
    "clip": TokenizerKind(
        "CLIP",
        "BPE",
        ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
        frozenset({"vocab.json", "merges.txt"}),
        _clip_files,
    ),
    "t5": TokenizerKind(
        "T5",
        "Unigram",
        ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
        frozenset(),
        _t5_files,
    ),
}
"""The kinds of tokenizers by name."""


def stored_files(place: Path, names: tuple[str, ...] = (*FILES, "added_tokens.json")) -> dict[str, bytes]:
    """The tokenizer files in a folder, by name. Raises CheckpointError for one that can't be read."""
    return {
        name: read_small(place / name, TABLE_BYTES, CheckpointError, "Download it again.")
        for name in names
        if os.path.lexists(place / name)
    }


def tokenizer_class(model_index: Mapping[str, Any], facts: TokenizerFacts) -> str:
    """The transformers class that model_index.json names; the first class of its kind if it names none.

    Raises CheckpointError for a class that isn't of its kind.
    """
    kind = KINDS[facts.kind]
    entry: object = model_index.get(facts.name)
    named = cast("list[object]", entry) if isinstance(entry, list) else []
    library, cls = named if len(named) == 2 else ("transformers", None)
    if cls is None:
        return kind.classes[0]
    if library != "transformers" or cls not in kind.classes:
        raise CheckpointError(
            f"model_index.json names {shown(cls)} of {shown(library)} for {facts.name}, which is not supported, only "
            f"{', '.join(kind.classes)} of transformers. Use a checkpoint with {kind.title}'s tokenizer."
        )
    return str(cls)


def row_length(place: Path, positions: int) -> tuple[int, str | None]:
    """The number of ids that a prompt is padded to, and a notice if the tokenizer's config doesn't give it.

    As in diffusers, it is the config's `model_max_length`, but at most the text encoder's `positions`. Raises
    CheckpointError for a value that is not a valid length.
    """
    try:
        config = check_settings(stored_files(place, (CONFIG,)).get(CONFIG, b"{}"))
    except ValueError as exc:
        raise CheckpointError(
            f"The files of {place} are not a CLIP tokenizer: {CONFIG} is not valid ({exc}). Download them again."
        ) from exc
    limit = config.get("model_max_length", config.get("max_len"))
    if limit is not None and (type(limit) not in (int, float) or not limit >= 3):
        raise CheckpointError(
            f"{place} has model_max_length = {shown(limit)}, but a number of token ids, 3 or more, was expected. "
            "Compare it with the tokenizer_config.json that the checkpoint was published with."
        )
    if limit is not None and limit <= positions:
        return int(limit), None
    what = f"model_max_length = {shown(limit)}" if limit is not None else "no model_max_length"
    return positions, f"{place.name} has {what}: prompts are padded to the text encoder's {positions} positions."


def common_length(
    where: object,
    family: Family,
    configs: Mapping[str, Mapping[str, Any]],
    model_index: Mapping[str, Any],
    place: Callable[[str], Path],
) -> tuple[int, list[str]]:
    """The number of token ids per row, the same for every CLIP, and notices. Checks tokenizer classes too.

    `place` gives the folder of a tokenizer by name. Raises CheckpointError for lengths that differ, naming `where`.
    """
    lengths: dict[str, int] = {}
    notices: list[str] = []
    for facts in family.tokenizers:
        tokenizer_class(model_index, facts)
        if facts.kind == "t5":
            continue
        positions = configs[facts.encoder].get("max_position_embeddings") or facts.length
        lengths[facts.name], notice = row_length(place(facts.name), positions)
        notices += [notice] if notice else []
    if len(set(lengths.values())) > 1:
        differing = " and ".join(f"{length} tokens for {name}" for name, length in lengths.items())
        raise CheckpointError(
            f"{where} pads prompts to {differing} (model_max_length or max_position_embeddings), but these lengths "
            "must be equal. Compare the configs with those that the checkpoint was published with."
        )
    return next(iter(lengths.values()), USUAL_LENGTH), notices


def complete(
    files: Mapping[str, bytes], facts: TokenizerFacts, length: int, cls: str | None = None, rows: int | None = None
) -> dict[str, bytes]:
    """The files, with missing ones generated, and a `tokenizer.json` that pads and truncates to `length`.

    `tokenizer.json` is generated by the transformers class `cls` (None: the first class of its kind), so that the
    `tokenizers` library gives the same ids without transformers. `rows` is the number of ids that the text encoder
    knows. Raises CheckpointError if the files aren't a tokenizer, or latentc would give other ids.
    """
    tokenizer = load_tokenizer(files, facts, cls)
    fast: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    fast["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    fast["padding"] = {
        "strategy": {"Fixed": length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad_token_id,
        "pad_type_id": 0,
        "pad_token": tokenizer.pad_token,
    }
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    kind = KINDS[facts.kind]
    config: dict[str, Any] = {"tokenizer_class": kind.classes[0], "model_max_length": length}
    made = {
        "tokenizer_config.json": _json(config | tokens, indent=2),
        "special_tokens_map.json": _json(tokens, indent=2),
    }
    if kind.vocabulary:
        model: dict[str, Any] = fast["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        made |= {
            "vocab.json": _json(model["vocab"]),
            "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode(),
        }
    whole = _json(fast)
    try:
        check_tokenizer(whole, (kind.model,))  # as the pipeline will
    except ValueError as exc:
        raise CheckpointError(
            f"The checkpoint's {facts.name} is not a {kind.title} tokenizer ({exc}). Download it again."
        ) from exc
    _check_ids(whole, tokenizer, facts, length, rows)
    return made | dict(files) | {"tokenizer.json": whole}


def _check_ids(whole: bytes, tokenizer: Any, facts: TokenizerFacts, length: int, rows: int | None) -> None:
    """Raise CheckpointError unless start, ids, end and padding are the same row as transformers' tokenizer gives."""
    from tokenizers import Tokenizer

    refused = f"The checkpoint's {facts.name} does not give the token ids of transformers"
    with mapped(CheckpointError, refused, "Download the checkpoint again."):
        fast = Tokenizer.from_str(whole.decode())
        added = [token.content for _, token in sorted(fast.get_added_tokens_decoder().items())]
        fast.no_padding()
        fast.no_truncation()
        frame, pad = fast.encode("").ids, tokenizer.pad_token_id
        start, end, room = frame[:-1], frame[-1:], length - len(frame)
        for text in (*SAMPLES, *(f"a {token} here" for token in added[-MAX_SAMPLES:])):
            ids = fast.encode(text, add_special_tokens=False).ids[:room]
            ours = [*start, *ids, *end, *[pad] * (room - len(ids))]
            theirs = tokenizer(text, padding="max_length", max_length=length, truncation=True)["input_ids"]
            if ours != theirs:
                raise CheckpointError(
                    f"transformers reads {text!r} with the checkpoint's {facts.name} as {shown(theirs)}, but latentc "
                    f"as {shown(ours)}. This tokenizer is not supported: {'a start, ' if start else ''}the prompt, an "
                    f"end and padding after them were expected (its padding side is {tokenizer.padding_side!r})."
                )
    for what, number in zip(("start", "end", "padding")[-len(frame) - 1 :], (*frame, pad), strict=True):
        if rows is not None and number >= rows:
            raise CheckpointError(
                f"The checkpoint's {facts.name} has id {number:,} for its {what}, but {facts.encoder} only knows ids "
                f"up to {rows - 1:,}. The files do not belong together; download the checkpoint again."
            )


def load_tokenizer(files: Mapping[str, bytes], facts: TokenizerFacts, cls: str | None = None) -> Any:
    """Transformers' tokenizer of these files. Raises CheckpointError if they aren't one, or it has no padding token."""
    try:
        import transformers
    except ImportError as exc:
        raise RuntimeMissing(
            f"Reading a checkpoint's tokenizer needs transformers ({exc}). {install('export')}"
        ) from exc
    kind = KINDS[facts.kind]
    if "tokenizer.json" not in files and not (kind.vocabulary and kind.vocabulary <= set(files)):
        lacks = "neither vocab.json and merges.txt nor tokenizer.json" if kind.vocabulary else "no tokenizer.json"
        raise CheckpointError(
            f"The checkpoint's {facts.name} has {lacks} (it has: {', '.join(sorted(files)) or 'nothing'}). Download "
            "the checkpoint again."
        )
    library: Any = transformers
    refused = f"The files of the checkpoint's {facts.name} are not a {kind.title} tokenizer"
    with tempfile.TemporaryDirectory(prefix="latentc-tokenizer-") as folder:
        for name, content in files.items():
            try:
                sound = _checked(name, content, kind)
            except ValueError as exc:
                raise CheckpointError(f"{refused}: {name} is not valid ({exc}). Download them again.") from exc
            (Path(folder) / name).write_bytes(sound)
        with mapped(CheckpointError, refused, "Download them again."):
            loaded = getattr(library, cls or kind.classes[0]).from_pretrained(folder, local_files_only=True)
    if loaded.pad_token_id is None:
        raise CheckpointError(
            f"The checkpoint's {facts.name} has no padding token; {facts.pad!r} was expected. Download the checkpoint "
            "again."
        )
    return loaded


def _checked(name: str, content: bytes, kind: TokenizerKind) -> bytes:
    """A tokenizer file that is safe for its library to read; raises `ValueError` for one that isn't."""
    if name == "tokenizer.json":
        check_tokenizer(content, (kind.model,))
    elif name == "merges.txt":
        lines = content.decode("utf-8").splitlines()
        check_merges([line for line in lines if line.strip() and not line.startswith("#version")])
    elif name in ("vocab.json", "added_tokens.json"):
        check_vocabulary(content)
    else:
        return _json(check_settings(content))
    return content


def _byte_letters() -> list[str]:
    """A printable character for each byte, in the order of CLIP's vocabulary (GPT-2's byte alphabet)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def _token(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _json(content: object, indent: int | None = None) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode()
