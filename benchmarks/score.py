"""Score how well a bundle of `scenes` follows captions, at several guidances, between an upper and a lower bound."""

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
"""A negative prompt, and the attribute that it should suppress."""

COLUMNS = 4
WRAP = 33
"""Characters per line below an image of a sheet."""
LINE = 15
"""Height of a line in pixels."""


@dataclass(frozen=True)
class Nights:
    """Share of images at night, for captions that don't specify the sky, 0 to 1."""

    captions: int
    without: float
    """Without a negative prompt."""
    unwanted: float
    """With the negative prompt `NEGATIVE`."""


@dataclass(frozen=True)
class Scores:
    """The scores, the engines and the machine."""

    engines: Mapping[str, str]
    machine: Machine
    steps: int
    captions: int
    ceiling: Meaning
    """Scores of rendered images of the captions: the upper bound."""
    drawn: Mapping[float, Meaning]
    """Scores by guidance."""
    floor: Mapping[float, Meaning]
    """Scores of the same images against other captions, by guidance: the lower bound. Without distances."""
    nights: Nights | None
    """At the last guidance."""


def score(
    pipeline: Pipeline,
    count: int,
    guidances: Sequence[float],
    steps: int = 20,
    nights: int = 0,
    on_progress: Progress = quiet,
) -> Scores:
    """Score `count` unseen captions at each guidance, and `nights` more without and with a negative prompt.

    Raises `RequestError` for no captions or guidances and for a checkpoint other than `scenes`, and what the pipeline
    raises.
    """
    if count < 1 or not guidances:
        raise RequestError("There is nothing to score. Request at least one caption and one guidance.")
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
    """Lay out images in `COLUMNS` columns, enlarged by half, each with its caption below."""
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
