"""Prompt syntax of other tools that latentc reads as plain text, detected so that a notice can name it.

Single parentheses mean a weight of 1.1 in the web UI and ComfyUI, but ordinary text has them too: `(a small dog)` gives
no notice, `((a small dog))` does.

Sources: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features (weights, editing, alternation, BREAK,
AND, extra networks) and its `modules/prompt_parser.py`; https://comfyanonymous.github.io/ComfyUI_examples (embeddings);
https://github.com/adieyal/sd-dynamic-prompts (wildcards, variants); https://github.com/damian0815/compel (InvokeAI);
https://docs.novelai.net/image/strengthening-weakening.html; SwarmUI's `docs/Features/Prompt Syntax.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..core.request import PromptSyntax

MAX_FOUND = 1000
"""At most this many places are found; a prompt has at most 1500 tokens."""
LONGEST = 40

_BRACKET = re.compile(r"\\[()\[\]{}]|[()\[\]{}]")
_WEIGHT = re.compile(r"[^\s(\[]\s*:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*$")
_TIME = re.compile(r"\d:\d+\s*$")
_AFTER = re.compile(r"\+{1,4}(?=[\s,.)]|$)|-{2,4}(?=[\s,.)]|$)|\d?\.\d+(?=[\s,)]|$)")
_TAGS = "random|wildcard|alternate|fromto|repeat|segment|object|region|preset|setvar|var|model|clear"  # SwarmUI's
_WORDS = (
    ("LoRA tags", re.compile(r"<(?:lora|lyco|lycoris|locon|loha|dora):[^<>\n]{1,200}>", re.IGNORECASE)),
    ("hypernetwork tags", re.compile(r"<hypernet(?:work)?:[^<>\n]{1,200}>", re.IGNORECASE)),
    (
        "embeddings",
        re.compile(r"(?<!\w)embedding:[\w./\\-]+|<(?:embed|embedding):[^<>\n]{1,200}>", re.IGNORECASE),
    ),
    ("tags", re.compile(rf"<(?:{_TAGS})\b[^<>\n]{{0,20}}:[^<>\n]{{1,200}}>")),
    ("wildcards", re.compile(r"__(?!_)[\w*/.-]{1,100}?(?<!_)__(?!_)")),
    ("weights", re.compile(r"(?<![\w.:])-?\d+(?:\.\d+)?::[^:\n]{1,200}::")),
    ("blends", re.compile(r"\)\.(?:and|blend|swap)\(")),
    ("command-line flags", re.compile(r"(?<!\S)--(?:ar|stylize|niji|chaos|iw|sref|cref|no|style|v|s|q)\s+[\w.:/]+")),
)  # fmt: skip
_CAPITAL = re.compile(r"\b(?:BREAK|AND)\b")
_SIC = re.compile(r"[\W\d_]*(?:sic)?[\W\d_]*", re.IGNORECASE)


def foreign(prompt: str, is_token: Callable[[str], bool]) -> dict[str, list[str]]:
    """Syntax of other tools in a prompt: the places where it occurs, by kind.

    `is_token` tells whether the tokenizer has a token for `<name>`, as checkpoints with learned embeddings do.
    """
    found: dict[str, list[str]] = {}
    for _, (what, where) in zip(range(MAX_FOUND), _each(prompt, is_token), strict=False):
        found.setdefault(what, []).append(where)
    return found


def notice(
    which: str, prompt: str, is_token: Callable[[str], bool], read_as: PromptSyntax = "plain", left: str = ""
) -> list[str]:
    """A sentence for each kind of syntax in a prompt that is read as text; `which` is `prompt` or `negative prompt`.

    `left` is the text of a prompt that is left when its weights are read: some may have been taken as text.
    """
    found = [(what, one) for what, places in foreign(prompt, is_token).items() for one in places]
    found = [(what, one) for what, one in found if read_as not in _readers(what, one)]
    kept = ((what, one) for what, places in foreign(left, is_token).items() for one in places)
    found += [(what, one) for what, one in kept if _readers(what, one) == ("compel",) and read_as == "compel"]
    kinds: dict[str, list[str]] = {}
    for what, one in found:
        kinds.setdefault(what, []).append(one)
    notices: list[str] = []
    for what, places in kinds.items():
        able = dict.fromkeys(one for place in places for one in _readers(what, place) if one != read_as)
        unless = f", unless prompt_syntax is {' or '.join(able)}" if able else ""
        notices.append(
            f"The {which} has {what}{_examples(what, places)}. Other tools support that syntax; latentc reads it as "
            f"plain text{unless}."
        )
    return notices


def _readers(what: str, place: str) -> tuple[PromptSyntax, ...]:
    """The prompt syntaxes that read, or refuse, this place: that of the web UI `(x:1.2)`, compel's `(x)++`."""
    if what == "escaped brackets":
        return ("a1111", "compel") if place[1] in "()" else ("a1111",)
    if what == "blends" or (what == "weights" and place[0] == "(" and place[-1] != ")"):
        return ("compel",)
    web_ui = what == "weights" and (place[0], place[-1]) in (("(", ")"), ("[", "]"))
    return ("a1111",) if web_ui or what in ("the word BREAK", "the word AND") else ()


