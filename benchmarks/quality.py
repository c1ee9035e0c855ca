"""Image metrics: differences between two images, and faults of one.

Images are uint8 arrays in sRGB, [height, width, 3]. None of the metrics has learned weights, so they give the same
figure on any machine. A missing library of a metric is an error; no figure is silently omitted.
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
"""An image with no value above this is black: 1 percent of white."""

SMALLEST = 11
"""Side of SSIM's Gaussian window in pixels: the smallest side of an image."""

HIGHER_IS_NEARER = ("psnr_db", "ssim")
"""Figures for which higher is closer; for the others lower is closer."""


@dataclass(frozen=True)
class Figures:
    """Differences between an image and its reference."""

    psnr_db: float
    """Peak signal-to-noise ratio with 255 as the peak; `PERFECT_DB` for equal images."""
    ssim: float
    """Structural similarity, mean over pixels and channels; 1 for equal images."""
    flip: float
    """LDR-FLIP, mean over pixels: 0 for equal images, 1 at most."""
    mean_absolute_difference: float
    """Mean absolute difference of the values, 0 to 255."""


@dataclass(frozen=True)
class PictureSummary:
    """Median and worst of each figure over several images."""

    median: Figures
    worst: Figures
    pictures: int


def frames_of(images: Array) -> Array:
    """The frames of a video, [frames, height, width, 3], or an image as its only frame."""
    return images if images.ndim == 4 else images[None]


def compare(reference: Array, other: Array) -> Figures:
    """Compute all figures of one image.

    Raises `ParityError` for arrays that aren't images of one size, `RuntimeMissing` without a metric's library.
    """
    return Figures(
        psnr_db=picture_psnr_db(reference, other),
        ssim=ssim(reference, other),
        flip=flip(reference, other),
        mean_absolute_difference=mean_absolute_difference(reference, other),
    )


def picture_psnr_db(reference: Array, other: Array) -> float:
    """20 log10(255 / rmse) over all values, in dB; `PERFECT_DB` for equal images.

    `core.tensors.psnr_db` takes the reference's largest value as the peak, which suits tensors of unknown range. For
    images it would rate a dark one worse than a bright one with the same error.
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
            f"SSIM needs images of at least {SMALLEST} x {SMALLEST} pixels; these are {list(reference.shape)}. "
            "Compare larger images."
        )
    measure: Any = _library("skimage.metrics", "SSIM", "scikit-image").structural_similarity
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(measure(reference, other, data_range=PEAK, channel_axis=2, **options))


def flip(reference: Array, other: Array) -> float:
    """LDR-FLIP, mean over pixels: the difference seen when alternating between the two images, 0 to 1.

    At 67 pixels per degree, the authors' default: a 0.7 m wide screen of 3840 pixels, seen from 0.7 m. Source:
    Andersson et al. (2020), "FLIP: A Difference Evaluator for Alternating Images", computed by the authors' library.
    """
    _pictures(reference, other)
    evaluate: Any = _library("flip_evaluator", "FLIP", "flip-evaluator").evaluate
    pair = [np.ascontiguousarray(picture, dtype=np.float32) / np.float32(PEAK) for picture in (reference, other)]
    return float(evaluate(*pair, "LDR", inputsRGB=True, applyMagma=False, computeMeanError=True)[1])


def faults(array: Array) -> tuple[str, ...]:
    """Names of faults in an image: `black` (no value above `BLACK`), `flat` (all pixels one colour)."""
    found = {"black": bool((array <= BLACK).all()), "flat": is_flat(array)}
    return tuple(name for name, there in found.items() if there)


def summarize(figures: Sequence[Figures]) -> PictureSummary:
    """Median and worst of each figure; NaN if any is NaN. Raises `ParityError` for no figures."""
    if not figures:
        raise ParityError("There are no compared images to summarize. Compare at least one.")
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
    """Both as f64; raises `ParityError` unless they are images of one size."""
    for array in (reference, other):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise ParityError(
                f"An image to compare is {array.dtype} {list(array.shape)}; uint8 [height, width, 3] was expected. "
                "Compare images as the pipeline returns them."
            )
    if reference.shape != other.shape:
        raise ParityError(
            f"Images of {list(reference.shape)} and {list(other.shape)} cannot be compared. Generate both at one size."
        )
    return reference.astype(np.float64), other.astype(np.float64)


def _library(module: str, metric: str, package: str) -> Any:
    try:
        return import_module(module)
    except Exception as exc:  # an incompatible compiled library raises OSError and others
        raise RuntimeMissing(f"{metric} needs {package}, which cannot be loaded ({exc}). {install('bench')}") from exc
