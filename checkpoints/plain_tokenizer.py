"""`tokenizer.json` from a checkpoint's tokenizer files, without transformers.

It is the file that `tokenizer.complete` gets from transformers, built by the same calls of the `tokenizers` library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import shown
from ..core.vocabulary import SPACES, SPLITS, check_merges, check_settings, check_tokenizer, check_vocabulary, mapped
from .families import TokenizerFacts
from .tokenizer import CONFIG, KINDS

SPECIAL = "special_tokens_map.json"
AGAIN = "Pass the tokenizer that belongs to the graphs with --configs."
FLAGS = ("lstrip", "normalized", "rstrip", "single_word")
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")

Special = Mapping[str, Mapping[str, Any]]


def complete_plainly(
    files: Mapping[str, bytes], facts: TokenizerFacts, length: int, cls: str | None = None, rows: int | None = None
) -> dict[str, bytes]:
    """The files, with a `tokenizer.json` that pads and truncates to `length` ids.

    An existing `tokenizer.json` is used, otherwise it is built from `vocab.json` and `merges.txt` as CLIP's. `rows` is
    the number of ids that the text encoder knows. Raises CheckpointError for files that aren't a tokenizer, for one
    without a padding token, and for ids that the text encoder doesn't know.
    """
    from tokenizers import Tokenizer

    kind = KINDS[facts.kind]
    refused = f"The files of {facts.name} are not a {kind.title} tokenizer"
    try:
        settings = check_settings(files.get(SPECIAL, b"{}")) | check_settings(files.get(CONFIG, b"{}"))
        special = {key: _token(key, settings[key]) for key in NAMES if settings.get(key) is not None}
        if "pad_token" not in special:
            raise CheckpointError(
                f"{facts.name} states no padding token (pad_token in {CONFIG} or {SPECIAL}); {facts.pad!r} was "
                f"expected. {AGAIN}"
            )
        rebuilt = bool(kind.vocabulary) and kind.vocabulary <= files.keys() and cls not in kind.classes[2:]
        if "tokenizer.json" in files and not rebuilt:
            whole = check_tokenizer(files["tokenizer.json"], (kind.model,))
            if kind.model == "Unigram" and cls not in kind.classes[2:]:
                whole = _as_t5(whole)
        else:
            with mapped(CheckpointError, refused, AGAIN):
                whole = _built(files, facts, special, settings)
    except ValueError as exc:
        raise CheckpointError(f"{refused} ({exc}). {AGAIN}") from exc
    with mapped(CheckpointError, refused, AGAIN):
        fast = Tokenizer.from_str(json.dumps(whole | {"truncation": None, "padding": None}))
        frame = fast.encode("").ids
        pad = fast.token_to_id(special["pad_token"]["content"])
    for number in (*frame, pad):
        if number is None or (rows is not None and number >= rows):
            raise CheckpointError(
                f"{facts.name} frames prompts with the ids {frame} and pads them with {shown(pad)}, but "
                f"{facts.encoder} only knows ids up to {(rows or 0) - 1:,}. The files do not belong together. {AGAIN}"
            )
    whole["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    whole["padding"] = {
        "strategy": {"Fixed": length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": pad,
        "pad_type_id": 0,
        "pad_token": special["pad_token"]["content"],
    }
    content = (json.dumps(whole, ensure_ascii=False) + "\n").encode()
    check_tokenizer(content, (kind.model,))
    return dict(files) | {"tokenizer.json": content}


def _as_t5(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer with the steps that transformers 5 gives every T5, whatever the file says."""
    normalizer = cast("dict[str, Any]", whole.get("normalizer") or {})
    steps = cast("list[dict[str, Any]]", normalizer.get("normalizers", [normalizer]))
    marks = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return {
        **whole,
        "normalizer": next((one for one in steps if one.get("type") == "Precompiled"), None),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, marks]},
        "decoder": marks,
        "model": {"byte_fallback": False, **cast("dict[str, Any]", whole["model"])},
    }


def _token(key: str, value: object) -> dict[str, Any]:
    """A special token's text and flags; a bare text has transformers' flags."""
    found = {"content": value, "normalized": False} if isinstance(value, str) else value
    if not isinstance(found, dict) or not isinstance(cast("dict[str, Any]", found).get("content"), str):
        raise ValueError(f"{key} is {shown(value)}; expected a token")  # noqa: TRY004 - an error in a file
    return cast("dict[str, Any]", found)


def _built(
    files: Mapping[str, bytes], facts: TokenizerFacts, special: Special, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """CLIP's tokenizer from its vocabulary and merges. Source: transformers 5, `CLIPTokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    if not KINDS[facts.kind].vocabulary or not KINDS[facts.kind].vocabulary <= files.keys():
        lacks = "".join(f", and no {' and '.join(sorted(one))}" for one in (KINDS[facts.kind].vocabulary,) if one)
        raise CheckpointError(
            f"{facts.name} has no tokenizer.json{lacks} (it has: {', '.join(sorted(files)) or 'nothing'}). {AGAIN}"
        )
    vocabulary = check_vocabulary(files["vocab.json"])
    lines = [line for line in files["merges.txt"].decode("utf-8").splitlines() if line.strip()]
    merges = [line for line in lines if not line.startswith("#version")]
    check_merges(merges)
    texts = {key: str(token["content"]) for key, token in special.items()}
    start, end = (texts.get(key) for key in ("bos_token", "eos_token"))
    if start not in vocabulary or end not in vocabulary:
        raise CheckpointError(f"{facts.name} states no start and end of a prompt that are in its vocabulary. {AGAIN}")
    listed = cast("dict[str, object]", settings.get("added_tokens_decoder") or {})
    added = [_token("added_tokens_decoder", one) for one in listed.values()]
    more = check_vocabulary(files["added_tokens.json"]) if "added_tokens.json" in files else {}
    known = {str(one["content"]) for one in (*added, *special.values())} | vocabulary.keys()
    if unknown := sorted(more.keys() - known):
        raise CheckpointError(
            f"{facts.name} adds {shown(unknown[0])} in added_tokens.json without stating how it is read. Save it as "
            f"tokenizer.json, or leave the token out."
        )
    pairs = [cast("tuple[str, str]", tuple(merge.split(" "))) for merge in merges]
    made = Tokenizer(
        BPE(
            vocabulary,
            pairs,
            dropout=None,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=texts.get("unk_token"),
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(SPACES[0][0]), SPACES[0][1]), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[1]), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    tokens = {str(one["content"]): one for one in (*special.values(), *added)}
    for content, one in tokens.items():
        flags = {name: bool(one[name]) for name in FLAGS if name in one}
        token = AddedToken(content, special=True, **flags)
        library: Any = made
        (library.add_special_tokens if one.get("special", True) else library.add_tokens)([token])
    made.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), trim_offsets=False, add_prefix_space=False
    )
    return json.loads(made.to_str())
