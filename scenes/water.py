"""Water: it reflects what is above it, has larger ripples near the front, and shows a path of light."""

from __future__ import annotations

import numpy as np

from .air import RGB, Floats, land_colour
from .brush import Point
from .canvas import Canvas, lay, noise, ramp, shine


def paint_water(
    canvas: Canvas, top: float, bottom: float, far: RGB, near: RGB, spot: Point | None, mirror: float
) -> None:
    """Fill from `top` to `bottom` with water that mirrors what is painted above `top`.

    `mirror` is how much of the far water is reflection; it falls toward the front. `spot` is the sun or moon.
    """
    rows = canvas.rows(top, bottom)
    rows = slice(max(rows.start, 1), rows.stop)
    y = canvas.y[rows]
    depth = np.clip((y - top) / (canvas.height - top), 0.0, 1.0)
    ripple = _ripple(canvas, top, rows)
    image = reflection(canvas, top, rows, 0.012 * ripple * (0.3 + 2.2 * depth))
    # Water has little colour of its own: far off it takes the low sky's, nearby the high sky's.
    low, high = (np.array(colour, np.float32) for colour in (canvas.air.horizon, canvas.air.zenith))
    own_far = land_colour(canvas.air, far)
    own_far += (low - own_far) * 0.38
    own_near = land_colour(canvas.air, near)
    own_near += (high - own_near) * 0.34
    own = own_far + (own_near - own_far) * ramp(depth, 0.0, 0.8)[..., None]
    share = (mirror * (1.0 - 0.45 * depth))[..., None]
    colour = own + (image - own) * share
    colour = colour * (1.0 + 0.075 * (ripple * (0.35 + depth))[..., None])
    lay(canvas, colour, np.clip((y - top) * canvas.unit + 0.5, 0.0, 1.0) + 0.0 * ripple, rows)
    if spot:
        _path(canvas, top, rows, spot, ripple)


def reflection(canvas: Canvas, top: float, rows: slice, sway: Floats) -> Floats:
    """The image above `top`, upside down, for these rows; `sway` shifts it, in units."""
    height, width = canvas.pixels.shape[:2]
    mirrored = np.rint((2 * top - canvas.y[rows] + 0.8 * sway) * canvas.unit - 0.5)
    lines = np.clip(mirrored, 0, min(height - 1, max(0, int(top * canvas.unit) - 1))).astype(np.int64)
    columns = np.clip(np.rint(np.arange(width, dtype=np.float32) + sway * canvas.unit), 0, width - 1).astype(np.int64)
    return canvas.pixels[lines, columns]


def _ripple(canvas: Canvas, top: float, rows: slice) -> Floats:
    """Waves, about -1 to 1, that lengthen toward the front."""
    rng = canvas.rng("ripple")
    deep = np.sqrt(np.clip(canvas.y[rows] - top, 0.0, None) + 0.01)
    total = np.zeros((deep.shape[0], len(canvas.x)), np.float32)
    bend = noise(canvas, "bend", 10, 4)[rows]
    for pitch, stretch in ((26.0, 3.1), (43.0, 5.3), (69.0, 9.0)):
        total += np.sin(pitch * 2.6 * deep + stretch * canvas.x / (deep + 0.25) + rng.uniform(0, 6.3) + 2.5 * bend)
    return total / 2.2


def _path(canvas: Canvas, top: float, rows: slice, spot: Point, ripple: Floats) -> None:
    deep = canvas.y[rows] - top
    wide = 0.035 + 0.22 * deep
    beam = np.exp(-(((canvas.x - np.float32(spot[0])) / wide) ** 2))
    shine(
        canvas, canvas.air.light, (0.62 * beam * ramp(ripple, -0.25, 0.75) * (1 - 0.7 * deep)).astype(np.float32), rows
    )
