r"""Weights of words in a prompt, in compel's syntax: `word++`, `(two words)1.3`, `"quoted"-`, `.and()`, `.blend()`.

`+` multiplies the weight by 1.1, `-` by 0.9, once for each sign; a number after brackets or quotes is the weight. They
may be nested, and then multiply. `("a", "b").and(1, 0.5)` joins the embeddings of texts along the tokens, and
`("a", "b").blend(0.7, 0.3)` adds them. A backslash before `(`, `)` or `"` makes it a sign of the text. What does not
fit the grammar is text.

`.swap()` needs control of cross-attention, and `withLora()` needs the adapter's file: both are refused.

Source: compel 2.5.1 (https://github.com/damian0815/compel), whose grammar has no specification apart from its code;
tests compare with what it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.errors import RequestError
from ..core.record import shown
from .emphasis import MAX_OPEN, MAX_WEIGHT, WeightedText

PLUS, MINUS = 1.1, 0.9
"""Factors of one `+` and of one `-`."""

_SPACE = re.compile(r"[ \t\n\r\v\f]*")
_SYNTAX = r'()",.+\-='
_WORD = re.compile(rf"(?:\\[{_SYNTAX}]|[-+](?![ \t\n\r\v\f{_SYNTAX}]|\Z)|[^ \t\n\r\v\f{_SYNTAX}])++")
_FREE = re.compile(r"[^ \t\n\r\v\f]+")
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_NUMBER = r"\d+\.\d*|\.\d+|\d+"
_SIGNS = re.compile(r"\++|-+")
_SIGNS_OR_NUMBER = re.compile(rf"\++|-+|{_NUMBER}")
_ATTEND = re.compile(rf"\s*\.attend\s*\(\s*(\++|-+|{_NUMBER})\s*\)")
_SWAP = re.compile(r"\s*\.swap\s*\(")
_JOINED = re.compile(r"\s*\)\s*\.(and|add|blend)\s*\(([^()]*)\)")
_OPERATOR = re.compile(r'"(?:\\"|[^"\n\r])*+"|(\.(?:and|add|blend|swap|attend)|(?:use|with)Lora)\s*\(')
_LINE = re.compile(r'([^\n\r]*(?<!\\)")?([^\n\r]*)')
"""A line up to its last quote without a backslash, and what follows, in which no quote can begin a quoted text."""
_ESCAPED = re.compile(r'\\{1,2}([()"])')
"""compel removes a backslash twice."""
_OPTION = re.compile(rf"[+-]?(?:{_NUMBER})")


@dataclass(frozen=True)
class Passage:
    """Texts whose embeddings are added; those of all parts of a prompt are joined along the tokens."""

    texts: tuple[tuple[WeightedText, ...], ...]
    shares: tuple[float, ...] = (1.0,)
    """Factor of each text's embeddings."""
    weight: float = 1.0
    """Weight of the whole part, above 0 it nears the embedding of an empty text."""


@dataclass(frozen=True)
class _Attention:
    """Nodes with one weight more."""

    weight: float
    nodes: _Nodes


_Nodes = list["str | _Attention"]
_Found = tuple[_Nodes, int]
"""Nodes, and where the text goes on."""


def parse_compel(prompt: str, which: str = "prompt") -> tuple[Passage, ...]:
    """The parts of a prompt in compel's syntax; `which` is `prompt` or `negative prompt`.

    Raises `RequestError` for `.swap()`, `withLora()`, operators that the grammar does not take where they are, weights
    that don't fit their texts, and weights above `MAX_WEIGHT`.
    """
    reader = _Reader(re.sub(r",(\S)", r", \1", prompt), which)
    joined = reader.joined()
    if joined is None:
        return (Passage((_flat(reader.free(), which),)),)
    operator, texts, numbers, normalized = joined
    read = tuple(_flat(nodes, which) for nodes in texts)
    numbers = numbers or [1.0] * len(read)
    if len(numbers) != len(read):
        raise RequestError(
            f"The {which} has {len(numbers)} weights in .{operator}(), but {len(read)} texts. Write a weight for each."
        )
    if any(abs(number) > MAX_WEIGHT for number in numbers):
        raise RequestError(f"The {which} has a weight above {MAX_WEIGHT:g} in .{operator}(). Use one nearer to 1.")
    if operator != "blend":
        return tuple(Passage((text,), weight=number) for text, number in zip(read, numbers, strict=True))
    total = sum(numbers) if normalized else 1.0
    if total == 0:
        raise RequestError(
            f"The weights of .blend() in the {which} add up to 0. Use others, or end them with no_normalize."
        )
    return (Passage(read, tuple(number / total for number in numbers)),)


