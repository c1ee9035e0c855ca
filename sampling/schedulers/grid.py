"""Noise levels and timesteps of the steps: those of the config's spacing and ramp, or those that a request chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RequestError
from .betas import linspace
from .sigmas import ramped, sigmas_of, timesteps_of
from .spacing import spaced, spaced_above_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .arrays import Array, Table
    from .settings import Ramp, Settings

TOP_MARGIN = 1.01
"""Noise levels may exceed the highest of training by this factor: published ones are rounded."""


def graded(settings: Settings, steps: int, table: Array) -> tuple[Table, Table]:
    """Return the noise levels and timesteps of the steps, for samplers whose last timestep may be 0.

    A ramp runs between the ends of the spacing. `table` has the noise level of each training timestep.
    """
    if (found := chosen(settings, steps, table)) is not None:
        return found
    timesteps = spaced(settings, steps).astype(np.float32)
    if settings.interpolation_type == "log_linear":
        # One level more than steps: the last step ends at the lowest, not at zero.
        logarithms = np.log(table)
        sigmas = np.exp(linspace(logarithms[-1], logarithms[0], steps + 1)).astype(np.float64)
    else:
        sigmas = sigmas_of(timesteps, table)
    ramp = ramped(settings, float(sigmas[0]), float(sigmas[-1]), steps)
    return (sigmas, timesteps.astype(np.float64)) if ramp is None else (ramp, timesteps_of(ramp, table))


def above_end(
    settings: Settings, steps: int, table: Array, rounded: Sequence[Ramp] = ("karras",)
) -> tuple[Table, Table, float]:
    """Return the noise levels and timesteps of the steps, for samplers that leave room for a last timestep, and the
    lowest noise level, where those that predict noise end.

    A ramp runs over all of training; the timesteps of the ramps in `rounded` are rounded, as in diffusers.
    """
    if (found := chosen(settings, steps, table)) is not None:
        return *found, float(table[0])
    ramp = ramped(settings, float(table[-1]), float(table[0]), steps)
    if ramp is None:
        # Where hardly any signal is left, log-SNR is unbounded, and the config may set a bound.
        count = int(np.sum(-np.log(table) >= settings.lambda_min_clipped))
        timesteps = spaced_above_end(settings, steps, count)
        return sigmas_of(timesteps, table), np.trunc(timesteps), float(table[0])
    timesteps = timesteps_of(ramp, table)
    return ramp, np.trunc(np.round(timesteps) if settings.ramp in rounded else timesteps), float(ramp[-1])


def chosen(settings: Settings, steps: int, table: Array) -> tuple[Table, Table] | None:
    """Return the noise levels and timesteps that the request chooses, or None for those of the config.

    Sources: k-diffusion's `DiscreteSchedule`; `sd_schedulers.py` of AUTOMATIC1111's web UI and `samplers.py` of ComfyUI
    (`normal`, `sgm_uniform`, `simple`, and `AlignYourSteps` with log-linear interpolation, arXiv:2404.14507).
    """
    last = len(table) - 1
    if settings.timesteps is not None:
        timesteps = np.asarray(settings.timesteps, np.float64)
        return sigmas_of(timesteps, table), timesteps
    if settings.sigmas is not None:
        sigmas = np.asarray(settings.sigmas[:-1], np.float32).astype(np.float64)
        return sigmas, timesteps_of(sigmas, table)
    match settings.levels:
        case None:
            return None
        case "normal":
            timesteps = np.linspace(last, 0, steps)
        case "sgm-uniform":
            timesteps = np.linspace(last, 0, steps + 1)[:-1]
        case "simple":
            timesteps = np.array([last - int(step * (len(table) / steps)) for step in range(steps)], np.float64)
        case "ays":
            sigmas = _aligned(settings, steps)
            return sigmas, timesteps_of(sigmas, table)
    return np.exp(np.interp(timesteps, np.arange(last + 1), np.log(table))), timesteps


def _aligned(settings: Settings, steps: int) -> Table:
    if settings.aligned is None:
        raise RequestError(
            "Align Your Steps needs noise levels that were optimized for the model, and none are published for this "
            "one, or its bundle was exported by an earlier version of latentc. Use another spacing, such as -karras, "
            "or export the checkpoint again."
        )
    published = np.log(np.asarray(settings.aligned, np.float64))
    places = np.linspace(0, len(published) - 1, steps + 1)[:-1]
    return np.exp(np.interp(places, np.arange(len(published)), published))
