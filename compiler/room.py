"""Whether a request fits into memory, before it is drawn: by plan, and by what this process can have now."""

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


def check_room(bundle: Bundle, wanted: Sequence[Wanted], part: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `RequestError` where what a denoiser is asked for won't fit, with all that draws loaded.

    Nothing is counted for a picture of the model's own size: that is what `latentc plan` and a build look at.
    """
    try:
        sizes = sizes_of(bundle.part(part).inputs, shapes)
    except ShapeError:  # which the engine says
        return
    rows, height, width = (sizes.get(name, 1) for name in ("batch", "height", "width"))
    own_width, own_height = (side // bundle.manifest.model.downscale for side in bundle.manifest.model.own_size)
    if rows * height * width <= GUIDED_ROWS * own_height * own_width:
        return
    needed: int | None = None
    with suppress(LatentcError):  # a graph that can't be planned is no reason not to draw
        needed = drawing_bytes(bundle, wanted, rows, height, width)
    room = _room()
    if needed is not None and room is not None and needed > room:
        scale = bundle.manifest.model.downscale
        raise RequestError(
            f"{width * scale}x{height * scale} pixels in {rows} rows at once take {sized(needed)} of memory by plan, "
            f"and this process can have {sized(room)}. Ask for a smaller size or fewer pictures, or take a narrower "
            "type under [precision]."
        )


def _room() -> int | None:
    """Bytes that this process can hold: what it holds, and what is free; None where the system doesn't say."""
    total, available = memory()
    with suppress(OSError, ValueError):
        held = int(STATUS.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if total is not None and available is not None:
            return min(total, available + held) + swap()
    return None