class _Reader:
    """Reads one text; quoted texts within it have readers of their own."""

    def __init__(self, text: str, which: str, depth: int = 0) -> None:
        self.text, self.which, self.depth = text, which, depth
        self.used = set[int]()
        """Where operators are that were read."""
        self._groups: dict[int, _Found | None] = {}

    def joined(self) -> tuple[str, list[_Nodes], list[float], bool] | None:
        """The operator that joins texts, the texts, its weights, and whether it adds them as shares; else None."""
        at, texts = _space(self.text, 0), list[_Nodes]()
        if not self.text.startswith("(", at):
            return None
        while not texts or self.text.startswith(",", at):
            found = self._listed(_space(self.text, at + 1))
            if found is None:
                return None
            texts.append(found[0])
            at = _space(self.text, found[1])
        match = _JOINED.match(self.text, at)
        if match is None:
            return None
        if self.text[match.end() :].strip():
            raise RequestError(
                f"The {self.which} goes on after .{match[1]}(), where compel reads no text "
                f"({shown(self.text[match.end() :].strip())}). Put it into one of the texts."
            )
        options = [one.strip() for one in match[2].split(",")] if match[2].strip() else []
        normalized = match[1] != "blend" or "no_normalize" not in options[-1:]
        options = options if normalized else options[:-1]
        if wrong := next((one for one in options if not _OPTION.fullmatch(one)), None):
            raise RequestError(
                f"The {self.which} has {shown(wrong)} in .{match[1]}(), where numbers were expected. Write them as in "
                '("a cat", "a dog").blend(0.7, 0.3).'
            )
        return match[1], texts, [float(one) for one in options], normalized

    def free(self) -> _Nodes:
        """The whole text: what is not in brackets or quotes, and has no operator, is taken as it is."""
        nodes, at = _Nodes(), _space(self.text, 0)
        while at < len(self.text):
            self._refuse_lora(at)
            found = self._group(at) or self._word(at)
            found = self._operated(found, at)
            if found is None and (found := self._group(at)) is None:
                end = _FREE.match(self.text, at)
                assert end is not None
                found = [self.text[at : end.end()]], end.end()
            nodes += found[0]
            at = _space(self.text, found[1])
        self._refuse_left()
        return nodes

    def _strict(self, at: int) -> _Found:
        """What is inside brackets or quotes, up to a sign that has no place there."""
        nodes = _Nodes()
        while True:
            at = _space(self.text, at)
            self._refuse_lora(at)
            found = self._group(at) or self._word(at)
            found = self._operated(found, at) or found
            if found is None and self.text[at : at + 1] in (",", "."):
                found = [self.text[at]], at + 1
            if found is None:
                return nodes, at
            nodes += found[0]
            at = found[1]

    def _word(self, at: int) -> _Found | None:
        match = _WORD.match(self.text, at)
        return ([match.group()], match.end()) if match else None

    def _group(self, at: int) -> _Found | None:
        """What is in quotes or brackets; None if they aren't closed, or hold signs that have no place there."""
        if self.text[at : at + 1] not in ('"', "("):
            return None
        if at not in self._groups:
            self._groups[at] = self._quoted(at) if self.text[at] == '"' else self._round(at)
        return self._groups[at]

    def _round(self, at: int) -> _Found | None:
        self.depth += 1
        if self.depth > MAX_OPEN:
            raise RequestError(f"The {self.which} has more than {MAX_OPEN} nested brackets. Write weights as (x)1.3.")
        nodes, end = self._strict(at + 1)
        self.depth -= 1
        return (nodes, end + 1) if self.text.startswith(")", end) else None

    def _quoted(self, at: int) -> _Found | None:
        match = _QUOTED.match(self.text, at)
        if match is None:
            return None
        inner = self._inside(match)
        nodes, end = inner._strict(0)
        return (nodes or [""], match.end()) if end == len(inner.text) else None

    def _inside(self, match: re.Match[str]) -> _Reader:
        """The reader of a quoted text. Its quotes are signs of the text."""
        return _Reader(match[1].replace('\\"', '"').replace('"', '\\"'), self.which, self.depth)

    def _listed(self, at: int) -> _Found | None:
        """A text of `.and()` or `.blend()`."""
        if found := self._group(at) or self._word(at):
            return found
        match = _QUOTED.match(self.text, at)
        return (self._inside(match).free(), match.end()) if match else None

    def _operated(self, target: _Found | None, at: int) -> _Found | None:
        """The target at `at` with the weight that follows it; None if none does. Raises `RequestError` for a swap."""
        if target is None:
            return None
        nodes, end = target
        if match := _SWAP.match(self.text, end):
            raise RequestError(
                f"The {self.which} has .swap() ({shown(self.text[at : match.end()])}), which needs control of "
                "cross-attention, and which latentc does not support. Leave it out, or write the second text."
            )
        if match := _ATTEND.match(self.text, end):
            self.used.add(self.text.index(".attend", end))
            return [_Attention(_weight(match[1]), nodes)], match.end()
        signs = _SIGNS_OR_NUMBER if self.text[at] in '("' and self._group(at) else _SIGNS
        if match := signs.match(self.text, end):
            return [_Attention(_weight(match.group()), nodes)], match.end()
        return None

    def _refuse_lora(self, at: int) -> None:
        if (match := _OPERATOR.match(self.text, at)) and (match[1] or "").endswith("Lora"):
            raise RequestError(
                f"The {self.which} has {match[1]}(), and a prompt can't open an adapter's file in latentc. Pass it "
                "with --lora FILE:0.8 (in Python: adapters={...}), and leave it out."
            )

    def _refuse_left(self) -> None:
        """Raise `RequestError` for an operator that would be read as text."""
        # Searching the end of each quote that has none would take a time that grows as the square of the length.
        text = _LINE.sub(lambda line: (line[1] or "") + line[2].replace('"', "'"), self.text)
        for match in _OPERATOR.finditer(text):
            if match[1] and match.start() not in self.used and not match[1].endswith("Lora"):
                raise RequestError(
                    f"The {self.which} has {match[1]}() where compel does not read it. .and() and .blend() take the "
                    'whole prompt, as in ("a cat", "a dog").blend(0.7, 0.3), and .attend() takes one weight.'
                )


def _space(text: str, at: int) -> int:
    """Where the text goes on after white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _weight(text: str) -> float:
    if text[0] not in "+-":
        return float(text)
    return (PLUS if text[0] == "+" else MINUS) ** min(len(text), 1000)


def _flat(nodes: Sequence[str | _Attention], which: str) -> tuple[WeightedText, ...]:
    """Texts with their weights; those of one weight are joined."""
    made: list[WeightedText] = []
    for text, weight in _each(nodes, 1.0):
        if weight > MAX_WEIGHT:
            raise RequestError(
                f"The {which} gives {shown(text)} the weight {weight:g}, but the limit is {MAX_WEIGHT:g}. Use a weight "
                "nearer to 1."
            )
        if made and made[-1].weight == weight:
            text = f"{made.pop().text} {text}"
        made.append(WeightedText(text, weight))
    return tuple(made) or (WeightedText(""),)


def _each(nodes: Sequence[str | _Attention], weight: float) -> Iterator[tuple[str, float]]:
    for node in nodes:
        if isinstance(node, str):
            yield _ESCAPED.sub(r"\1", node), weight
        else:
            yield from _each(node.nodes, weight * node.weight)
