"""Filling in a request's defaults, and the notices about it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from ..core.errors import RequestError
from ..core.manifest import Manifest, Model
from ..core.request import Request
from ..core.shapes import size_complaint
from ..sampling.prompt import Tokens, Vocabulary
from ..sampling.schedulers import KNOWN_KEYS, samplers, schedule
from ..sampling.schedulers.settings import settings
from . import syntax

SEEDS = 1 << 32
"""Range of random seeds for requests without one, the same as in other tools."""
MAX_SEED = (1 << 63) - 1

FAR = 2.0
"""Factor by which the number of pixels may differ from the model's native size without a notice."""


def complete(request: Request, model: Model, scheduler: Mapping[str, object]) -> Request:
    """The request with width, height, seed and scheduler filled in.

    `scheduler` is the checkpoint's own `scheduler_config.json`. Raises `RequestError` for a size that
    the model can't generate, and if later images would have seeds above `MAX_SEED`.
    """
    filled = request.model_copy(
        update={
            "width": request.width or model.own_size[0],
            "height": request.height or model.own_size[1],
            "seed": secrets.randbelow(SEEDS) if request.seed is None else request.seed,
            "scheduler": request.scheduler or own_scheduler(scheduler),
        }
    )
    width, height, seed = size_and_seed(filled)
    if wrong := size_complaint(model, width, height):
        raise RequestError(wrong)
    if seed + filled.count - 1 > MAX_SEED:
        raise RequestError(
            f"Seed {seed} is too large for {filled.count} images: use {MAX_SEED - filled.count + 1} at most."
        )
    return filled


def check(request: Request, model: Model, scheduler: Mapping[str, object]) -> None:
    """Raise `RequestError` for a request that this model can't run; checks everything that doesn't need engines."""
    complete(request, model, scheduler)
    schedule(scheduler, request.steps, request.scheduler, spacing=request.timestep_spacing)


def size_and_seed(request: Request) -> tuple[int, int, int]:
    """Width, height and seed of a completed request."""
    if request.width is None or request.height is None or request.seed is None:
        raise RequestError(
            "This request is not complete: it needs width, height and seed. Use the request of a pipeline's result."
        )
    return request.width, request.height, request.seed


def own_scheduler(config: Mapping[str, object]) -> str | None:
    """The short name that is equivalent to the checkpoint's own config; None if there is none.

    Raises `ProfileError` for a config that isn't supported.
    """
    for name, sampler in samplers(config).items():
        if sampler.class_name != config.get("_class_name"):
            continue
        found = settings(config, sampler, KNOWN_KEYS, {})
        if all(getattr(found, key) == value for key, value in sampler.asks.items()):
            return f"{name}-{found.ramp}" if found.ramp else name
    return None


def notices(request: Request, manifest: Manifest, vocabulary: Vocabulary, tokens: Tokens, guided: bool) -> list[str]:
    """Notices about a completed request, for its author."""
    remarks: list[str] = []
    width, height, _ = size_and_seed(request)
    if tokens.chunks > 1:
        counts = " and ".join(str(count) for count in tokens.counts)
        remarks.append(
            f"The prompt took {tokens.chunks} chunks of {vocabulary.room} tokens ({counts} tokens; nothing was "
            "truncated)."
        )
    if request.negative_prompt and not guided:
        why = "takes guidance as an input" if request.guided else "uses it only with a guidance above 1"
        remarks.append(f"The negative prompt was not used: the model {why}.")
    for which, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt if guided else "")):
        remarks += syntax.notice(which, text, lambda token: vocabulary.tokenizer.token_to_id(token) is not None)
    own_width, own_height = manifest.model.own_size
    made = own_width * own_height
    if not made / FAR <= width * height <= made * FAR:
        own = f"{own_width}x{own_height}"
        remarks.append(f"{width}x{height} is far from the model's native size, {own}; images may look wrong.")
    if manifest.source.random:
        remarks.append("The weights of this checkpoint are random: the image is noise.")
    if manifest.standing.statement:
        remarks.append(manifest.standing.statement)
    return remarks
