"""Comparison of a walk on the device with the host's steps, for an engine that takes the scheduler's step.

Each call is repeated from the host, with the latents that the engine made, and each step is taken by the host from the
engine's own output, so that neither error hides the other, and none accumulates. The host's steps are compared with
diffusers' elsewhere: `trial`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Engine, Loops
from ..core.looped import FACTORS, GUIDED, NEXT_LATENTS, NEXT_SAMPLE
from ..core.request import Request
from ..core.tensors import Array, psnr_db
from ..sampling.denoise import Walk, end_of, feeds, first_feeds
from ..sampling.guidance import guide
from ..sampling.host import Host
from ..sampling.linear import step_factors
from ..sampling.schedulers import names
from ..sampling.walks import schedule_of

SCHEDULERS = ("pndm", "lms", "dpm++2m", "euler")
"""The first whose steps the engine takes is walked with: the longer its history, the more is compared."""
STEPS = 5
"""Enough for all of PNDM's history, and for a recording of each direction of the buffers to be replayed."""


def measure_loop(
    host: Host, request: Request, walk: Walk, engine: Engine, fixed: Mapping[str, Array], start: NDArray[np.float32]
) -> tuple[float, float] | None:
    """Worst PSNR of the denoiser's output, and of the step, in a walk on the device; None where it can't be on it.

    `walk` is that of the completed `request`, `fixed` the denoiser's constants, and `start` standard normal values.
    """
    if not isinstance(engine, Loops):
        return None
    known = names(host.scheduler)
    walks = (_with(name, host, request, walk) for name in SCHEDULERS if name in known)
    taken = ((walk, found) for walk in walks if not isinstance(found := step_factors(walk), str))
    walk, factors = next(taken, (walk, None))
    if factors is None:
        return None
    run, count, schedule = engine.bind(fixed), len(start), walk.schedule
    latents = start * np.float32(schedule.init_noise_sigma)
    calls: list[float] = []
    steps: list[float] = []
    with engine.loop({**fixed, **first_feeds(walk, latents), FACTORS: factors[0]}) as chain:
        for index in range(end_of(walk)):
            given = feeds(walk, index, latents)
            if index:
                steps.append(psnr_db(given[walk.latents], chain.read(NEXT_SAMPLE)))
            changed = {name: array for name, array in given.items() if name != walk.latents}
            chain.step({**changed, FACTORS: factors[index]})
            ((name, answer),) = run(given).items()
            output, guided = chain.read(name), chain.read(GUIDED)[:count]
            calls.append(psnr_db(answer, output))
            if walk.guidance is not None:
                output = guide(output, walk.guidance, 0.0)
            following = schedule.step(guided, index, latents, walk.noise)
            latents = chain.read(NEXT_LATENTS)[:count]
            steps += [psnr_db(output, guided), psnr_db(following, latents)]
    return round(min(calls), 2), round(min(steps), 2)


def _with(scheduler: str, host: Host, request: Request, walk: Walk) -> Walk:
    """The walk with another scheduler, from its first call on."""
    plan = {"scheduler": scheduler, "steps": STEPS, "timesteps": None, "sigmas": None, "timestep_spacing": None}
    schedule = schedule_of(host.model, host.scheduler, request.model_copy(update=plan))
    varying = {name: array[:1].repeat(len(schedule.timesteps), axis=0) for name, array in walk.varying.items()}
    return replace(walk, schedule=schedule, varying=varying, first=0, end=None)
