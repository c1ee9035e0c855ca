"""The requests from which int8 is calibrated. None is a request of a proof or a benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.files import sha256_json


@dataclass(frozen=True)
class Trace:
    """A request, without its size: the engine's, or the model's own."""

    prompt: str
    steps: int
    guidance: float
    seed: int

    @property
    def guided(self) -> bool:
        """Whether a call of the denoiser has a second row."""
        return self.guidance > 1

    def mask(self, width: int, height: int) -> NDArray[np.uint8]:
        """What a model for inpainting generates, white, [height, width]."""
        top, bottom, left, right = AREAS[self.seed % len(AREAS)]
        eighths = np.zeros((8, 8), np.uint8)
        eighths[top:bottom, left:right] = 255
        return eighths[np.arange(height) * 8 // height][:, np.arange(width) * 8 // width]

    def keeps(self, call: int, calls: int) -> bool:
        """Whether one of the calls is used: the first, the last, and every third between, others in each trace."""
        return call in (0, calls - 1) or (call + self.seed) % 3 == 0


KINDS = ((4, 9.0), (12, 1.0), (8, 5.0))
"""Steps, and the scale of guidance, which traces take in turn. Few steps with much guidance give the largest values,
and many steps the latest timesteps; without guidance a call takes half the time."""

AREAS = ((0, 8, 0, 8), (0, 8, 0, 4), (2, 6, 2, 6), (4, 8, 0, 8))
"""What a model for inpainting generates, in turn: first and last row and column, in eighths of an image. It begins with
the whole image, and then changes parts of the one before."""

PROMPTS = (
    "a large white lighthouse on the right on a beach at night",
    "a portrait photo of an old sailor with a grey beard, soft window light",
    "three small blue houses in a snowy valley on a foggy morning",
    "a bowl of oranges on a wooden table, oil painting, thick brush strokes",
    "one red sailing boat on the left on the sea on a bright day",
    "two large yellow castles on a hill above a green field",
    "a crowded street market in the rain, neon signs, wide angle",
    "four orange tents by a lake in a forest at dawn",
    "a small purple hot-air balloon over a desert at noon",
    "a black cat asleep on a pile of books, close-up",
    "three tall white windmills in a meadow of flowers on a sunny day",
    "a red car on a mountain road, 35mm film",
    "two green trees beside a pink house under a stormy sky",
    "a spaceship above a ruined city, concept art, highly detailed",
    "a large orange pyramid in a sandy desert at sunset",
    "a plate of pasta with basil, studio light",
    "one small blue tower on snowy mountains under the stars",
    "pencil drawing of a dancer, white background",
)

TRACES = tuple(Trace(prompt, *KINDS[seed % len(KINDS)], seed) for seed, prompt in enumerate(PROMPTS))

CALIBRATED_ROWS = 3 * sum(trace.steps * (2 if trace.guided else 1) for trace in TRACES)
"""About how many rows of a denoiser are computed in f32 to quantize it: recorded, rounded by NNCF, and judged."""

CALIBRATED_MODELS = 30
"""About how many models are compiled in f32 to measure what layers cost: one for each group, and a few more."""

CALIBRATED_SECONDS = 45.0
"""What NNCF takes beside that, measured on `scenes`."""

EXACT_SHARE = 0.1
"""Share of the noise levels, the lowest, at which a denoiser's calls are computed exactly. Rounding in the last calls
costs most: no later call corrects it."""

LACKING_DB = 12.0
"""How far an int8 engine may be below its floor to be built again with more exact layers, and how much further these
go in all. One that is further off has a fault.
"""

REVISION = 3
"""Increased when other calls are recorded for the same traces."""


def digest() -> str:
    """What an engine that is calibrated depends on here; part of its key."""
    return sha256_json([REVISION, EXACT_SHARE, LACKING_DB, AREAS, *(asdict(one) for one in TRACES)])[:16]
