"""Check whether a request fits in memory before it runs: the plan's prediction against what this process can use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import LatentcError, RequestError, ShapeError
from ..core.limits import memory, swap
from ..core.shapes import GUIDED_ROWS, sizes_of
from ..core.units import sized
from .plan import drawing_bytes
from .targets import Wanted

STATUS = Path("/proc/self/statm")


def check_room(
    bundle: Bundle, wanted: Sequence[Wanted], part: str, shapes: dict[str, tuple[int, ...]], *, sequential: bool
) -> None:
    """Raise `RequestError` where a denoiser's call at these shapes won't fit in memory, with all engines loaded, or one
    at a time.

    An image of the model's own size is not checked: `latentc plan` and the build do that.
    """
    try:
        sizes = sizes_of(bundle.part(part).inputs, shapes)
    except ShapeError:  # reported by the engine
        return
    rows, height, width = (sizes.get(name, 1) for name in ("batch", "height", "width"))
    own_width, own_height = (side // bundle.manifest.model.downscale for side in bundle.manifest.model.own_size)
    if rows * height * width <= GUIDED_ROWS * own_height * own_width:
        return
    needed: int | None = None
    with suppress(LatentcError):  # without a prediction the request runs
        needed = drawing_bytes(bundle, wanted, rows, height, width, sequential=sequential)
    room = _room()
    if needed is not None and room is not None and needed > room:
        scale = bundle.manifest.model.downscale
        raise RequestError(
            f"{width * scale}x{height * scale} pixels in {rows} rows at once are predicted to take {sized(needed)} of "
            f"memory, and this process can use {sized(room)}. Request a smaller size or fewer images, or set a "
            "narrower type under [precision]."
        )


def _room() -> int | None:
    """Bytes that this process can use: those it holds and those that are free; None where they are not reported."""
    total, available = memory()
    with suppress(OSError, ValueError):
        held = int(STATUS.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if total is not None and available is not None:
            return min(total, available + held) + swap()
    return None
