"""PNDM: Runge-Kutta and linear multistep on the diffusion's manifold (Liu et al., arXiv:2202.09778)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RequestError
from .arrays import mixed
from .betas import alphas_cumprod
from .prediction import noise_in
from .spacing import rounded

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings

RUNGE_KUTTA_STEPS = 3
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
ADAMS_BASHFORTH: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the outputs, latest first, by their number."""


@dataclass
class Pndm:
    """A walk that keeps the last four outputs and the sample where a step of several calls began."""

    timesteps: Array
    moves: tuple[tuple[int, int], ...]
    """Timesteps between which each call moves the sample; the first is the start of its step."""
    table: Array
    final: float
    settings: Settings
    init_noise_sigma: float = 1.0
    outputs: list[Array] = field(default_factory=list["Array"])
    began: Array | None = None
    slopes: list[Array] = field(default_factory=list["Array"])

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        if index == len(self.timesteps):
            return 1.0, 0.0
        kept = float(self.table[int(self.timesteps[index])])
        return math.sqrt(kept), math.sqrt(1 - kept)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Make one call: a quarter of a Runge-Kutta step, or a linear multistep one."""
        del noise
        if self.settings.skip_prk_steps:
            return self._improved_euler(output, index, sample)
        if index < 4 * RUNGE_KUTTA_STEPS:
            return self._runge_kutta(output, index, sample)
        return self._multistep(output, index, sample)

    def _runge_kutta(self, output: Array, index: int, sample: Array) -> Array:
        quarter = index % 4
        if quarter == 0:
            self.outputs.append(output)
            self.began, self.slopes = sample, []
        if self.began is None:
            raise RequestError(
                f"PNDM cannot start at call {index}, inside a step of four calls. Start at the first of them."
            )
        self.slopes.append(output)
        slope = mixed(*zip(RUNGE_KUTTA, self.slopes, strict=True)) if quarter == 3 else output
        return self._moved(slope, index, self.began)

    def _improved_euler(self, output: Array, index: int, sample: Array) -> Array:
        # Without Runge-Kutta the first step is taken twice: to look ahead, then with the mean of
        # the two slopes.
        if index == 0:
            self.began = sample
        if index != 1:
            return self._multistep(output, index, sample)
        if self.began is None:
            return sample  # the walk starts here, so there is no step to repeat; the next call is the first
        return self._moved(mixed((0.5, output), (0.5, self.outputs[-1])), index, self.began)

    def _multistep(self, output: Array, index: int, sample: Array) -> Array:
        self.outputs = [*self.outputs[-3:], output]
        weights = ADAMS_BASHFORTH[len(self.outputs)]
        slope = mixed(*zip(weights, reversed(self.outputs), strict=True))
        return self._moved(slope, index, sample)

    def _moved(self, output: Array, index: int, sample: Array) -> Array:
        # Formula 9 of the paper.
        start, stop = self.moves[index]
        before = float(self.table[start])
        after = float(self.table[stop]) if stop >= 0 else self.final
        noise = noise_in(self.settings.prediction_type, output, sample, math.sqrt(before), math.sqrt(1 - before))
        divisor = before * math.sqrt(1 - after) + math.sqrt(before * (1 - before) * after)
        return mixed((math.sqrt(after / before), sample), ((before - after) / divisor, noise))


def pndm(settings: Settings, steps: int) -> Pndm:
    """Return PNDM's schedule: with `skip_prk_steps` one call more than steps, otherwise nine more."""
    timesteps = rounded(settings, steps)
    stride = settings.num_train_timesteps // steps
    if settings.skip_prk_steps:
        calls, moves = _multistep_calls(timesteps, stride)
    else:
        calls, moves = _runge_kutta_calls(timesteps, stride)
    table = alphas_cumprod(settings)
    final = 1.0 if settings.set_alpha_to_one else float(table[0])
    return Pndm(np.asarray(calls, np.float32), tuple(moves), table, final, settings)


def _multistep_calls(timesteps: list[int], stride: int) -> tuple[list[int], list[tuple[int, int]]]:
    if len(timesteps) == 1:
        return timesteps, [(timesteps[0], timesteps[0] - stride)]
    calls = [timesteps[0], timesteps[1], *timesteps[1:]]
    moves = [(timestep, timestep - stride) for timestep in calls]
    moves[1] = (timesteps[1] + stride, timesteps[1])
    return calls, moves


def _runge_kutta_calls(timesteps: list[int], stride: int) -> tuple[list[int], list[tuple[int, int]]]:
    if len(timesteps) <= RUNGE_KUTTA_STEPS:
        raise RequestError(
            f"{len(timesteps)} steps are too few: PNDM starts with {RUNGE_KUTTA_STEPS} Runge-Kutta steps. Use at least "
            f"{RUNGE_KUTTA_STEPS + 1}, or another scheduler."
        )
    half = stride // 2
    calls: list[int] = []
    moves: list[tuple[int, int]] = []
    for start, stop in pairwise(timesteps[: RUNGE_KUTTA_STEPS + 1]):
        calls += [start, stop + half, stop + half, stop]
        moves += [(start, start - half), (start, stop + half), (start, stop), (start, stop)]
    rest = timesteps[RUNGE_KUTTA_STEPS:]
    return [*calls, *rest], [*moves, *((timestep, timestep - stride) for timestep in rest)]
