"""The embeddings of a prompt in compel's syntax: for each token, a sum of the embeddings of several rows of ids.

A weight above 1 moves an embedding away from that of an empty text at its place, and one below 1 towards it. A weight
below 1 is also blended with the embedding of the text in which these words are hidden from the encoder's attention:
compel's default, `DownweightMode.MASK`. With `DownweightMode.REMOVE`, they are left out instead. The embedding of a
whole prompt (SDXL's `text_embeds`) is that of the prompt as it is written.

Source: compel 2.5.1, `EmbeddingsProvider.get_embeddings_for_weighted_prompt_fragments`, `_chunk_and_pad_token_ids` and
`_get_token_ranges_for_fragments`, without truncation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..core.request import Downweight
from .compel import Passage
from .emphasis import WeightedText
from .vocabulary import MAX_CHUNKS, Vocabulary, too_long, units_of

MOST_ROWS = 100
"""Limit of the rows that a prompt is encoded in."""

LEAST = 1e-5
"""Smallest weight with which a blend is computed."""

_WORD = "</w>"
_ENDS = ((f".{_WORD}",), tuple(f"{mark}{_WORD}" for mark in ".,;:"))
"""Tokens after which a long text is split, best first: sentences, phrases; then words."""

_Token = tuple[int, float, bool, int]
"""An id, its weight, whether it continues a textual inversion, and the index of its piece of the text."""

_Row = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids without start and end, and the places in the row that are hidden."""

_Term = tuple[float, list[list[_Token]], tuple[int, ...]]
"""A share, the chunks of a text, and the places that are hidden, counted through all chunks."""


