"""The texts and token ids of references: prompts, and texts that test how a vocabulary is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CheckpointError
from ..core.install import in_tested_versions
from ..core.references import IDS, MASK, ReferenceTokens, hide
from ..core.tensors import Array, psnr_db

GENERAL = (
    "a lighthouse on a cliff, sunset, long exposure",
    "a photograph of an astronaut riding a horse",
    "a portrait of an old fisherman, oil painting",
    "two red apples and a blue bowl on a wooden table",
    "a street at night in the rain, neon signs, reflections",
)
SCENES = (
    "two small red houses on the left in a meadow at sunset",
    "a purple castle in a red canyon under a pink morning sky",
    "three yellow hot-air balloons above snowy mountains on a clear day",
    "a blue boat on the open sea in a thunderstorm",
    "an orange tent in a forest while snow is falling",
)
"""Prompts from the synthetic world that `scenes` was trained on."""

WORLDS = {"scenes": (SCENES, "a storm"), "": (GENERAL, "blurry, text")}
"""Prompts and a negative prompt for each shipped checkpoint; `""` is for all others."""

ODD_TEXTS = (
    "Two SMALL red Houses, in the MEADOW!",
    "it's a child's drawing; they'll say \u201cno\u201d",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m stra\u00dfe \u0130stanbul",
    "1234567890 3.14 2,000 50% #7 a1b2 x86-64",
    "\u732b\u304c\u597d\u304d \u043a\u043e\u0442 \u0633\u0644\u0627\u0645 \U0001f408\u200d\u2b1b\ufe0f",
    "  spaces \t tabs \n lines \u00a0 and \u3000 wide ones  ",
    "a_b-c+d=e/f\\g|h~i^j`k@l&m*n(o)p[q]r{s}t<u>v",
    "e\u0301 \ufb01 \u2460 \uff21",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
)
"""Texts that tokenizers read differently: case, quotes, accents, digits, other scripts, spaces, signs."""

ADDED_TEXTS = ("a {} here", "{0}, {0}!")
"""Texts in which tokens that were added to the vocabulary, such as textual inversions, are tested."""

MOST_WORDS = 4000
"""At most this many entries of a vocabulary are read as texts."""

MOST_ADDED = 200
"""At most this many added tokens are read in texts, one at a time."""

MAX_ROWS = 64
"""Every id of a vocabulary that fits in this many chunks is fed to the text encoder."""
SPREAD_IDS = 1200
"""At least this many evenly spaced ids of a larger vocabulary, which is also compared by a digest of its whole table.
They fill 16 rows of CLIP, or 5 of T5, each of which takes 2.4 TFLOP in T5-XXL.
"""

HIDDEN_EACH, HIDDEN_KINDS = 3, 4
"""Where the text encoder takes hidden ids, rows take turns in what is hidden: one in so many ids, a single one, a run,
or all but the first and the last.
"""

SAME_DB = 100.0
"""PSNR between the outputs for hidden ids and those for the mask that the text encoder's library takes."""


@dataclass(frozen=True)
class Frame:
    """Start, end and padding ids of a text encoder's prompts, and the number of ids that it reads."""

    start: int | None
    """None for T5, whose rows have no start."""
    end: int
    pad: int
    length: int

    @property
    def room(self) -> int:
        """Number of the prompt's ids in a row."""
        return self.length - (1 if self.start is None else 2)


