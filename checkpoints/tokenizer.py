"""CLIP's tokenizer: the vocabulary that ships with the package, and the files of one.

All families share OpenAI CLIP's byte-pair encoding and differ only in the token that fills up a
prompt. Its merges ship compressed (NOTICE.md); the vocabulary follows from them.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, RuntimeMissing
from ..core.install import install
from ..core.vocabulary import check_merges, check_settings, check_tokenizer, check_vocabulary, mapped
from .families import TokenizerFacts

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
START, END = "<|startoftext|>", "<|endoftext|>"

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


def complete(files: Mapping[str, bytes], facts: TokenizerFacts, length: int) -> dict[str, bytes]:
    """The files with those that lack produced, and a `tokenizer.json` that fills up and cuts to `length`.

    `tokenizer.json` is what transformers' CLIPTokenizer makes of the files, so its ids are the same:
    the `tokenizers` library reads it alone. Raises CheckpointError if the files don't make a tokenizer.
    """
    tokenizer = load_tokenizer(files, facts)
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
    return made | dict(files) | {"tokenizer.json": whole}


def load_tokenizer(files: Mapping[str, bytes], facts: TokenizerFacts) -> Any:
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
            loaded = library.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
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
