"""The steps of a walk as numbers, for an engine that takes them (`core.looped`).

Most schedulers' steps are sums of the latents and of the denoiser's outputs, each times a number. The numbers are read
from the scheduler that draws: its steps are taken with unit vectors in place of both.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from numpy.typing import NDArray

from ..core.looped import COUNT, DEPTH
from .denoise import Walk, end_of

CHECKS = 8
"""Further columns of random numbers, for which the step must be the same sum."""
LARGE = 1000.0
"""Their deviation: larger than any latents, so that a clipped prediction shows."""
ROUNDING = 1e-4
"""Largest difference of both, relative to the sum of magnitudes."""


def step_factors(walk: Walk) -> NDArray[np.float32] | str:
    """`core.looped.FACTORS` of each call of a walk, float32 [calls, `COUNT`]; or why there are none, as a clause.

    A step may use the latents and outputs of its own call and of four before, as most deterministic schedulers do. The
    walk's own schedule keeps its history.
    """
    return beyond(walk) or _read(walk)


def beyond(walk: Walk) -> str | None:
    """What a walk computes that such an engine doesn't, as a clause; None for nothing."""
    guided = walk.guidance is not None
    each = {
        "inpainting restores the kept area after each step": walk.kept is not None,
        "the denoiser also reads an image": walk.beside is not None,
        "the image has a guidance scale of its own": guided and walk.image_guidance is not None,
        "each frame has a guidance scale of its own": guided and not isinstance(walk.guidance, int | float),
        "guidance_rescale depends on the whole output": guided and walk.guidance_rescale > 0,
    }
    return next((why for why, applies in each.items() if applies), None)


def _read(walk: Walk) -> NDArray[np.float32] | str:
    schedule, calls = deepcopy(walk.schedule), end_of(walk) - walk.first
    random = np.random.default_rng(0).normal(scale=LARGE, size=(2 * calls, CHECKS)).astype(np.float32)
    units = np.eye(2 * calls, dtype=np.float32)
    rows = np.hstack([units, random])[:, None]  # of each call: its latents, then its output
    added: list[bool] = []

    def noise() -> NDArray[np.float32]:
        added.append(True)
        return np.zeros_like(rows[0])

    with np.errstate(over="ignore", invalid="ignore"):
        taken = np.concatenate(
            [schedule.step(rows[2 * call + 1], walk.first + call, rows[2 * call], noise) for call in range(calls)]
        )
    if added:
        return "the scheduler adds noise"
    found, checked = np.split(taken.astype(np.float64), [2 * calls], axis=1)
    error = np.abs(found @ random - checked)
    if not (error <= ROUNDING * (np.abs(found) @ np.abs(random))).all():
        return "the scheduler's step is not linear"
    by_call = found.reshape(calls, calls, 2)  # of each step: factors of the latents and output of each call
    before = np.arange(calls)[:, None] - np.arange(calls)[None]
    if by_call[(before < 0) | (before > DEPTH)].any():
        return f"the scheduler uses more than {DEPTH} earlier outputs"
    factors = np.zeros((calls, COUNT), np.float32)
    factors[:, 0] = 1.0 if walk.guidance is None else walk.guidance
    for later in range(min(1 + DEPTH, calls)):
        made = np.arange(calls - later)
        factors[made, 2 + 2 * later : 4 + 2 * later] = by_call[made + later, made]
    one = np.ones((1, 1), np.float32)
    factors[:-1, 1] = [schedule.scale(one, walk.first + call)[0, 0] for call in range(1, calls)]
    return factors