def _each(prompt: str, is_token: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    for what, pattern in _WORDS:
        yield from ((what, match.group()) for match in pattern.finditer(prompt))
    for match in re.finditer(r"<[\w-]{1,64}>", prompt):
        if not is_token(match.group()):
            yield "embeddings that this checkpoint does not have", match.group()
    for match in _CAPITAL.finditer(prompt):
        if not _shouted(prompt, match.start(), match.end()):
            yield f"the word {match.group()}", match.group()
    yield from _bracketed(prompt)


def _shouted(prompt: str, start: int, end: int) -> bool:
    """Whether the words on both sides are in capitals too, as in the text of a sign: ROMEO AND JULIET."""
    before = re.search(r"(\w+)[ \"']{1,3}$", prompt[max(0, start - 40) : start])
    after = re.match(r"[ \"']{1,3}(\w+)", prompt[end : end + 40])
    return bool(before and after and before[1].isupper() and after[1].isupper())


def _bracketed(prompt: str) -> Iterator[tuple[str, str]]:
    """The meaning and text of brackets, from the inner ones to the outer ones."""
    opened: list[int] = []
    for match in _BRACKET.finditer(prompt):
        mark, at = match.group(), match.start()
        if mark.startswith("\\"):
            yield "escaped brackets", prompt[at : at + 12].split()[0]
        elif mark in "([{":
            opened.append(at)
        elif opened and prompt[opened[-1]] + mark in ("()", "[]", "{}"):
            start = opened.pop()
            if what := _READ[mark](prompt, start, at):
                end = _AFTER.match(prompt, at + 1, at + 8) if mark == ")" else None
                yield what, prompt[start : min(end.end() if end else at + 1, start + 2 * LONGEST)]
        else:
            opened.clear()


def _round(prompt: str, start: int, end: int) -> str | None:
    tail = prompt[max(start + 1, end - 24) : end]
    twice = prompt[start + 1] == "(" and prompt[end - 1] == ")" and end - start > 4
    weighted = _WEIGHT.search(tail) and not _TIME.search(tail)  # (at 10:30), (16:9)
    return "weights" if weighted or twice or _AFTER.match(prompt, end + 1, end + 8) else None


def _square(prompt: str, start: int, end: int) -> str | None:
    inside = prompt[start + 1 : min(end, start + 400)]
    if "|" in inside:
        return "alternation"
    if _WEIGHT.search(prompt[max(start + 1, end - 24) : end]) and not _TIME.search(inside[-24:]):
        return "prompt editing"
    return None if '"' in inside or _SIC.fullmatch(inside[:40]) else "weights"


def _curly(prompt: str, start: int, end: int) -> str | None:
    inside = prompt[start + 1 : min(end, start + 400)]
    if "|" in inside or "$$" in inside:
        return "variants"
    return None if '"' in inside or ":" in inside or _SIC.fullmatch(inside[:40]) else "weights"


_READ = {")": _round, "]": _square, "}": _curly}


def _examples(what: str, places: list[str]) -> str:
    first, more = " ".join(places[0].split()), f" and {len(places) - 1} more" if len(places) > 1 else ""
    if what.endswith(first):
        return f", {len(places)} times" if more else ""
    return f": {first if len(first) <= LONGEST else f'{first[: LONGEST - 3]}...'}{more}"
