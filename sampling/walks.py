"""The steps of a request: its schedule, the call at which it begins, and what varies from call to call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core.errors import RequestError
from ..core.model import Model
from ..core.request import Request
from ..core.tensors import Array
from .control import residual_factors
from .denoise import Walk
from .guidance import frame_scales
from .host import Host, latent_shape
from .schedulers import Noise, Schedule, first_call, hand_over, schedule
from .schedulers.lcm import Lcm


def guidance_of(model: Model, request: Request) -> float | Array:
    """The guidance scale of a request, or that of each frame: from `min_guidance` to `guidance`."""
    if model.frame_guidance is None or model.frames is None:
        return request.guidance
    first = model.frame_guidance[0] if request.min_guidance is None else request.min_guidance
    return frame_scales(first, request.guidance, model.frames)


def schedule_of(model: Model, scheduler: Mapping[str, Any], request: Request) -> Schedule:
    """The steps of a request with width and height; `scheduler` is the checkpoint's `scheduler_config.json`."""
    tokens = math.prod(latent_shape(model, request)[-2:]) // model.patch**2
    strength = request.strength if model.takes_guidance and request.strength is not None else 1.0
    return schedule(
        scheduler, request.steps, request.scheduler, spacing=request.timestep_spacing, eta=request.eta,
        timesteps=request.timesteps, sigmas=request.sigmas, aligned=model.align_your_steps, tokens=tokens,
        strength=strength,
    )  # fmt: skip


def first_of(model: Model, scheduler: Mapping[str, Any], request: Request, walk: Schedule) -> int:
    """The call at which the walk of a request begins: 0, or a later one for image to image.

    diffusers' LCM pipeline makes all calls, at lower noise levels: see `schedule_of`.
    """
    if model.refines:
        return hand_over(scheduler, walk, request.refine_from or 0)[1]
    if request.strength is None or (model.takes_guidance and isinstance(walk, Lcm)):
        return 0
    return first_call(scheduler, walk, request.steps, request.strength)


def check_calls(model: Model, scheduler: Mapping[str, Any], request: Request) -> None:
    """Raise `RequestError` for a request with width and height that leaves the model, or its refiner, no call."""
    walk = schedule_of(model, scheduler, request)
    first = first_of(model, scheduler, request, walk)
    if model.refiner is not None and request.refined:
        _end_of(scheduler, request, walk, first)


def _end_of(scheduler: Mapping[str, Any], request: Request, walk: Schedule, first: int) -> tuple[int, int]:
    """The call before which a model ends whose refiner takes over, and the refiner's first call."""
    end, begin = hand_over(scheduler, walk, request.refine_from or 0)
    if end <= first:
        raise RequestError(
            f"With a strength of {request.strength:g}, no denoiser call is left before the refiner takes over from "
            f"{request.refine_from:g}. Use a higher strength or refine_from, or a refine_from of 1 to leave it out."
        )
    return end, begin


def walk_of(host: Host, request: Request, *, guided: bool, noise: Noise, engine: str) -> Walk:
    """The `Walk` of a request with width and height from noise, or from its image, to latents."""
    walk = schedule_of(host.model, host.scheduler, request)
    first, end, after = first_of(host.model, host.scheduler, request, walk), None, 0
    if host.refiner is not None and request.refined:
        end, begin = _end_of(host.scheduler, request, walk, first)
        after = len(walk.timesteps) - begin
    return Walk(
        schedule=walk,
        first=first,
        end=end,
        after=after,
        varying=residual_factors(host.model, request, calls=len(walk.timesteps) - first, guided=guided),
        noise=noise,
        guidance=guidance_of(host.model, request) if guided else None,
        image_guidance=request.image_guidance if guided else None,
        guidance_rescale=request.guidance_rescale,
        latents=host.model.latents_input,
        part=host.denoiser(request),
        engine=engine,
    )
