"""CLIP's tokenizer: the vocabulary that ships with the package, and the files of one.

A checkpoint's `tokenizer.json` is the one truth in a bundle: it is what transformers' class, the one that
model_index.json names, makes of all the files, and it is compared with that class before it is written.

All families share OpenAI CLIP's byte-pair encoding and differ only in the token that fills up a
prompt. Its merges ship compressed (NOTICE.md); the vocabulary follows from them.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from ..core.errors import CheckpointError, RuntimeMissing
from ..core.install import install
from ..core.reading import TABLE_BYTES, read_small
from ..core.record import shown
from ..core.vocabulary import check_merges, check_settings, check_tokenizer, check_vocabulary, mapped
from .families import TokenizerFacts

CONFIG = "tokenizer_config.json"
FILES = ("vocab.json", "merges.txt", CONFIG, "special_tokens_map.json", "tokenizer.json")
START, END = "<|startoftext|>", "<|endoftext|>"

CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
"""Of transformers: what model_index.json may name. The last two read `tokenizer.json` as it stands."""

SAMPLES = (
    "",
    "a photo of a cat",
    "Two SMALL Houses, it's 3 o'clock! caf\u00e9 \u732b",
    f"a {START} in {END} it",
    "  spaces\tand\nlines ",
)
"""Texts whose ids are compared with transformers' when a tokenizer is opened."""

MAX_SAMPLES = 200
"""Added tokens that are among them."""

_MERGES = Path(__file__).parent / "clip_merges.txt.gz"


@cache
def clip_merges() -> tuple[str, ...]:
    """The 48894 merges of OpenAI CLIP, `left right` each, most frequent first."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    return tuple(lines[1:])  # the first line is a version


@cache
def clip_vocabulary() -> Mapping[str, int]:
    """CLIP's 49408 tokens and their ids: bytes, bytes that end a word, merges, start and end."""
    letters = _byte_letters()
    words = [letter + "</w>" for letter in letters]
    merged = [merge.replace(" ", "") for merge in clip_merges()]
    return {token: number for number, token in enumerate([*letters, *words, *merged, START, END])}


def shipped_files(facts: TokenizerFacts) -> dict[str, bytes]:
    """The files of a tokenizer in the form that transformers reads, all but `tokenizer.json`."""
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


def stored_files(place: Path, names: tuple[str, ...] = (*FILES, "added_tokens.json")) -> dict[str, bytes]:
    """The files of a tokenizer that are in a folder, by name. Raises CheckpointError for one that can't be read."""
    return {
        name: read_small(place / name, TABLE_BYTES, CheckpointError, "Fetch it again.")
        for name in names
        if os.path.lexists(place / name)
    }


def tokenizer_class(model_index: Mapping[str, Any], tokenizer: str) -> str:
    """The class of transformers that a model_index.json names; CLIPTokenizer where it names none.

    Raises CheckpointError for one that isn't in `CLASSES`.
    """
    entry: object = model_index.get(tokenizer)
    named = cast("list[object]", entry) if isinstance(entry, list) else []
    library, cls = named if len(named) == 2 else ("transformers", None)
    if cls is None:
        return CLASSES[0]
    if library != "transformers" or cls not in CLASSES:
        raise CheckpointError(
            f"model_index.json says that {tokenizer} is a {shown(cls)} of {shown(library)}, which isn't supported: "
            f"known here: {', '.join(CLASSES)}, of transformers. Pass a checkpoint with CLIP's tokenizer."
        )
    return str(cls)


def row_length(place: Path, positions: int) -> tuple[int, str | None]:
    """How many ids a prompt is filled up to, and a sentence where the tokenizer's config doesn't say that.

    As diffusers, it is the config's `model_max_length`. A text encoder has no more than its `positions`. Raises
    CheckpointError for a value that is no length.
    """
    try:
        config = check_settings(stored_files(place, (CONFIG,)).get(CONFIG, b"{}"))
    except ValueError as exc:
        raise CheckpointError(
            f"The files of {place} don't make a CLIP tokenizer: {CONFIG} isn't one ({exc}). Fetch them again."
        ) from exc
    said = config.get("model_max_length", config.get("max_len"))
    if said is not None and (type(said) not in (int, float) or not said >= 3):
        raise CheckpointError(
            f"{place} says model_max_length = {shown(said)}, and a number of token ids, 3 or more, was expected. "
            "Compare it with the tokenizer_config.json that the checkpoint was published with."
        )
    if said is not None and said <= positions:
        return int(said), None
    what = f"model_max_length = {shown(said)}" if said is not None else "no model_max_length"
    return positions, f"{place.name} says {what}: prompts are filled up to the text encoder's {positions} positions."


