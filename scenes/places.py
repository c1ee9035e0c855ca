"""The land: the layout of each place, and what is painted below the sky, from far to near."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .air import RGB, land_colour, land_ink, mix
from .brush import Point, open_brush, stamp
from .canvas import CRAGS, Canvas, below, crags, land, lay, mist, noise, ramp, shine, waves
from .skyline import paint_skyline
from .water import paint_water
from .woods import conifers
from .world import Place


class Lie(NamedTuple):
    """Where things may stand: heights from far to near, as shares of the image's height."""

    horizon: float
    crest: float
    """Height of the land's silhouette; a low sun stands above it."""
    ground: tuple[float, float]
    water: tuple[float, float] | None = None
    shore: float = 1.0
    """Where the water ends, toward the front."""
    bank: float = 0.0
    """Where the water begins, if what stands on the ground is mirrored in it."""
    islets: bool = False
    """Whether the ground is water, so that things on the ground get an islet."""


LIES: dict[Place, Lie] = {
    "meadow": Lie(0.60, 0.50, (0.74, 0.90)),
    "sea": Lie(0.56, 0.55, (0.68, 0.80), (0.70, 0.90), islets=True),
    "desert": Lie(0.58, 0.50, (0.76, 0.90)),
    "mountains": Lie(0.66, 0.32, (0.78, 0.91)),
    "city": Lie(0.64, 0.36, (0.87, 0.95), (0.73, 0.78), shore=0.82),
    "forest": Lie(0.66, 0.34, (0.79, 0.91)),
    "lake": Lie(0.56, 0.42, (0.585, 0.605), (0.74, 0.84), bank=0.61),
    "canyon": Lie(0.64, 0.36, (0.77, 0.91)),
    "lavender field": Lie(0.56, 0.47, (0.70, 0.86)),
    "beach": Lie(0.52, 0.51, (0.74, 0.90), (0.58, 0.61), shore=0.65),
}


def paint_place(canvas: Canvas, place: Place, spot: Point | None) -> None:
    """Paint the land; `spot` is where the sun or moon is, for its path on water."""
    PLACES[place](canvas, LIES[place].horizon * canvas.height, spot)


def hills(canvas: Canvas, name: str, top: float, swell: float, pitch: float, colour: RGB, far: float) -> None:
    """A layer of rolling hills, hazier toward its foot."""
    rng = canvas.rng(name)
    line = top - swell * waves(rng, canvas.x, pitch)
    crest = land_colour(canvas.air, colour, far)
    foot = land_colour(canvas.air, colour, min(1.0, far + 0.25))
    land(canvas, line, crest, foot, 0.16)


def floor(canvas: Canvas, name: str, top: float, swell: float, far: RGB, near: RGB, grain: float = 0.05) -> None:
    """The ground: from its far colour to its near one, with soft patches."""
    line = top - swell * waves(canvas.rng(name), canvas.x, 0.5, 3)
    land(canvas, line, land_colour(canvas.air, far, 0.18), land_colour(canvas.air, near), canvas.height - top)
    rows, alpha = below(canvas, line)
    patches = noise(canvas, name + " patches", 14, 5, 2)[rows]
    canvas.pixels[rows] *= 1.0 + (grain * patches * alpha)[..., None]


def specks(canvas: Canvas, name: str, top: float, number: int, inks: list[RGB], size: float) -> None:
    """Flowers, pebbles: dots that grow toward the front."""
    rng = canvas.rng(name)
    colours = [land_ink(canvas.air, ink) for ink in inks]
    brush = open_brush(canvas, (-canvas.width / 2, top, canvas.width / 2, canvas.height))
    for x, y, turn in rng.random((round(number * canvas.width), 3)):
        near = y**0.8
        radius = size * (0.35 + 0.9 * near)
        height = top + (canvas.height - top) * near
        brush.ellipse((x - 0.5) * canvas.width, height, radius, radius * 0.8, colours[int(turn * len(colours))])
    stamp(canvas, brush, 0.92)


def tufts(canvas: Canvas, top: float, number: int, colour: RGB) -> None:
    """Blades of grass in threes, taller toward the front."""
    rng = canvas.rng("tufts")
    inks = land_ink(canvas.air, colour), land_ink(canvas.air, mix(colour, (255, 255, 170), 0.28))
    brush = open_brush(canvas, (-canvas.width / 2, top - 0.03, canvas.width / 2, canvas.height))
    for x, y, turn in rng.random((round(number * canvas.width), 3)):
        near = y**0.8
        left, foot = (x - 0.5) * canvas.width, top + (canvas.height - top) * near
        tall = 0.012 + 0.030 * near
        for lean in (-0.5, 0.0, 0.5):
            tip = left + (lean + 0.3 * (turn - 0.5)) * tall, foot - tall * (1 - 0.3 * abs(lean))
            brush.polygon([(left - 0.10 * tall, foot), tip, (left + 0.10 * tall, foot)], inks[int(2 * turn)])
    stamp(canvas, brush, 0.8)


