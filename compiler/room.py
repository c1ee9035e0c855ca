"""Check whether a request fits in memory before it runs: the plan's prediction against what this process can use."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import LatentcError, RequestError
from ..core.limits import memory, swap
from ..core.request import Request
from ..core.units import sized
from ..sampling.denoise import is_guided
from ..sampling.draw import tile_of
from .predict import drawing_bytes
from .targets import Wanted

STATUS = Path("/proc/self/statm")


def check_room(bundle: Bundle, wanted: Sequence[Wanted], request: Request, *, sequential: bool) -> None:
    """Raise `RequestError` where a completed request won't fit in memory, with all engines loaded, or one at a time.

    An image of the model's own size is not checked: `latentc plan` and the build do that.
    """
    model = bundle.manifest.model
    width, height = request.width or model.own_size[0], request.height or model.own_size[1]
    rows = request.count * (model.guided_rows if is_guided(model, request) else 1)
    if rows * height * width <= model.guided_rows * math.prod(model.own_size):
        return
    needed: int | None = None
    with suppress(LatentcError):  # without a prediction the request runs
        needed = drawing_bytes(
            bundle,
            wanted,
            rows,
            height // model.downscale,
            width // model.downscale,
            sequential=sequential,
            tile=tile_of(model, request),
            decoder=request.decoder,
            parts=bundle.used_by(request),
        )
    room = _room()
    if needed is not None and room is not None and needed > room:
        tiles = "" if request.vae_tile or request.decoder or model.frames else "decode in tiles (--vae-tile 512), "
        raise RequestError(
            f"{width}x{height} pixels in {rows} rows at once are predicted to take {sized(needed)} of memory, and this "
            f"process can use {sized(room)}. Request a smaller size or fewer images, {tiles}or set a narrower type "
            "under [precision]."
        )


def _room() -> int | None:
    """Bytes that this process can use: those it holds and those that are free; None where they are not reported."""
    total, available = memory()
    with suppress(OSError, ValueError):
        held = int(STATUS.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if total is not None and available is not None:
            return min(total, available + held) + swap()
    return None
