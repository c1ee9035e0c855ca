r"""Weights of words in a prompt, in the syntax and with the arithmetic of AUTOMATIC1111's web UI.

`(x)` has 1.1 times the weight, `[x]` has it divided by 1.1, `(x:1.3)` has 1.3 times the weight; nested brackets
multiply, a bracket that isn't closed reaches to the end, `\(` is a bracket of the text, and `BREAK` ends a chunk. The
embedding of each token is multiplied by its weight, and the chunk's mean is restored: the web UI's default emphasis,
`Original`. Embeddings of whole prompts have no weights.

Prompt editing, alternation and composition need several encodings of a prompt, which latentc does not support: they
are refused, as is a weight of the whole prompt, `a cat:1.3`, which multiplies the guidance in the web UI.

Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui, `modules/prompt_parser.py`, `sd_hijack_clip.py`,
`sd_emphasis.py` and `models/sd3/sd3_cond.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..core.record import shown
from ..core.tensors import Array

ROUND, SQUARE = 1.1, 1 / 1.1
"""Factors of round and of square brackets."""

COMMA_TOKENS = 20
"""A chunk ends at its last comma if at most this many tokens follow it (the web UI's `comma_padding_backtrack`)."""

MAX_WEIGHT = 100.0
"""Limit of the magnitude of a weight, so that embeddings stay finite."""
MAX_OPEN = 48
"""Limit of nested brackets; 48 round ones multiply by 97."""

_MARK = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*([+-]?[.\d]+)\s*\)|:")
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_LAST = re.compile(r"(?<!\\):\s*([+-]?(?:\d+\.?|\d*\.\d+))\s*\Z")
_WHEN = re.compile(r":\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*\Z")
_EXCERPT = 40


@dataclass(frozen=True)
class WeightedText:
    """A part of a prompt with one weight."""

    text: str
    weight: float = 1.0
    ends_chunk: bool = False
    """Whether it is `BREAK`, without a text of its own."""