def _path(canvas: Canvas, top: float) -> None:
    """A trodden path that winds toward the hills."""
    rng = canvas.rng("path")
    rows = canvas.rows(top)
    depth = np.clip((canvas.y[rows] - top) / (canvas.height - top), 0.0, 1.0)
    start, swing, turn = rng.uniform(-0.3, 0.3), rng.uniform(0.08, 0.16), rng.uniform(0, 6.3)
    middle = start * canvas.width * (1 - 0.3 * depth) + swing * np.sin(turn + 4.2 * np.sqrt(depth)) * (0.3 + depth)
    wide = 0.008 + 0.075 * depth
    edge = 0.012 * noise(canvas, "path edge", 24, 24)[rows] * (0.2 + depth)
    alpha = ramp((wide + edge - np.abs(canvas.x - middle)) / (0.006 + 0.012 * depth), -0.5, 0.5)
    lay(canvas, land_colour(canvas.air, (214, 190, 138)), 0.85 * alpha * ramp(depth, 0.0, 0.06), rows)


def _meadow(canvas: Canvas, horizon: float, _spot: Point | None) -> None:
    hills(canvas, "far", horizon - 0.06, 0.045, 0.7, (92, 138, 150), 0.72)
    hills(canvas, "middle", horizon - 0.02, 0.035, 0.9, (92, 150, 96), 0.45)
    hills(canvas, "near", horizon + 0.03, 0.03, 0.6, (104, 168, 78), 0.2)
    floor(canvas, "meadow", horizon + 0.09, 0.02, (138, 190, 84), (74, 146, 58))
    _path(canvas, horizon + 0.10)
    tufts(canvas, horizon + 0.12, 70, (74, 140, 52))
    specks(canvas, "flowers", horizon + 0.13, 90, [(255, 255, 250), (252, 226, 96), (240, 128, 150)], 0.006)


def _lavender(canvas: Canvas, horizon: float, _spot: Point | None) -> None:
    hills(canvas, "far", horizon - 0.05, 0.045, 0.6, (112, 132, 172), 0.7)
    hills(canvas, "near", horizon, 0.025, 0.9, (110, 142, 110), 0.4)
    top = horizon + 0.03
    rows = canvas.rows(top)
    depth = (canvas.y[rows] - top) / (canvas.height - top)
    vanish = np.float32(canvas.rng("rows").uniform(-0.15, 0.15))
    across = (canvas.x - vanish) / (0.10 + depth * 1.0)
    ruffle = 0.05 * noise(canvas, "ruffle", 18, 18)[rows]
    row = 0.5 + 0.5 * np.cos(2 * np.pi * (across * 4.0 + ruffle), dtype=np.float32)
    earth = land_colour(canvas.air, (112, 128, 84), 0.05)
    dark, bright = land_colour(canvas.air, (98, 68, 160)), land_colour(canvas.air, (170, 130, 220))
    plant = dark + (bright - dark) * ramp(row + 0.25 * noise(canvas, "bloom", 40, 40)[rows], 0.35, 1.0)[..., None]
    colour = earth + (plant - earth) * ramp(row, 0.12, 0.38)[..., None]
    far = land_colour(canvas.air, (150, 122, 200), 0.3)
    colour = far + (colour - far) * ramp(depth, 0.0, 0.35)[..., None]
    lay(canvas, colour, np.clip((canvas.y[rows] - top) * canvas.unit + 0.5, 0, 1) + 0 * row, rows)


def _desert(canvas: Canvas, horizon: float, _spot: Point | None) -> None:
    hills(canvas, "far", horizon - 0.04, 0.03, 0.6, (206, 160, 120), 0.65)
    for i, (top, swell, far) in enumerate(((0.0, 0.05, 0.4), (0.07, 0.05, 0.2), (0.19, 0.05, 0.0))):
        rng = canvas.rng(f"dune {i}")
        phase, pitch = rng.uniform(0, 1), rng.uniform(0.55, 0.8)
        turn = (canvas.x * pitch + phase) % 1.0
        # A dune rises slowly and falls fast; its lee side is in shadow.
        wave = np.where(turn < 0.68, turn / 0.68, (1 - turn) / 0.32).astype(np.float32)
        wave = wave * wave * (3 - 2 * wave)
        line = horizon + top - swell * (wave - 0.5)
        bright, shade = land_colour(canvas.air, (238, 196, 128), far), land_colour(canvas.air, (196, 140, 86), far)
        rows, alpha = below(canvas, line)
        sunk = canvas.y[rows] - line
        edge = (canvas.x * pitch + phase - 0.25 * sunk / (swell + 0.1)) % 1.0
        lee = ramp(edge, 0.67, 0.70) * (1 - ramp(edge, 0.80, 1.0)) * np.exp(-sunk * 9, dtype=np.float32)
        ripple = 0.035 * np.sin(sunk * 230 + 6 * np.sin(canvas.x * 7 + i)) * (i == 2) * (sunk > 0.02)
        slope = np.clip(sunk * 2.4, 0, 0.55)
        share = np.clip(lee * 0.9 + slope + ripple, 0, 1)[..., None]
        lay(canvas, bright + (shade - bright) * share, alpha, rows)


