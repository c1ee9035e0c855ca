"""Conifers, as a wall of them."""

from __future__ import annotations

from .air import RGB, land_ink, mix
from .brush import Brush, open_brush, stamp
from .canvas import Canvas


def conifers(canvas: Canvas, name: str, foot: float, tall: float, colour: RGB, far: float, number: int) -> None:
    """A row of conifers along a height: `number` of them per unit of width, up to `tall` high."""
    rng = canvas.rng(name + " conifers")
    half = canvas.width / 2 + 0.1
    brush = open_brush(canvas, (-canvas.width / 2, foot - 1.15 * tall, canvas.width / 2, foot + 0.06))
    ink = land_ink(canvas.air, colour, far)
    inks = mix(ink, (0, 10, 30), 0.10), ink, mix(ink, canvas.air.light, 0.10)
    brush.rectangle(-half, foot - 0.12 * tall, half, foot + 0.06, ink)
    count = round(number * 2 * half)
    for i, (shift, size, turn) in enumerate(rng.random((count, 3))):
        x = -half + (i + shift) * 2 * half / count
        _conifer(brush, x, foot, tall * (0.55 + 0.55 * size), inks[int(turn * 3)])
    stamp(canvas, brush)


def _conifer(brush: Brush, x: float, foot: float, tall: float, ink: RGB) -> None:
    left: list[tuple[float, float]] = []
    right: list[tuple[float, float]] = []
    for up, wide in ((1.0, 0.0), (0.68, 0.12), (0.70, 0.06), (0.40, 0.17), (0.43, 0.09), (0.08, 0.22), (0.0, 0.03)):
        left.append((x - wide * tall, foot - up * tall))
        right.append((x + wide * tall, foot - up * tall))
    brush.polygon(left + right[::-1], ink)