@dataclass
class Mixture:
    """Rows of ids, and for each chunk of the prompt the factors with which their embeddings are added."""

    hides: bool = False
    """Whether words of weights below 1 are hidden, or left out."""
    rows: dict[_Row, int] = field(default_factory=dict[_Row, int])
    """Index of each row."""
    chunks: list[dict[int, NDArray[np.float64]]] = field(default_factory=list[dict[int, NDArray[np.float64]]])
    """For each chunk, by the index of a row: the factor of each id, [77]."""
    count: int = 0
    """Number of tokens of the prompt."""

    def row(self, ids: Sequence[int], hidden: Sequence[int] = ()) -> int:
        """The index of a row, which is added if it isn't there. Raises `RequestError` for too many."""
        found = self.rows.setdefault((tuple(ids), tuple(hidden)), len(self.rows))
        if found >= MOST_ROWS:
            raise RequestError(
                f"The prompt would be encoded more than {MOST_ROWS} times, for each weight below 1 and each chunk. Use "
                "fewer such weights, or a shorter prompt."
            )
        return found

    def factors(self, chunks: int, rows: int, length: int) -> NDArray[np.float32]:
        """Factors of all ids of all rows, [chunks, rows, length]. Chunks that the prompt lacks are those of no text."""
        made = np.zeros((chunks, rows, length), np.float32)
        for chunk, known in enumerate(self.chunks):
            for row, factors in known.items():
                made[chunk, row] = factors
        made[len(self.chunks) :, self.row([])] = 1
        return made

    def hidden(self, rows: int, length: int) -> NDArray[np.bool_]:
        """Which ids of all rows are hidden, [rows, length]."""
        made = np.zeros((rows, length), np.bool_)
        for (_, places), row in self.rows.items():
            made[row, list(places)] = True
        return made

    def _add(self, chunk: int, ids: Sequence[int], factors: NDArray[np.float64], hidden: Sequence[int] = ()) -> None:
        """Add the embeddings of a row to a chunk."""
        while len(self.chunks) <= chunk:
            self.chunks.append({})
        if factors.any():
            index = self.row(ids, hidden)
            self.chunks[chunk][index] = self.chunks[chunk].get(index, 0.0) + factors

    def add_part(self, vocabulary: Vocabulary, part: Passage) -> None:
        """Add the chunks of a part of the prompt."""
        terms = [
            (share * factor, rows, hidden)
            for text, share in zip(part.texts, part.shares, strict=True)
            for factor, rows, hidden in self._blended(vocabulary, text)
        ]
        first = len(self.chunks)
        for chunk in range(max(len(rows) for _, rows, _ in terms)):
            self._add(first + chunk, [], np.full(vocabulary.length, 1 - part.weight))
            for factor, rows, hidden in terms:
                ids, weights = _placed(vocabulary, rows[chunk] if chunk < len(rows) else [])
                places = [at % vocabulary.length for at in hidden if at // vocabulary.length == chunk]
                self._add(first + chunk, ids, part.weight * factor * weights, places)
                self._add(first + chunk, [], part.weight * factor * (1 - weights))

    def _blended(self, vocabulary: Vocabulary, text: Sequence[WeightedText]) -> list[_Term]:
        """The text, and for each weight below 1 the text with these words hidden, or left out. Shares add up to 1."""
        chunks = _split(vocabulary, text)
        found: list[_Term] = [(1.0, chunks, ())]
        for index, piece in enumerate(text):
            if piece.weight >= 1:
                continue
            share = math.tan((1 - max(LEAST, piece.weight)) * math.pi / 2)
            if self.hides:
                found.append((share, chunks, _places(vocabulary, chunks, index)))
            else:
                found.append((share, _split(vocabulary, [*text[:index], *text[index + 1 :]]), ()))
        total = sum(share for share, *_ in found)
        return [(share / total, rows, hidden) for share, rows, hidden in found]


def mixture(vocabulary: Vocabulary, prompt: str, parts: Sequence[Passage], downweight: Downweight) -> Mixture:
    """The rows of a prompt that `parse_compel` has read. The first is that of the prompt as it is written, cut to one
    chunk. Raises `RequestError` for more tokens or rows than the limits.
    """
    made = Mixture(downweight == "mask")
    made.row([one for unit in units_of(vocabulary, prompt) for one in unit][: vocabulary.room])
    for part in parts:
        made.add_part(vocabulary, part)
        for text in part.texts:
            made.count += sum(map(len, _split(vocabulary, text)))
    return made


def _places(vocabulary: Vocabulary, chunks: Sequence[Sequence[_Token]], piece: int) -> tuple[int, ...]:
    """Where a piece of a text is, from its first id to its last: also padding between two chunks, as in compel, but
    neither the first nor the last place of a chunk.
    """
    length = vocabulary.length
    places = [
        chunk * length + place
        for chunk, tokens in enumerate(chunks)
        for place, token in enumerate(tokens, start=1)
        if token[3] == piece
    ]
    return tuple(at for at in range(places[0], places[-1] + 1) if at % length not in (0, length - 1)) if places else ()


def _split(vocabulary: Vocabulary, text: Sequence[WeightedText]) -> list[list[_Token]]:
    """The tokens of a text in chunks, at least one: each ends with a sentence, else a phrase, else a word."""
    tokens = [
        (one, piece.weight, place > 0, index)
        for index, piece in enumerate(text)
        for unit in units_of(vocabulary, piece.text)
        for place, one in enumerate(unit)
    ]
    if len(tokens) > MAX_CHUNKS * vocabulary.room:
        raise too_long(len(tokens), vocabulary)
    chunks: list[list[_Token]] = []
    while len(tokens) > vocabulary.room:
        end = _end(vocabulary, tokens)
        chunks.append(tokens[:end])
        tokens = tokens[end:]
    return [*chunks, tokens]


def _end(vocabulary: Vocabulary, tokens: Sequence[_Token]) -> int:
    """Where the first chunk of more tokens than it holds ends; never within a textual inversion."""
    able = [end for end in range(1, vocabulary.room + 1) if not tokens[end][2]]
    words = [vocabulary.tokenizer.id_to_token(one) or "" for one, *_ in tokens[: vocabulary.room]]
    for ends in _ENDS:
        if found := [end for end in able if words[end - 1] in ends]:
            return found[-1]
    found = [end for end in able if words[end - 1].endswith(_WORD)] or able
    return found[-1] if found else vocabulary.room


def _placed(vocabulary: Vocabulary, tokens: Sequence[_Token]) -> tuple[list[int], NDArray[np.float64]]:
    """The ids of a chunk, and the weight of each place of its row; start, end and padding have 1."""
    weights = np.ones(vocabulary.length)
    weights[1 : 1 + len(tokens)] = [weight for _, weight, *_ in tokens]
    return [one for one, *_ in tokens], weights