def _massif(
    canvas: Canvas, name: str, top: float, rise: float, pitch: float, far: float, rock: tuple[RGB, RGB], snow: float
) -> None:
    """Peaks around the height `top`, `rise` above and below it; snow reaches `snow` down from a peak."""
    rng = canvas.rng(name)
    heights = crags(rng, pitch)
    line = np.interp(canvas.x, CRAGS, top - rise * heights).astype(np.float32)
    rows, alpha = below(canvas, line)
    sunk = canvas.y[rows] - line
    # A face is lit or shaded by the slope of the crest above it; the border between two runs down askew.
    slope = np.convolve(np.gradient(heights), np.ones(7) / 7, mode="same")
    rough = noise(canvas, name + " faces", 16, 12, 3)[rows]
    shift = canvas.x + 0.35 * sunk * np.sign(rough) * np.abs(rough) ** 0.5 + 0.10 * sunk
    lit = ramp(np.interp(shift, CRAGS, slope).astype(np.float32) + 0.012 * rough, -0.012, 0.012)[..., None]
    bare = [land_colour(canvas.air, colour, far) for colour in rock]
    white = [land_colour(canvas.air, colour, far * 0.8) for colour in ((158, 182, 222), (253, 254, 255))]
    if canvas.air.dark:
        white[1] += (np.array(canvas.air.light, np.float32) - white[1]) * 0.30 * (1 - far)
    height = top + 1.0 * rise - canvas.y[rows]
    cap = ramp(height + 0.05 * rough, 2 * rise - snow - 0.018, 2 * rise - snow + 0.018)[..., None]
    stone = bare[0] + (bare[1] - bare[0]) * lit
    firn = white[0] + (white[1] - white[0]) * lit
    colour = stone + (firn - stone) * cap
    haze = np.array(canvas.air.haze, np.float32)
    lay(canvas, colour + (haze - colour) * (0.5 * ramp(-height, -rise, 0.05))[..., None], alpha, rows)


def _mountains(canvas: Canvas, horizon: float, _spot: Point | None) -> None:
    _massif(canvas, "far", horizon - 0.23, 0.12, 1.5, 0.55, ((92, 108, 148), (146, 162, 194)), 0.20)
    _massif(canvas, "near", horizon - 0.15, 0.19, 1.1, 0.15, ((66, 80, 116), (124, 136, 160)), 0.27)
    conifers(canvas, "pines", horizon + 0.045, 0.07, (48, 84, 90), 0.25, 30)
    floor(canvas, "snow", horizon + 0.035, 0.018, (214, 226, 244), (247, 250, 255), 0.03)


def _forest(canvas: Canvas, horizon: float, _spot: Point | None) -> None:
    conifers(canvas, "far", horizon - 0.02, 0.26, (74, 120, 112), 0.68, 22)
    mist(canvas, horizon - 0.05, 0.07, 0.5)
    conifers(canvas, "middle", horizon + 0.03, 0.30, (52, 104, 84), 0.38, 17)
    mist(canvas, horizon, 0.06, 0.4)
    conifers(canvas, "near", horizon + 0.07, 0.30, (36, 84, 62), 0.12, 13)
    floor(canvas, "moss", horizon + 0.05, 0.015, (108, 142, 74), (60, 100, 52))
    specks(canvas, "ferns", horizon + 0.09, 60, [(132, 172, 80), (82, 128, 60), (176, 190, 110)], 0.005)


def _canyon(canvas: Canvas, horizon: float, _spot: Point | None) -> None:
    _mesas(canvas, "far", horizon - 0.13, 0.10, 0.55, 2.4)
    _mesas(canvas, "near", horizon - 0.10, 0.20, 0.15, 1.5)
    floor(canvas, "gorge", horizon + 0.02, 0.015, (220, 142, 92), (186, 98, 60), 0.06)
    specks(canvas, "pebbles", horizon + 0.08, 50, [(150, 78, 52), (232, 168, 120), (120, 130, 72)], 0.006)


