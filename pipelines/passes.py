"""The denoiser calls of the passes of a request with `hires`."""

from __future__ import annotations

from dataclasses import replace

from ..core.request import Request
from ..sampling.denoise import OnStep
from ..sampling.host import Host
from ..sampling.schedulers import hand_over
from ..sampling.walks import first_of, schedule_of


def calls_of(host: Host, request: Request) -> int:
    """Denoiser calls of one pass of a completed request, with a refiner's."""
    walk = schedule_of(host.model, host.scheduler, request)
    calls = len(walk.timesteps) - first_of(host.model, host.scheduler, request, walk)
    if host.refiner is not None and request.refined:
        end, begin = hand_over(host.scheduler, walk, request.refine_from or 0)
        calls += end - begin
    return calls


def within_all(on_step: OnStep | None, before: int, after: int) -> OnStep | None:
    """`on_step` for a pass with so many calls before and after it: steps count those of all passes."""
    if on_step is None:
        return None
    return lambda step: on_step(replace(step, index=before + step.index, total=before + step.total + after))
