"""Arrays, and measures of their similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import NotFiniteError

Array = NDArray[Any]
Shape = tuple[int, ...]

PERFECT_DB = 200.0
"""PSNR of two arrays that are bitwise equal (mathematically infinite)."""


def psnr_db(reference: Array, other: Array) -> float:
    """Peak signal-to-noise ratio in dB, with the reference's largest magnitude as the peak.

    20 log10(max|reference| / rmse), the form of Apple's ml-stable-diffusion, so that thresholds can be
    compared. Returns `PERFECT_DB` for equal arrays and -inf where either holds a NaN or an infinity,
    or they differ in shape.
    """
    if reference.shape != other.shape or not (np.isfinite(other).all() and np.isfinite(reference).all()):
        return float("-inf")
    wide = reference.astype(np.float64)
    rmse = float(np.sqrt(np.mean((wide - other.astype(np.float64)) ** 2)))
    peak = float(np.abs(wide).max()) if wide.size else 0.0
    if rmse == 0.0:
        return PERFECT_DB
    if peak == 0.0:
        return float("-inf")
    return min(PERFECT_DB, 20.0 * float(np.log10(peak / rmse)))


def snr_db(reference: Array, other: Array) -> float:
    """Signal-to-noise ratio in dB: 10 log10(sum of reference^2 / sum of errors^2).

    An `other` of zeros gives 0. Returns `PERFECT_DB` for equal arrays and -inf where either holds a NaN or an infinity,
    or they differ in shape.
    """
    if reference.shape != other.shape or not (np.isfinite(other).all() and np.isfinite(reference).all()):
        return float("-inf")
    wide = reference.astype(np.float64)
    signal, noise = float(np.sum(wide**2)), float(np.sum((wide - other.astype(np.float64)) ** 2))
    if noise == 0.0:
        return PERFECT_DB
    return min(PERFECT_DB, 10.0 * float(np.log10(signal / noise))) if signal else float("-inf")


def change_db(reference: Array, other: Array, answers: Array) -> tuple[float, float]:
    """SNR in dB of a small change in an output, and the change's RMS in the reference relative to the output's RMS."""
    scale = float(np.linalg.norm(answers)) / max(1, answers.size) ** 0.5
    share = float(np.linalg.norm(reference)) / max(1, reference.size) ** 0.5 / scale if scale else 0.0
    return round(snr_db(reference, other), 2), share


def cosine(reference: Array, other: Array) -> float:
    """Cosine of the angle between two arrays read as vectors; NaN where `other` isn't finite."""
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else float(np.array_equal(a, b))


def check_finite(array: Array, what: str, part: str, engine: str) -> None:
    """Raise `NotFiniteError` if the array holds NaN or infinity.

    `what` begins the message, `part` computed the array, and `engine` ran the part.
    """
    wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
    if wrong:
        raise NotFiniteError(
            f"{what}: {wrong} of {array.size} values are NaN or infinite. "
            f'{part} ran on {engine}; set {part} = "f32" under [precision] in the profile and build again. '
            "If it is f32 already, try a lower guidance or another scheduler."
        )
