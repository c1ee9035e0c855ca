"""The image while it is painted, and soft shapes that all places and skies use.

Lengths are in units of the image's shorter side, so that an image is the same at every size:
x runs from -width / 2 to width / 2, y from 0 at the top downwards. Random values never depend on the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from PIL import Image

from .air import Air, Floats

EVERYWHERE = slice(None)


@dataclass(frozen=True)
class Canvas:
    """Pixels [height, width, 3], f32 sRGB 0 to 255, with the coordinates of their centres."""

    pixels: Floats
    x: Floats
    """[width]"""
    y: Floats
    """[height, 1]"""
    unit: int
    """Pixels of the shorter side."""
    seed: int
    air: Air

    @property
    def width(self) -> float:
        """In units."""
        return self.pixels.shape[1] / self.unit

    @property
    def height(self) -> float:
        """In units."""
        return self.pixels.shape[0] / self.unit

    def rng(self, name: str) -> np.random.Generator:
        """A random generator for one part of the image, so that parts don't affect each other."""
        return np.random.default_rng((self.seed, crc32(name.encode())))

    def rows(self, top: float, bottom: float | None = None) -> slice:
        """The rows of pixels between two heights, plus one at each end."""
        last = self.pixels.shape[0]
        first = min(max(int(top * self.unit) - 1, 0), last)
        return slice(first, last if bottom is None else min(max(int(bottom * self.unit) + 2, first), last))


def open_canvas(width: int, height: int, seed: int, air: Air) -> Canvas:
    """A black canvas of this size in pixels."""
    unit = min(width, height)
    x = ((np.arange(width) + 0.5 - width / 2) / unit).astype(np.float32)
    y = ((np.arange(height) + 0.5) / unit).astype(np.float32)[:, None]
    return Canvas(np.zeros((height, width, 3), np.float32), x, y, unit, seed, air)


def lay(canvas: Canvas, colour: Floats, alpha: Floats, rows: slice = EVERYWHERE) -> None:
    """Blend a colour (broadcast to [rows, width, 3]) over these rows with opacity `alpha` [rows, width]."""
    part = canvas.pixels[rows]
    part += (colour - part) * alpha[..., None]


def shine(canvas: Canvas, colour: tuple[float, float, float], strength: Floats, rows: slice = EVERYWHERE) -> None:
    """Add light in the screen blend mode, so that bright colours stay below white."""
    part = canvas.pixels[rows]
    part += (255.0 - part) * (strength[..., None] * (np.array(colour, np.float32) / 255.0))


def ramp(value: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, smooth in between."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def blend(stops: list[tuple[float, Floats]], value: Floats) -> Floats:
    """A colour for each value, [..., 3], between stops given in rising order."""
    at = np.array([stop for stop, _ in stops], np.float32)
    colours = np.stack([colour for _, colour in stops])
    return np.stack([np.interp(value, at, colours[:, i]) for i in range(3)], axis=-1).astype(np.float32)


def noise(canvas: Canvas, name: str, rows: int, columns: int, octaves: int = 1) -> Floats:
    """Smooth noise [height, width] around 0, about -1 to 1, with this many grains down and across."""
    rng = canvas.rng(name)
    height, width = canvas.pixels.shape[:2]
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        grid = rng.uniform(-1, 1, ((rows << octave) + 3, (columns << octave) + 3)).astype(np.float32)
        fine = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(fine, np.float32) * 0.55**octave
    return total


def waves(rng: np.random.Generator, x: Floats, pitch: float, octaves: int = 4) -> Floats:
    """A gently rolling line over x, about -1 to 1; `pitch` is hills per unit."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        frequency = pitch * 2.0**octave * rng.uniform(0.8, 1.2)
        total += np.sin(2 * np.pi * (frequency * x + rng.uniform()), dtype=np.float32) * 0.46**octave
    return total * 0.62


CRAGS = np.linspace(-2.0, 2.0, 257, dtype=np.float32)
"""Positions at which a jagged line is sampled; it is straight between them."""


def crags(rng: np.random.Generator, pitch: float, rough: float = 0.5) -> Floats:
    """Heights of a jagged line at `CRAGS`, from about -1 in the passes to 1 on the peaks; `pitch` is peaks per unit."""
    peaks = int(4 * pitch) + 1
    places = np.linspace(-2.2, 2.2, 2 * peaks + 1) + rng.uniform(-0.09, 0.09, 2 * peaks + 1) / pitch
    heights = np.where(np.arange(2 * peaks + 1) % 2, rng.uniform(0.35, 1.0, 2 * peaks + 1), rng.uniform(-0.9, -0.2))
    total = np.interp(CRAGS + rng.uniform(-0.1, 0.1), places, heights)
    for octave in range(1, 5):
        points = int(10 * pitch * 2**octave)
        bumps = rng.uniform(-1, 1, points) * 0.42 * rough**octave
        total += np.interp(CRAGS, np.linspace(-2, 2, points), bumps)
    return total.astype(np.float32)


def below(canvas: Canvas, line: Floats) -> tuple[slice, Floats]:
    """The rows from the highest point of a line over x downwards, and the share of each pixel below the line."""
    rows = canvas.rows(float(line.min()))
    return rows, np.clip((canvas.y[rows] - line) * canvas.unit + 0.5, 0.0, 1.0)


def land(canvas: Canvas, line: Floats, crest: Floats, foot: Floats, depth: float) -> None:
    """Fill everything below a line: colour `crest` at the line, `foot` from `depth` below it on."""
    rows, alpha = below(canvas, line)
    share = ramp(canvas.y[rows] - line, 0.0, depth)[..., None]
    lay(canvas, crest + (foot - crest) * share, alpha, rows)


def mist(canvas: Canvas, height: float, thick: float, strength: float) -> None:
    """A soft band of the sky's haze, densest at `height`."""
    rows = canvas.rows(height - 2.2 * thick, height + 2.2 * thick)
    alpha = strength * np.exp(-(((canvas.y[rows] - height) / thick) ** 2), dtype=np.float32)
    lay(canvas, np.array(canvas.air.haze, np.float32), np.broadcast_to(alpha, (len(alpha), len(canvas.x))), rows)


def glow(canvas: Canvas, x: float, y: float, radius: float, colour: tuple[float, float, float], peak: float) -> None:
    """Light around a point, fading to nothing at three radii."""
    rows = canvas.rows(y - 3 * radius, y + 3 * radius)
    square = (canvas.x - np.float32(x)) ** 2 + (canvas.y[rows] - np.float32(y)) ** 2
    far = np.sqrt(square) / (3 * radius)
    shine(canvas, colour, np.float32(peak) * np.clip(1.0 - far, 0.0, 1.0) ** 3, rows)
