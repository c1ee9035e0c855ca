"""How well a bundle of `scenes` draws what captions ask for: at several guidances, between a ceiling and a floor."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..core.errors import RequestError
from ..core.progress import Progress, quiet
from ..pipelines.pipeline import Pipeline
from ..runtimes.machine import Machine, machine
from ..scenes.judge import Run
from .meaning import (
    Caption,
    Pixels,
    captions,
    draw_captions,
    meaning_of,
    open_judge,
    read,
    reference_features,
    render_captions,
    require_scenes,
    shuffled,
)
from .records import Meaning

NEGATIVE, UNWANTED = "a night sky", "night"
"""A negative prompt, and the sky that it must keep away."""

COLUMNS = 4
WRAP = 33
"""Letters to a line below a picture of a sheet."""
LINE = 15
"""Pixels that one takes."""


@dataclass(frozen=True)
class Nights:
    """How often captions that leave the sky open are drawn at night, as shares of 1."""

    captions: int
    without: float
    """With no negative prompt."""
    unwanted: float
    """With `NEGATIVE`."""


@dataclass(frozen=True)
class Scores:
    """What was drawn, by what, and what it means."""

    engines: Mapping[str, str]
    machine: Machine
    steps: int
    captions: int
    ceiling: Meaning
    """Of the renderer's own pictures of the captions."""
    drawn: Mapping[float, Meaning]
    """By guidance."""
    floor: Mapping[float, Meaning]
    """The same pictures held against other captions; they have no distance of their own."""
    nights: Nights | None
    """With the last guidance."""


def score(
    pipeline: Pipeline,
    count: int,
    guidances: Sequence[float],
    steps: int = 20,
    nights: int = 0,
    on_progress: Progress = quiet,
) -> Scores:
    """Draw `count` held-out captions with each guidance; `nights` captions more without and with a negative prompt.

    Raises `RequestError` for nothing to draw and another checkpoint than `scenes`, and what drawing raises.
    """
    if count < 1 or not guidances:
        raise RequestError("There is nothing to score. Ask for one caption and one guidance at least.")
    require_scenes([pipeline.bundle])
    asked = captions(count)
    drawn: dict[float, Meaning] = {}
    floor: dict[float, Meaning] = {}
    with open_judge() as judge:
        references = reference_features(judge)
        ceiling = meaning_of(read(judge, render_captions(asked)), asked, references)
        for guidance in guidances:

            def tell(_what: str, share: float | None, guidance: float = guidance) -> None:
                on_progress(f"captions, guidance {guidance:g}", share)

            found = read(judge, draw_captions(pipeline, asked, guidance, steps, on_progress=tell))
            drawn[guidance] = meaning_of(found, asked, references)
            floor[guidance] = meaning_of(found, shuffled(asked), None)
        counted = _nights(pipeline, judge, nights, guidances[-1], steps, on_progress) if nights else None
    return Scores(pipeline.describe(), machine(), steps, count, ceiling, drawn, floor, counted)


def _nights(pipeline: Pipeline, judge: Run, count: int, guidance: float, steps: int, on_progress: Progress) -> Nights:
    asked = captions(count, lambda caption: not {"sky", "light"} & caption.said.keys())
    shares: list[float] = []
    for negative in ("", NEGATIVE):
        pictures = draw_captions(pipeline, asked, guidance, steps, negative, on_progress)
        shares.append(sum(one["sky"] == UNWANTED for one in read(judge, pictures).attributes) / count)
    return Nights(count, *shares)


def sheet(pictures: Pixels, asked: Sequence[Caption]) -> Image.Image:
    """Pictures in rows of `COLUMNS`, half as large again, each over its caption."""
    wrapped = ["\n".join(textwrap.wrap(caption.text, WRAP)) for caption in asked]
    side, gap = pictures.shape[1] * 3 // 2, 14
    text = 4 + LINE * max(lines.count("\n") + 1 for lines in wrapped)
    font = ImageFont.load_default(size=12)
    rows = -(-len(pictures) // COLUMNS)
    drawn = Image.new("RGB", (gap + COLUMNS * (side + gap), gap + rows * (side + text + gap)), "white")
    pen = ImageDraw.Draw(drawn)
    for index, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        left, top = gap + index % COLUMNS * (side + gap), gap + index // COLUMNS * (side + text + gap)
        drawn.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        pen.multiline_text((left, top + side + 5), lines, fill="black", font=font, spacing=1)
    return drawn
