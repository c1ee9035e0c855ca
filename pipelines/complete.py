"""What a request leaves open, filled in, and what its author should know."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from ..core.errors import RequestError
from ..core.manifest import Manifest, Model
from ..core.request import Request
from ..sampling.prompt import Tokens, Vocabulary
from ..sampling.schedulers import KNOWN_KEYS, SCHEDULERS, schedule
from ..sampling.schedulers.settings import settings
from . import syntax

SEEDS = 1 << 32
"""Seeds that are drawn for a request without one: as many as other tools have."""
MAX_SEED = (1 << 63) - 1

FAR = 2.0
"""How many times more or fewer pixels than it was made for a model draws before a notice says so."""


def complete(request: Request, model: Model, scheduler: Mapping[str, object]) -> Request:
    """The request with width, height, seed and scheduler filled in.

    `scheduler` is the checkpoint's own `scheduler_config.json`. Raises `RequestError` for a size that
    isn't a whole number of latents, and for seeds of later images beyond the largest.
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
    if width % model.downscale or height % model.downscale:
        raise RequestError(
            f"{width}x{height} can't be drawn: this model draws sides that are multiples of {model.downscale}."
        )
    if seed + filled.count - 1 > MAX_SEED:
        raise RequestError(
            f"Seed {seed} leaves no seeds for {filled.count} images; use {MAX_SEED} at most for the last."
        )
    return filled


def check(request: Request, model: Model, scheduler: Mapping[str, object]) -> None:
    """Raise `RequestError` for a request that these facts of a bundle rule out: all that is known without engines."""
    complete(request, model, scheduler)
    schedule(scheduler, request.steps, request.scheduler, spacing=request.timestep_spacing)


def size_and_seed(request: Request) -> tuple[int, int, int]:
    """Width, height and seed of a completed request."""
    if request.width is None or request.height is None or request.seed is None:
        raise RequestError("This request isn't complete: width, height and seed were expected. Draw it first.")
    return request.width, request.height, request.seed


def own_scheduler(config: Mapping[str, object]) -> str | None:
    """The short name that means what the checkpoint's own config says; None where no name does.

    Raises `ProfileError` for a config that can't be honoured.
    """
    for name, sampler in SCHEDULERS.items():
        if sampler.class_name != config.get("_class_name"):
            continue
        said = settings(config, sampler, KNOWN_KEYS, {})
        if all(getattr(said, key) == value for key, value in sampler.asks.items()):
            return f"{name}-{said.ramp}" if said.ramp else name
    return None


def notices(request: Request, manifest: Manifest, vocabulary: Vocabulary, tokens: Tokens, guided: bool) -> list[str]:
    """What the author of a completed request should know before looking at the picture."""
    remarks: list[str] = []
    width, height, _ = size_and_seed(request)
    if tokens.chunks > 1:
        counts = " and ".join(str(count) for count in tokens.counts)
        remarks.append(
            f"The prompt took {tokens.chunks} chunks of {vocabulary.room} tokens ({counts} tokens; nothing was cut)."
        )
    if request.negative_prompt and not guided:
        why = "takes guidance as an input" if request.guided else "sees it at a guidance above 1 only"
        remarks.append(f"The negative prompt was not used: the model {why}.")
    for which, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt if guided else "")):
        remarks += syntax.notice(which, text, lambda token: vocabulary.tokenizer.token_to_id(token) is not None)
    own_width, own_height = manifest.model.own_size
    made = own_width * own_height
    if not made / FAR <= width * height <= made * FAR:
        own = f"{own_width}x{own_height}"
        remarks.append(f"{width}x{height} is far from {own}, which the model was made for; expect odd pictures.")
    if manifest.source.random:
        remarks.append("The weights of this checkpoint are random: the picture is noise.")
    return remarks
