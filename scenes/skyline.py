"""A city's skyline: two rows of towers, with windows."""

from __future__ import annotations

import numpy as np

from .air import RGB, land_ink, mix
from .brush import Brush, open_brush, stamp
from .canvas import Canvas, glow

LAMPS: tuple[RGB, ...] = ((255, 214, 130), (255, 190, 96), (255, 236, 180))
WALLS: tuple[RGB, ...] = ((96, 112, 146), (128, 118, 136), (84, 102, 140), (142, 128, 128))


def paint_skyline(canvas: Canvas, base: float) -> None:
    """Paint the towers, their feet at `base`."""
    for name, far, low, high in (("far", 0.55, 0.14, 0.34), ("near", 0.18, 0.07, 0.25)):
        rng = canvas.rng("skyline " + name)
        brush = open_brush(canvas, (-canvas.width / 2, base - 0.45, canvas.width / 2, base))
        x = -canvas.width / 2 - 0.03
        while x < canvas.width / 2:
            wide = rng.uniform(0.06, 0.12)
            _tower(canvas, brush, rng, x, wide, base, rng.uniform(low, high), far)
            x += wide + (0.0 if name == "far" else rng.uniform(-0.01, 0.05))
        stamp(canvas, brush)
    if canvas.air.dark:
        for x in np.linspace(-canvas.width / 2, canvas.width / 2, 5):
            glow(canvas, float(x), base, 0.12, (255, 186, 110), 0.35)


def _tower(
    canvas: Canvas, brush: Brush, rng: np.random.Generator, x: float, wide: float, base: float, tall: float, far: float
) -> None:
    wall, shape, lit = WALLS[int(rng.integers(len(WALLS)))], int(rng.integers(4)), rng.random((14, 5))
    ink = land_ink(canvas.air, wall, far)
    top = base - tall
    brush.rectangle(x, top, x + wide, base, ink)
    brush.rectangle(x + 0.72 * wide, top, x + wide, base, mix(ink, (20, 26, 44), 0.22))
    if shape == 1:
        brush.polygon([(x, top + 0.001), (x + wide / 2, top - 0.05), (x + wide, top + 0.001)], ink)
    elif shape == 2:
        brush.rectangle(x + 0.2 * wide, top - 0.03, x + 0.8 * wide, top + 0.001, ink)
        brush.line([(x + wide / 2, top - 0.03), (x + wide / 2, top - 0.09)], 0.006, ink)
    columns = 4 if wide > 0.085 else 3
    for row in range(min(14, int(tall / 0.024))):
        for column in range(columns):
            on = lit[row, column]
            if canvas.air.dark and on > 0.55:
                continue
            pane = LAMPS[int(on * 100) % 3] if canvas.air.dark else mix(ink, canvas.air.middle, 0.55)
            left = x + wide * (column + 0.28) / columns
            height = top + 0.014 + row * 0.024
            brush.rectangle(left, height, left + 0.5 * wide / columns, height + 0.012, mix(pane, ink, far * 0.5))