@dataclass
class _Open:
    """A piece whose brackets may not be closed yet."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str, which: str = "prompt") -> tuple[WeightedText, ...]:
    """The pieces of a prompt in the web UI's syntax, which are tokenized separately; adjacent ones of one weight are
    joined. `which` is `prompt` or `negative prompt`.

    Raises `RequestError` for prompt editing, alternation and, in a prompt, composition with AND and a weight at its
    end; for BREAK inside brackets; and for weights that are not numbers, or above `MAX_WEIGHT`.
    """
    _refuse_unsupported(prompt, which)
    if which == "prompt":
        prompt = _LAST.sub("", prompt)  # a weight of 1, as others are refused
    found: list[_Open | None] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for one in found[opened[kind].pop() :]:
            if one is not None:
                one.weight *= factor

    def add(text: str) -> None:
        parts = _BREAK.split(text)
        for index, part in enumerate(parts):
            if index:
                if opened["("] or opened["["]:
                    raise RequestError(
                        f"The {which} has BREAK inside brackets, where the web UI reads it as a word with a negative "
                        "weight. Close the brackets before it, or write it in lower case."
                    )
                found.append(None)
            left = part.lstrip() if index else part
            found.append(_Open(left.rstrip() if index + 1 < len(parts) else left))

    at = 0
    for match in _MARK.finditer(prompt):
        if match.start() > at:
            add(prompt[at : match.start()])
        at, mark = match.end(), match.group()
        if mark.startswith("\\"):
            found.append(_Open(mark[1:]))
        elif mark in opened:
            opened[mark].append(len(found))
            _check_nesting(len(opened["("]) + len(opened["["]), which)
        elif match[1] is not None and opened["("]:
            close("(", _number(match[1], which))
        elif mark == ")" and opened["("]:
            close("(", ROUND)
        elif mark == "]" and opened["["]:
            close("[", SQUARE)
        else:
            found.append(_Open(mark))
    if at < len(prompt):
        add(prompt[at:])
    for kind, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[kind]:
            close(kind, factor)
    return _joined(found, which)


def emphasized(states: Sequence[Array], weights: Sequence[NDArray[np.float32]]) -> list[Array]:
    """Embeddings of tokens with their weights; the mean of each chunk, over all `states` together, stays.

    `states` are embeddings [chunks, tokens, width] that the denoiser reads side by side; `weights` are [chunks,
    tokens], for each of them. A chunk whose weights are all 1 stays exactly as it is. Raises `RequestError` if the
    weights cancel.
    """
    scaled = [state * each[..., None] for state, each in zip(states, weights, strict=True)]
    before, after = (
        np.sum([one.sum(axis=(1, 2), dtype=np.float64) for one in each], axis=0) for each in (states, scaled)
    )
    changed = np.any([(each != 1).any(axis=1) for each in weights], axis=0) & ~(
        np.equal(before, 0) & np.equal(after, 0)
    )
    ratio = np.ones(len(before))
    with np.errstate(divide="ignore", over="ignore"):
        np.divide(before, after, out=ratio, where=changed)
        made = [(one * ratio[:, None, None]).astype(np.float32) for one in scaled]
    if not all(np.isfinite(one).all() for one in made):
        raise RequestError(
            "The weights of the prompt cancel: the mean of its embeddings is 0, and cannot be restored. Use weights "
            "nearer to 1."
        )
    return made


def _refuse_unsupported(prompt: str, which: str) -> None:
    """Raise `RequestError` for syntax of the web UI that needs several encodings of the prompt."""
    if which == "prompt" and (found := _AND.search(prompt)):
        place = prompt[max(0, found.start() - 16) : found.end() + 16]
        raise RequestError(
            f"The {which} has the word AND ({shown(place)}), which composes several prompts in the web UI, and which "
            "latentc does not support. Write it in lower case, or use the prompt syntax plain."
        )
    if which == "prompt" and (found := _LAST.search(prompt)) and float(found[1]) != 1:
        raise RequestError(
            f"The {which} ends with the weight {shown(found[0])}, which multiplies the guidance in the web UI. Put \\ "
            "before the colon to have it read as text, or leave it out and pass a higher guidance."
        )
    opened: list[int] = []
    bars: list[bool] = []
    escaped = False
    for index, mark in enumerate(prompt):
        if escaped or mark == "\\":
            escaped = not escaped
        elif mark == "[":
            opened.append(index)
            bars.append(False)
            _check_nesting(len(opened), which)
        elif mark == "|" and bars:
            bars[-1] = True
        elif mark == "]" and opened:
            start, bar = opened.pop(), bars.pop()
            if bar or _WHEN.search(prompt[start:index]):
                what = "alternation" if bar else "prompt editing"
                place = prompt[start : min(index + 1, start + _EXCERPT)]
                raise RequestError(
                    f"The {which} has {what} ({shown(place)}), which latentc does not support. Leave it out, put \\ "
                    "before the bracket to have it read as text, or use the prompt syntax plain."
                )


def _check_nesting(depth: int, which: str) -> None:
    if depth > MAX_OPEN:
        raise RequestError(f"The {which} has more than {MAX_OPEN} nested brackets. Write weights as (x:1.3).")


def _number(text: str, which: str) -> float:
    try:
        return float(text)
    except ValueError as exc:
        raise RequestError(
            f"The {which} has the weight {shown(text)}, which is not a number. Write a weight such as (x:1.3)."
        ) from exc


def _joined(found: Sequence[_Open | None], which: str) -> tuple[WeightedText, ...]:
    """The pieces, with adjacent ones of one weight joined."""
    made: list[WeightedText] = []
    texts: list[str] = []
    for index, one in enumerate(found):
        if one is None:
            made.append(WeightedText("", ends_chunk=True))
            continue
        if not math.isfinite(one.weight) or abs(one.weight) > MAX_WEIGHT:
            raise RequestError(
                f"The {which} gives {shown(one.text)} the weight {one.weight:g}, but the limit is {MAX_WEIGHT:g}. Use "
                "a weight nearer to 1."
            )
        texts.append(one.text)
        following = found[index + 1] if index + 1 < len(found) else None
        if following is None or following.weight != one.weight:
            made.append(WeightedText("".join(texts), one.weight))
            texts.clear()
    return tuple(made) or (WeightedText(""),)