def complete(
    files: Mapping[str, bytes], facts: TokenizerFacts, length: int, cls: str = CLASSES[0], rows: int | None = None
) -> dict[str, bytes]:
    """The files with those that lack produced, and a `tokenizer.json` that fills up and cuts to `length`.

    `tokenizer.json` is what transformers' class `cls` makes of the files, so its ids are the same: the `tokenizers`
    library reads it alone. `rows` is how many ids the text encoder knows. Raises CheckpointError if the files don't
    make a tokenizer, or one whose ids latentc wouldn't give.
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
    model: dict[str, Any] = fast["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    config: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
    made = {
        "vocab.json": _json(model["vocab"]),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode(),
        "tokenizer_config.json": _json(config | tokens, indent=2),
        "special_tokens_map.json": _json(tokens, indent=2),
    }
    whole = _json(fast)
    try:
        check_tokenizer(whole)  # as the pipeline will
    except ValueError as exc:
        raise CheckpointError(f"The checkpoint's {facts.name} isn't as CLIP's are ({exc}). Fetch it again.") from exc
    _check_ids(whole, tokenizer, facts, length, rows)
    return made | dict(files) | {"tokenizer.json": whole}


def _check_ids(whole: bytes, tokenizer: Any, facts: TokenizerFacts, length: int, rows: int | None) -> None:
    """Raise CheckpointError where start, ids, end and padding aren't the row that transformers' tokenizer makes."""
    from tokenizers import Tokenizer

    refused = f"The checkpoint's {facts.name} doesn't give transformers' token ids"
    with mapped(CheckpointError, refused, "Fetch the checkpoint again."):
        fast = Tokenizer.from_str(whole.decode())
        added = [token.content for _, token in sorted(fast.get_added_tokens_decoder().items())]
        frame, pad = fast.encode("").ids[:2], tokenizer.pad_token_id
        fast.no_padding()
        fast.no_truncation()
        for text in (*SAMPLES, *(f"a {token} here" for token in added[-MAX_SAMPLES:])):
            ids = fast.encode(text, add_special_tokens=False).ids[: length - 2]
            ours = [frame[0], *ids, frame[1], *[pad] * (length - 2 - len(ids))]
            theirs = tokenizer(text, padding="max_length", max_length=length, truncation=True)["input_ids"]
            if ours != theirs:
                raise CheckpointError(
                    f"transformers reads {text!r} with the checkpoint's {facts.name} as {shown(theirs)}, and latentc "
                    f"would as {shown(ours)}. It isn't supported: a start, the prompt, an end and padding after it "
                    f"were expected. Its padding side is {tokenizer.padding_side!r}."
                )
    for what, number in zip(("start", "end", "padding"), (*frame, pad), strict=True):
        if rows is not None and number >= rows:
            raise CheckpointError(
                f"The checkpoint's {facts.name} has id {number:,} for its {what}, and {facts.encoder} knows ids up to "
                f"{rows - 1:,}: no prompt could be read. Its files don't belong together; fetch the checkpoint again."
            )


def load_tokenizer(files: Mapping[str, bytes], facts: TokenizerFacts, cls: str = CLASSES[0]) -> Any:
    """Transformers' tokenizer of these files. Raises CheckpointError if they don't make one, or it has no padding."""
    try:
        import transformers
    except ImportError as exc:
        raise RuntimeMissing(
            f"Reading a checkpoint's tokenizer needs transformers ({exc}). {install('export')}"
        ) from exc
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
        raise CheckpointError(
            f"The checkpoint's {facts.name} has neither vocab.json and merges.txt nor tokenizer.json (it has: "
            f"{', '.join(sorted(files)) or 'nothing'}). Fetch the checkpoint again."
        )
    library: Any = transformers
    refused = f"The files of the checkpoint's {facts.name} don't make a CLIP tokenizer"
    with tempfile.TemporaryDirectory(prefix="latentc-tokenizer-") as folder:
        for name, content in files.items():
            try:
                sound = _checked(name, content)
            except ValueError as exc:
                raise CheckpointError(f"{refused}: {name} isn't one ({exc}). Fetch them again.") from exc
            (Path(folder) / name).write_bytes(sound)
        with mapped(CheckpointError, refused, "Fetch them again."):
            loaded = getattr(library, cls).from_pretrained(folder, local_files_only=True)
    if loaded.pad_token_id is None:
        raise CheckpointError(f"The checkpoint's {facts.name} has no padding token; {facts.pad!r} was expected.")
    return loaded


def _checked(name: str, content: bytes) -> bytes:
    """A file of a tokenizer as its library may read it; raises `ValueError` for what it may not."""
    if name == "tokenizer.json":
        check_tokenizer(content)
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
