"""How far two pictures are apart, and what may be wrong with one.

Pictures are uint8 arrays in sRGB, [height, width, 3]. None of the metrics has learned weights, so they give the same
figure on any machine; a library that one of them needs and that isn't here is an error, never a figure left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ParityError, RuntimeMissing
from ..core.install import install
from ..core.tensors import PERFECT_DB, Array
from ..sampling.pixels import is_flat

PEAK = 255
BLACK = 3
"""A picture none of whose values is above this is called black: 1 percent of white."""

SMALLEST = 11
"""Side of SSIM's Gaussian window in pixels; a picture can't be smaller."""

HIGHER_IS_NEARER = ("psnr_db", "ssim")
"""Figures that grow as pictures come nearer; the others shrink."""


@dataclass(frozen=True)
class Figures:
    """How far a picture is from its reference."""

    psnr_db: float
    """Peak signal-to-noise ratio with 255 as the peak; `PERFECT_DB` for equal pictures."""
    ssim: float
    """Structural similarity, mean over pixels and channels; 1 for equal pictures."""
    flip: float
    """LDR-FLIP, mean over pixels: 0 for equal pictures, 1 at most."""
    mean_absolute_difference: float
    """Mean absolute difference of the values, 0 to 255."""


@dataclass(frozen=True)
class PictureSummary:
    """Figures of several pictures, each figure on its own."""

    median: Figures
    worst: Figures
    pictures: int


def compare(reference: Array, other: Array) -> Figures:
    """All figures of one picture.

    Raises `ParityError` for arrays that aren't pictures of one size, `RuntimeMissing` without a metric's library.
    """
    return Figures(
        psnr_db=picture_psnr_db(reference, other),
        ssim=ssim(reference, other),
        flip=flip(reference, other),
        mean_absolute_difference=mean_absolute_difference(reference, other),
    )


def picture_psnr_db(reference: Array, other: Array) -> float:
    """20 log10(255 / rmse) over all values, in dB; `PERFECT_DB` for equal pictures.

    `core.tensors.psnr_db` takes the reference's own largest value as the peak: right for tensors, whose range is
    anyone's guess, while a dark picture would come out worse than a bright one with the same error.
    """
    wide, mine = _pictures(reference, other)
    rmse = math.sqrt(float(np.mean((wide - mine) ** 2)))
    return min(PERFECT_DB, 20 * math.log10(PEAK / rmse)) if rmse else PERFECT_DB


def mean_absolute_difference(reference: Array, other: Array) -> float:
    """Mean absolute difference of the values, 0 to 255."""
    wide, mine = _pictures(reference, other)
    return float(np.abs(wide - mine).mean())


def ssim(reference: Array, other: Array) -> float:
    """Structural similarity, mean over pixels and channels.

    With the Gaussian window and the constants of Wang, Bovik, Sheikh and Simoncelli (2004), "Image quality
    assessment: from error visibility to structural similarity"; on each channel, not on luminance alone.
    """
    _pictures(reference, other)
    if min(reference.shape[:2]) < SMALLEST:
        raise ParityError(
            f"SSIM needs pictures of {SMALLEST} x {SMALLEST} pixels and more; these are {list(reference.shape)}. "
            "Compare larger ones."
        )
    measure: Any = _library("skimage.metrics", "SSIM", "scikit-image").structural_similarity
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(measure(reference, other, data_range=PEAK, channel_axis=2, **options))


def flip(reference: Array, other: Array) -> float:
    """LDR-FLIP, mean over pixels: what an eye sees flipping between the two, 0 to 1.

    At 67 pixels per degree, the authors' default: a 0.7 m wide screen of 3840 pixels, seen from 0.7 m. Source:
    Andersson et al. (2020), "FLIP: A Difference Evaluator for Alternating Images"; it is their own library.
    """
    _pictures(reference, other)
    evaluate: Any = _library("flip_evaluator", "FLIP", "flip-evaluator").evaluate
    pair = [np.ascontiguousarray(picture, dtype=np.float32) / np.float32(PEAK) for picture in (reference, other)]
    return float(evaluate(*pair, "LDR", inputsRGB=True, applyMagma=False, computeMeanError=True)[1])


def faults(array: Array) -> tuple[str, ...]:
    """What is wrong with a picture by name: `black` (no value above `BLACK`), `flat` (all pixels one colour)."""
    found = {"black": bool((array <= BLACK).all()), "flat": is_flat(array)}
    return tuple(name for name, there in found.items() if there)


def summarize(figures: Sequence[Figures]) -> PictureSummary:
    """Median and worst of each figure; a NaN anywhere makes both NaN. Raises `ParityError` where there are none."""
    if not figures:
        raise ParityError("No picture was compared, so nothing can be said of them. Give at least one.")
    rows = [asdict(each) for each in figures]
    columns: dict[str, NDArray[np.float64]] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return PictureSummary(
        median=Figures(**{name: float(np.median(column)) for name, column in columns.items()}),
        worst=Figures(
            **{
                name: float(column.min() if name in HIGHER_IS_NEARER else column.max())
                for name, column in columns.items()
            }
        ),
        pictures=len(figures),
    )


def _pictures(reference: Array, other: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both, wide enough to subtract; raises `ParityError` unless they are pictures of one size."""
    for array in (reference, other):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise ParityError(
                f"A picture to compare is {array.dtype} {list(array.shape)}; uint8 [height, width, 3] was expected. "
                "Compare pictures as the pipeline returns them."
            )
    if reference.shape != other.shape:
        raise ParityError(
            f"Pictures of {list(reference.shape)} and {list(other.shape)} can't be compared. Draw both at one size."
        )
    return reference.astype(np.float64), other.astype(np.float64)


def _library(module: str, metric: str, package: str) -> Any:
    try:
        return import_module(module)
    except Exception as exc:  # a compiled library that doesn't fit raises OSError and more
        raise RuntimeMissing(
            f"{metric} is computed by {package}, which can't be loaded here ({exc}). A gate without it would say "
            f"nothing. {install('bench')}"
        ) from exc
