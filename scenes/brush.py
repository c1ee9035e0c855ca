"""Hard edges: shapes drawn at a larger size with Pillow, scaled down, and composited onto the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from .air import RGB, Floats
from .canvas import Canvas

Point = tuple[float, float]


@dataclass(frozen=True)
class Brush:
    """Draws into a box of the canvas, in its own coordinate system: origin, scale and directions."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    corner: tuple[int, int]
    """The box's left and top, in pixels of the canvas."""
    origin: Point
    """Where (0, 0) is, in pixels of the image."""
    scale: float
    """Pixels of the image per unit of the brush."""
    up: bool
    side: int
    """1, or -1 where x runs to the left."""
    over: int
    """Pixels of the image per pixel of the canvas, along each side."""
    lamps: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])
    """Lights drawn, as (x, y, radius) in units of the brush."""

    def at(self, x: float, y: float) -> Point:
        """A point in pixels of the image."""
        return self.origin[0] + self.side * x * self.scale, self.origin[1] + (-y if self.up else y) * self.scale

    def polygon(self, points: Sequence[Point], colour: RGB) -> None:
        """A filled polygon."""
        self.draw.polygon([self.at(x, y) for x, y in points], fill=_ink(colour))

    def rectangle(self, left: float, low: float, right: float, high: float, colour: RGB) -> None:
        """A filled rectangle."""
        (x0, y0), (x1, y1) = self.at(left, low), self.at(right, high)
        x0, x1 = min(x0, x1), max(x0, x1)
        self.draw.rectangle((x0, min(y0, y1), max(x0, x1 - 1), max(y0, y1)), fill=_ink(colour))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """A filled ellipse around a point."""
        px, py = self.at(x, y)
        rx, ry = rx * self.scale, ry * self.scale
        self.draw.ellipse((px - rx, py - ry, px + rx, py + ry), fill=_ink(colour))

    def pie(self, x: float, y: float, rx: float, ry: float, start: float, end: float, colour: RGB) -> None:
        """A filled sector; angles in degrees, clockwise from three o'clock."""
        px, py = self.at(x, y)
        rx, ry = rx * self.scale, ry * self.scale
        start, end = (start, end) if self.side > 0 else (180 - end, 180 - start)
        self.draw.pieslice((px - rx, py - ry, px + rx, py + ry), start, end, fill=_ink(colour))

    def line(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        """A line of this width, at least one pixel of the image."""
        self.draw.line(
            [self.at(x, y) for x, y in points],
            fill=_ink(colour),
            width=max(1, round(width * self.scale)),
            joint="curve",
        )


def _ink(colour: RGB) -> tuple[int, int, int, int]:
    red, green, blue = (max(0, min(255, round(value))) for value in colour)
    return red, green, blue, 255


def open_brush(
    canvas: Canvas,
    box: tuple[float, float, float, float],
    origin: Point = (0.0, 0.0),
    scale: float = 1.0,
    up: bool = False,
    side: int = 1,
) -> Brush:
    """A brush for a box (left, top, right, bottom) of the canvas, in its units; clipped to the canvas."""
    height, width = canvas.pixels.shape[:2]
    over = oversampling(canvas)
    left = min(max(int((box[0] + canvas.width / 2) * canvas.unit) - 1, 0), width - 1)
    top = min(max(int(box[1] * canvas.unit) - 1, 0), height - 1)
    right = min(max(int((box[2] + canvas.width / 2) * canvas.unit) + 2, left + 1), width)
    bottom = min(max(int(box[3] * canvas.unit) + 2, top + 1), height)
    image = Image.new("RGBA", ((right - left) * over, (bottom - top) * over))
    zero = (
        ((origin[0] + canvas.width / 2) * canvas.unit - left) * over - 0.5,
        (origin[1] * canvas.unit - top) * over - 0.5,
    )
    return Brush(image, ImageDraw.Draw(image), (left, top), zero, scale * canvas.unit * over, up, side, over)


def oversampling(canvas: Canvas) -> int:
    """The factor by which shapes are drawn larger than their final size, along each side."""
    return 4 if canvas.unit <= 192 else 3 if canvas.unit <= 384 else 2


def shrunk(brush: Brush) -> Floats:
    """The drawing at the canvas's scale: [height, width, 4], colours premultiplied by alpha, 0 to 255."""
    # Shapes are opaque and the rest is 0, so averaging each channel separately gives premultiplied alpha.
    channels = brush.image.split()
    return np.stack([np.asarray(channel.reduce(brush.over), np.float32) for channel in channels], axis=-1)


def stamp(canvas: Canvas, brush: Brush, opacity: float = 1.0) -> Floats:
    """Composite the drawing onto the canvas; returns the same as `shrunk`."""
    drawn = shrunk(brush)
    press(canvas, drawn, brush.corner, opacity)
    return drawn


def press(canvas: Canvas, drawn: Floats, corner: tuple[int, int], opacity: float | Floats = 1.0) -> None:
    """Composite premultiplied colours onto the canvas, with their top left corner at a pixel of it."""
    left, top = corner
    part = canvas.pixels[top : top + drawn.shape[0], left : left + drawn.shape[1]]
    part += opacity * (drawn[..., :3] - part * (drawn[..., 3:] / 255.0))
