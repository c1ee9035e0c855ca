"""Generated images side by side: a reference, and each other image with its amplified difference."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.reading import regular
from ..core.request import MAX_SIDE
from .reading import AXES, Section
from .records import Measurement

MAX_PIXELS = MAX_SIDE * MAX_SIDE
AMPLIFIED = 10
"""Factor by which differences are amplified."""


@dataclass(frozen=True)
class PictureCell:
    """The first image of a subject, as PNG in base64."""

    name: str
    picture: str
    difference: str | None
    """None for the reference itself, and for another size."""
    mean_absolute_difference: float | None
    """Mean over pixel values, 0 to 255."""
    nearest: bool = False
    """Whether it is known to be the closest to parity's reference: every row with an image has parity."""


def cells(section: Section) -> list[PictureCell]:
    """The reference cell and then the others; none if fewer than two images can be read.

    Records don't contain the reference's own image, so the row that is closest to it represents it; the fastest row if
    none has parity.
    """
    drawn = [(row, picture) for row in section.engines if (picture := _first(row.pictures)) is not None]
    if len(drawn) < 2:
        return []
    reference, wanted = max(drawn, key=lambda one: _nearness(one[0]))
    others = [_cell(row.subject.name, picture, wanted) for row, picture in drawn if row is not reference]
    known = all(math.isfinite(max(_nearness(row))) for row, _ in drawn)
    return [PictureCell(reference.subject.name, _encoded(wanted), None, None, known), *others]


def _nearness(row: Measurement) -> tuple[float, ...]:
    """Sort key for `max`: the parity figures in the order of `AXES`; a missing one is the lowest."""
    found = (axis.of(row) for axis in AXES)
    return tuple(value if value is not None and not math.isnan(value) else -math.inf for value in found)


def _first(paths: Sequence[str]) -> NDArray[np.uint8] | None:
    """The first image; None if it can't be read as PNG of at most `MAX_PIXELS`."""
    try:
        with regular(paths[0]) as file, Image.open(file, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB")) if image.width * image.height <= MAX_PIXELS else None
    except (IndexError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _cell(name: str, picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> PictureCell:
    if picture.shape != reference.shape:
        return PictureCell(name, _encoded(picture), None, None)
    apart = np.abs(picture.astype(np.int16) - reference)
    loud = np.clip(apart * AMPLIFIED, 0, 255).astype(np.uint8)
    return PictureCell(name, _encoded(picture), _encoded(loud), float(apart.mean()))


def _encoded(picture: NDArray[np.uint8]) -> str:
    stream = BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
