"""Fit a request into a memory budget: all parts in memory, one at a time, the denoiser row by row, decoding in tiles,
or the tiny decoder; the first that is predicted to fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.model import Model
from ..core.recipes import RECIPES
from ..core.request import REFINE_FROM, STRENGTH, TINY, Fitted, Request
from ..core.shapes import size_complaint
from ..core.units import sized
from ..profiles import Profile
from ..runtimes import Target, runtime
from ..sampling.denoise import is_guided
from ..sampling.tiles import LEAST_TILE, PARTS, smallest_side
from .cache import find
from .predict import Asked, Predicted, predict
from .targets import targets, wanted

TILES = (1024, 768, 512, 384, 256, 192, 128, 64)
"""Sides in pixels of the tiles that a budget may choose, best first."""


MOST_GB = 1e9
"""Limit of a budget."""


def budget_bytes(memory_gb: object) -> int:
    """A budget in bytes, from GB of 10^9 bytes; raises `RequestError` for anything but a positive number."""
    if isinstance(memory_gb, int | float) and not isinstance(memory_gb, bool) and 0 < memory_gb <= MOST_GB:
        return round(memory_gb * 1e9)
    raise RequestError(
        f"The memory budget is {memory_gb!r}; it must be a positive number of GB (10^9 bytes), such as 6, and at most "
        f"{MOST_GB:g}. Pass one, or leave it out."
    )


@dataclass(frozen=True)
class _Choice:
    sequential: bool
    row_by_row: bool
    vae_tile: int | None
    decoder: str | None


MARGIN = 1.03
"""Memory is planned with this factor: what was measured was up to 2 % more than predicted."""


def fit(
    bundle: Bundle, asked: Sequence[Asked], passes: Sequence[Request], budget: int, *, sequential: bool, profile: str
) -> tuple[Fitted, frozenset[int]] | None:
    """The first way to generate images that is predicted to fit into a budget in bytes, and the indices of the engines
    among `asked` that it uses.

    `passes` are completed requests, with width and height: a request, and its second pass if it has one. A tile or a
    decoder that they set (to None too) is kept. With `sequential`, only one part at a time may be in memory. What
    changes the image least comes first. Between two passes, engines of other sizes are freed. None where no engine
    takes the size, which is reported elsewhere. Raises `RequestError` where nothing fits, with the smallest budget that
    does.
    """
    found: list[tuple[int, Fitted]] = []
    for choice in _choices(bundle, asked, passes, sequential=sequential):
        each = [_predicted(bundle, asked, one, choice) for one in passes]
        known = [one for one in each if one is not None]
        if len(known) < len(each):
            continue
        memory = Fitted(
            budget_bytes=budget,
            planned_bytes=math.ceil(MARGIN * max(one.bytes for one in known)),
            measured=all(one.measured for one in known),
            sequential=choice.sequential,
            row_by_row=choice.row_by_row,
            vae_tile=choice.vae_tile,
            decoder=TINY if choice.decoder == TINY else None,
        )
        if memory.planned_bytes <= budget:
            return memory, frozenset(index for one in known for index in one.engines)
        found.append((memory.planned_bytes, memory))
    if not found:
        return None
    least, best = min(found, key=lambda one: one[0])
    last, about = passes[-1], "" if best.measured else "at least "
    raise RequestError(
        f"{last.width}x{last.height} pixels with profile {profile} do not fit in {sized(budget)} of memory. The "
        f"smallest budget that fits is {about}{math.ceil(least / 1e6) / 1e3:.3f} GB, with {best.how}. Raise --memory "
        "(memory_gb), or request a smaller size or fewer images."
    )


def typical_request(model: Model, width: int, height: int) -> Request:
    """A completed request for one image of this size with guidance, which uses all that the model has."""
    request = Request(
        prompt="",
        width=width,
        height=height,
        refine_from=None if model.refiner is None else REFINE_FROM,
        strength=STRENGTH if model.needs_image and not model.edits else None,
        style_strength=1.0 if model.takes_style else None,
    )
    return request.model_copy(update={"control_sha256": ("",) * len(model.controls) or None})


def plan_budget(bundle: Bundle, profile: Profile, budget: int, request: Request) -> Fitted | None:
    """`fit` for a completed request under a profile, on this machine or elsewhere, without loading anything."""
    adapter = runtime(profile.runtime)
    if adapter.unbuildable(profile.device):
        asked: list[Asked] = [(part, one, None) for part, one in targets(bundle, profile, adapter, tuple(RECIPES))]
    else:
        _, engines = wanted(bundle, profile, to_run=False)
        asked = [(want.part, want.target, find(bundle, want.part, want.key)) for want in engines]
    found = fit(bundle, asked, [request], budget, sequential=profile.sequential, profile=profile.name)
    return found[0] if found else None


def _choices(
    bundle: Bundle, asked: Sequence[Asked], passes: Sequence[Request], *, sequential: bool
) -> Iterator[_Choice]:
    """What may be done for a request, in order of preference."""
    model, first = bundle.manifest.model, passes[0]
    decoding: list[tuple[int | None, str | None]] = [(first.vae_tile, first.decoder)]
    fixed = {"vae_tile", "decoder"} & first.model_fields_set
    own_tile = first.vae_tile is not None or first.decoder is not None
    if "vae_tile" not in fixed and not own_tile and model.frames is None:
        decoding += [(tile, None) for tile in TILES if _fits(model, passes, tile)]
    if "decoder" not in fixed and first.vae_tile is None and model.tiny_decoder is not None:
        decoding.append((None, TINY))
    denoisers = [target for part, target, _ in asked if bundle.part(part).role == "denoiser"]
    splits = all(_splits(model, denoisers, one) for one in passes) and model.frames is None
    for tile, decoder in dict.fromkeys(decoding):
        for by_row in (False, True) if splits and any(_rows(model, one) > 1 for one in passes) else (False,):
            for alone in (True,) if sequential else (False, True):
                yield _Choice(alone, by_row, tile, decoder)


def _splits(model: Model, denoisers: Sequence[Target], request: Request) -> bool:
    """Whether the denoisers that take a request's size take any number of rows."""
    own = model.own_size
    sides = (request.height or own[1]) // model.downscale, (request.width or own[0]) // model.downscale
    exact = [one for one in denoisers if one.shape is not None and one.shape[model.latents_input][-2:] == sides]
    taken = exact or [one for one in denoisers if one.shape is None]
    return bool(taken) and all(one.rows_free for one in taken)


def _fits(model: Model, passes: Sequence[Request], tile: int) -> bool:
    """Whether a tile is smaller than an image, valid for the model, and leaves no last tile that is too small."""
    sides = [(one.width or model.own_size[0], one.height or model.own_size[1]) for one in passes]
    able = all(smallest_side(each, tile, model.downscale) >= LEAST_TILE for each in sides if max(each) > tile)
    return (
        any(max(each) > tile for each in sides)
        and able
        and tile % (PARTS * model.downscale) == 0
        and size_complaint(model, tile, tile) is None
    )


def _rows(model: Model, request: Request) -> int:
    return request.count * (model.guided_rows if is_guided(model, request) else 1)


def _predicted(bundle: Bundle, asked: Sequence[Asked], request: Request, choice: _Choice) -> Predicted | None:
    model = bundle.manifest.model
    width, height = request.width or model.own_size[0], request.height or model.own_size[1]
    return predict(
        bundle,
        asked,
        bundle.used_by(request),
        1 if choice.row_by_row else _rows(model, request),
        height // model.downscale,
        width // model.downscale,
        sequential=choice.sequential,
        tile=None if choice.vae_tile is None else choice.vae_tile // model.downscale,
        decoder=choice.decoder,
    )