def _mesas(canvas: Canvas, name: str, top: float, rise: float, far: float, pitch: float) -> None:
    rng = canvas.rng(name + " mesas")
    swell = waves(rng, canvas.x, pitch, 2)
    shelf = ramp(swell, -0.12, 0.06) + 0.45 * ramp(swell, 0.30, 0.42) - 0.35 * ramp(-swell, 0.3, 0.5)
    line = top - rise * (shelf - 0.5) - 0.008 * waves(rng, canvas.x, 6.0, 2)
    rows, alpha = below(canvas, line.astype(np.float32))
    bands: list[RGB] = [(226, 136, 84), (190, 88, 56), (236, 166, 112), (172, 74, 52), (214, 118, 76)]
    inks = np.stack([land_colour(canvas.air, band, far) for band in bands])
    layer = (canvas.y[rows] - top + 0.014 * waves(rng, canvas.x, 0.8, 2)) * 26
    at = np.floor(layer).astype(np.int64) % len(bands)
    soft = ramp((layer - np.floor(layer)).astype(np.float32), 0.75, 1.0)[..., None]
    colour = inks[at] + (inks[(at + 1) % len(bands)] - inks[at]) * soft
    cracks = noise(canvas, name + " cracks", 14, 14, 2)[rows]
    facing = np.clip(np.gradient(shelf) * canvas.unit * 0.02, -0.16, 0.16)
    lay(canvas, colour * (1 + 0.045 * cracks - facing)[..., None], alpha, rows)


def _sea(canvas: Canvas, horizon: float, spot: Point | None) -> None:
    paint_water(canvas, horizon, canvas.height, (40, 122, 168), (16, 74, 128), spot, 0.35)


def _lake(canvas: Canvas, horizon: float, spot: Point | None) -> None:
    _massif(canvas, "far", horizon - 0.09, 0.12, 1.2, 0.5, ((88, 112, 146), (140, 164, 184)), 0.06)
    hills(canvas, "near", horizon - 0.02, 0.035, 0.8, (78, 130, 92), 0.35)
    conifers(canvas, "bank", horizon + 0.02, 0.075, (46, 96, 74), 0.25, 46)
    floor(canvas, "shore", horizon + 0.005, 0.006, (128, 172, 92), (112, 150, 84))
    paint_water(canvas, horizon + 0.05, canvas.height, (70, 140, 168), (34, 96, 132), spot, 0.62)


def _beach(canvas: Canvas, horizon: float, spot: Point | None) -> None:
    rng = canvas.rng("shore")
    edge = horizon + 0.14 + 0.03 * waves(rng, canvas.x, 0.5, 2)
    paint_water(canvas, horizon, float(edge.max()) + 0.02, (52, 160, 180), (60, 186, 190), spot, 0.3)
    wet, sand, near = ((206, 176, 130), (244, 222, 172), (230, 198, 142))
    land(canvas, edge, land_colour(canvas.air, wet), land_colour(canvas.air, sand), 0.05)
    rows, alpha = below(canvas, edge + 0.03)
    share = ramp(canvas.y[rows] - edge, 0.05, 0.35)[..., None]
    ground = land_colour(canvas.air, sand) + (land_colour(canvas.air, near) - land_colour(canvas.air, sand)) * share
    lay(canvas, ground, alpha * ramp(canvas.y[rows] - edge, 0.02, 0.06), rows)
    foam = np.exp(-(((canvas.y - edge + 0.004) / 0.007) ** 2)) + 0.5 * np.exp(
        -(((canvas.y - edge + 0.03) / 0.005) ** 2)
    )
    shine(canvas, land_ink(canvas.air, (255, 255, 255)), 0.9 * foam)
    specks(canvas, "shells", horizon + 0.24, 30, [(252, 240, 220), (214, 160, 120), (246, 190, 170)], 0.005)


def _city(canvas: Canvas, horizon: float, spot: Point | None) -> None:
    paint_skyline(canvas, horizon)
    paint_water(canvas, horizon, canvas.height * 0.84, (74, 118, 150), (44, 84, 120), spot, 0.6)
    quay = canvas.height * 0.82
    floor(canvas, "quay", quay, 0.0, (120, 158, 96), (84, 132, 72), 0.04)
    brush = open_brush(canvas, (-canvas.width / 2, quay - 0.02, canvas.width / 2, quay + 0.03))
    stone = land_ink(canvas.air, (168, 164, 156))
    brush.rectangle(-canvas.width / 2, quay - 0.006, canvas.width / 2, quay + 0.012, stone)
    stamp(canvas, brush)


PLACES: dict[Place, Callable[[Canvas, float, Point | None], None]] = {
    "meadow": _meadow,
    "sea": _sea,
    "desert": _desert,
    "mountains": _mountains,
    "city": _city,
    "forest": _forest,
    "lake": _lake,
    "canyon": _canyon,
    "lavender field": _lavender,
    "beach": _beach,
}
