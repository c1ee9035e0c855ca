"""Which requests are generated in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.request import Request
from .image_job import ImageJob


def alike(waiting: Sequence[ImageJob], most: int) -> list[ImageJob]:
    """The oldest of the jobs that wait, and those after it that can be joined with it, up to `most` images: of
    those, none is taken before another that came earlier.
    """
    first, *others = waiting
    batch, rows = [first], first.request.count
    for job in () if first.lost else others:  # which of a lost batch ended the process is not known
        if job.lost or joint(job.request) != joint(first.request):
            continue
        rows += job.request.count
        if rows > most:
            break
        batch.append(job)
    return batch


def joint(request: Request) -> object:
    """What requests have in common whose denoiser calls can be joined; see `Pipeline.draw_many`."""
    adapters: Mapping[str, float] = request.adapters or {}
    return (
        request.width,
        request.height,
        request.steps,
        request.scheduler,
        request.timestep_spacing,
        request.timesteps,
        request.sigmas,
        request.strength,
        request.variant,
        request.hires,
        tuple(sorted(adapters.items())),
    )