def read_tokens(pipeline: Any, tokenizer: Any, frame: Frame) -> ReferenceTokens:
    """The ids that diffusers' pipeline gives for unusual texts, words of the whole vocabulary and added tokens."""
    vocabulary = [word.replace("\u2581", " ") for word in tokenizer.get_vocab()]  # T5 marks the start of a word
    words = sorted(
        word.removesuffix("</w>").strip()
        for word in vocabulary
        if (word.endswith("</w>") or word.startswith(" ")) and word.isascii()
    )
    chosen = words[:: max(1, len(words) // MOST_WORDS)]
    added = list(tokenizer.added_tokens_encoder)[-MOST_ADDED:]
    texts = (
        *ODD_TEXTS,
        *(" ".join(chosen[index : index + 20]) for index in range(0, len(chosen), 20)),
        *(text.format(token) for token in added for text in ADDED_TEXTS),
    )
    converts = hasattr(pipeline, "maybe_convert_prompt")  # Stable Diffusion 3's doesn't
    written = [pipeline.maybe_convert_prompt(text, tokenizer) if converts else text for text in texts]
    ids = (tuple(tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]) for text in written)
    return ReferenceTokens(
        start=frame.start, end=frame.end, pad=frame.pad, length=frame.length, texts=texts, ids=tuple(ids)
    )


def spread(frame: Frame, size: int, *, hides: bool) -> list[dict[str, Array]]:
    """Rows of ids spread over a vocabulary of `size` ids, each framed as a prompt: every id if `MAX_ROWS` hold them.
    With `hides`, some are hidden, but neither the first nor the last of a row.
    """
    ids = np.array([number for number in range(size) if number not in (frame.start, frame.end)], np.int64)
    room = frame.room
    rows = -(-len(ids) // room)
    if rows > MAX_ROWS:
        rows = -(-SPREAD_IDS // room)
        ids = ids[np.linspace(0, len(ids) - 1, rows * room).astype(int)]
    made: list[dict[str, Array]] = []
    places = np.arange(frame.length)
    parts = np.split(ids, range(room, len(ids), room))
    least = HIDDEN_KINDS if hides else 1  # a short vocabulary is repeated, for each way to hide some
    for part in parts * -(-least // len(parts)):
        row = np.full(frame.length, frame.pad, np.int64)
        framed = [*([] if frame.start is None else [frame.start]), *part, frame.end]
        row[: len(framed)] = framed
        hidden = _hidden(places, len(made)) if hides else places < 0
        made.append({IDS: hide(row, hidden), MASK: (places < len(framed)).astype(np.int64)})
    return made


def _hidden(places: NDArray[np.int64], row: int) -> NDArray[np.bool_]:
    """Which places of a row are hidden, neither the first nor the last: in turn some of them, one, a run, and all."""
    last = len(places) - 1
    inner = (places > 0) & (places < last)
    begin = 1 + 11 * row % (last - 1)
    match row % HIDDEN_KINDS:
        case 0:
            return inner & ((places + row) % HIDDEN_EACH == 0)
        case 1:
            return places == begin
        case 2:
            return inner & (places >= begin) & (places < begin + last // 2)
        case _:
            return inner


def check_hidden(encoder: Any, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Raise `CheckpointError` if hidden ids are not what a text encoder's own library hides by `attention_mask`.

    `outputs` are the part's for `feeds`, [rows, ids]; `encoder` is the module of transformers.
    """
    import torch

    ids = torch.as_tensor(feeds[IDS])
    attended = (ids >= 0) & torch.as_tensor(feeds.get(MASK, np.ones_like(feeds[IDS]))).bool()
    with torch.no_grad():
        own = encoder(input_ids=ids.where(ids >= 0, -1 - ids), attention_mask=attended.long(), return_dict=True)
    name = "last_hidden_state"
    if (found := psnr_db(own[name].float().numpy(), outputs[name])) < SAME_DB:
        raise CheckpointError(
            f"With hidden words, the text encoder does not compute what transformers does with the "
            f"same mask ({found:.1f} dB). This version of transformers is not supported. "
            f"{in_tested_versions('transformers')}"
        )


def full_chunk(tokenizer: Any, text: str) -> str:
    """The text, repeated to exactly one chunk of tokens."""
    chunk = tokenizer.model_max_length - 2

    def count(words: list[str]) -> int:
        return len(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])

    words = text.replace(",", "").split()
    chosen: list[str] = []
    while count([*chosen, words[len(chosen) % len(words)]]) <= chunk:
        chosen.append(words[len(chosen) % len(words)])
    short = next(word for word in (*words, *"abcdefghijklmnopqrstuvwxyz") if count([word]) == 1)
    return " ".join([*chosen, *[short] * (chunk - count(chosen))])
