"""Things: the shape of each kind, with its foot at (0, 0), a height of 1 and y pointing up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from typing import NamedTuple

from .air import RGB, Air, mix, thing_colour
from .brush import Brush, Point
from .world import COLOURS, Colour, Kind

WHITE: RGB = (246, 246, 242)
CREAM: RGB = (244, 232, 206)
BROWN: RGB = (112, 74, 48)
SLATE: RGB = (74, 70, 84)
STEEL: RGB = (150, 156, 168)
GLASS: RGB = (150, 190, 216)
LAMP: RGB = (255, 214, 120)


@dataclass(frozen=True)
class Inks:
    """A thing's colours under its sky."""

    air: Air
    main: RGB
    bright: RGB
    shade: RGB

    def trim(self, colour: RGB) -> RGB:
        """A fixed colour under this sky."""
        return thing_colour(self.air, colour)

    @property
    def window(self) -> RGB:
        """Glass by day, a lamp by night."""
        return LAMP if self.air.dark else self.trim(GLASS)


def inks(air: Air, colour: Colour) -> Inks:
    """The inks of a thing of this colour."""
    main = COLOURS[colour]
    shade = mix(main, (30, 30, 70), 0.16 if colour in PALE else 0.28)
    return Inks(air, *(thing_colour(air, tone) for tone in (main, mix(main, (255, 255, 255), 0.22), shade)))


PALE: frozenset[Colour] = frozenset({"white", "yellow"})


def _window(brush: Brush, ink: Inks, x: float, y: float, wide: float, tall: float) -> None:
    brush.rectangle(x - wide / 2 - 0.018, y - tall / 2 - 0.018, x + wide / 2 + 0.018, y + tall / 2 + 0.018, ink.shade)
    brush.rectangle(x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2, ink.window)
    brush.lamps.append((x, y, tall))


def _house(brush: Brush, ink: Inks) -> None:
    roof = ink.trim(SLATE)
    brush.rectangle(0.22, 0.6, 0.34, 0.95, ink.trim((120, 96, 88)))
    brush.rectangle(-0.46, 0.0, 0.46, 0.56, ink.main)
    brush.rectangle(0.30, 0.0, 0.46, 0.56, ink.shade)
    brush.polygon([(-0.56, 0.52), (-0.30, 0.94), (0.30, 0.94), (0.56, 0.52)], roof)
    brush.polygon([(-0.46, 0.54), (-0.18, 0.90), (0.10, 0.54)], ink.main)
    brush.line([(-0.54, 0.50), (-0.18, 0.96), (0.16, 0.52)], 0.06, mix(roof, (0, 0, 0), 0.15))
    brush.rectangle(-0.27, 0.0, -0.09, 0.32, ink.trim(BROWN))
    _window(brush, ink, 0.20, 0.30, 0.17, 0.17)
    _window(brush, ink, -0.18, 0.56, 0.12, 0.14)


def _boat(brush: Brush, ink: Inks) -> None:
    hull = [(-0.46, 0.18), (0.50, 0.20), (0.36, -0.02), (-0.34, -0.02)]
    brush.line([(0.0, 0.1), (0.0, 1.0)], 0.035, ink.trim(BROWN))
    brush.polygon([(0.03, 0.98), (0.42, 0.28), (0.03, 0.26)], ink.main)
    brush.polygon([(0.03, 0.98), (0.42, 0.28), (0.27, 0.275)], ink.shade)
    brush.polygon([(-0.03, 0.90), (-0.36, 0.30), (-0.03, 0.27)], ink.bright)
    brush.polygon(hull, ink.main)
    brush.polygon([(-0.46, 0.18), (0.50, 0.20), (0.47, 0.14), (-0.43, 0.12)], ink.trim(CREAM))
    brush.polygon([(-0.38, 0.04), (0.40, 0.05), (0.36, -0.02), (-0.34, -0.02)], ink.shade)


def _tree(brush: Brush, ink: Inks) -> None:
    trunk = ink.trim(BROWN)
    brush.polygon([(-0.06, 0.0), (0.06, 0.0), (0.035, 0.5), (-0.035, 0.5)], trunk)
    brush.line([(0.0, 0.28), (0.16, 0.48)], 0.04, trunk)
    crown = ((0.0, 0.62, 0.36), (-0.20, 0.54, 0.22), (0.21, 0.53, 0.22), (-0.11, 0.78, 0.21), (0.13, 0.76, 0.22))
    for x, y, radius in crown:
        brush.ellipse(x, y - 0.02, radius, radius * 0.95, ink.shade)
    for x, y, radius in crown:
        brush.ellipse(x - 0.03, y + 0.025, radius * 0.88, radius * 0.84, ink.main)
    for x, y, radius in ((-0.13, 0.84, 0.10), (-0.26, 0.60, 0.08), (0.06, 0.70, 0.09), (0.16, 0.86, 0.06)):
        brush.ellipse(x, y, radius, radius * 0.75, ink.bright)


def _lighthouse(brush: Brush, ink: Inks) -> None:
    def side(y: float) -> float:
        return 0.17 - 0.08 * y / 0.74

    brush.polygon([(-side(0), 0), (side(0), 0), (side(0.74), 0.74), (-side(0.74), 0.74)], ink.main)
    for low, high in ((0.20, 0.28), (0.48, 0.56)):
        band = [(-side(low), low), (side(low), low), (side(high), high), (-side(high), high)]
        brush.polygon(band, ink.trim(STEEL if ink.main == thing_colour(ink.air, COLOURS["white"]) else WHITE))
    brush.polygon([(side(0), 0), (0.08, 0), (0.045, 0.74), (side(0.74), 0.74)], ink.shade)
    brush.rectangle(-0.14, 0.73, 0.14, 0.765, ink.trim(SLATE))
    brush.rectangle(-0.075, 0.765, 0.075, 0.88, LAMP if ink.air.dark else ink.trim((255, 240, 180)))
    brush.polygon([(-0.11, 0.875), (0.0, 1.0), (0.11, 0.875)], ink.main)
    brush.rectangle(-0.035, 0.0, 0.035, 0.10, ink.trim(SLATE))
    brush.lamps.append((0.0, 0.82, 0.34))


def _balloon(brush: Brush, ink: Inks) -> None:
    for x in (-0.09, 0.09):
        brush.line([(x * 2.4, 0.42), (x, 0.14)], 0.014, ink.trim(BROWN))
    brush.polygon([(-0.36, 0.58), (0.36, 0.58), (0.10, 0.24), (-0.10, 0.24)], ink.main)
    brush.ellipse(0, 0.66, 0.37, 0.34, ink.main)
    for x, wide, tone in ((0.24, 0.13, ink.shade), (-0.17, 0.075, ink.bright), (0.05, 0.075, ink.bright)):
        brush.ellipse(x, 0.66, wide, 0.305 if tone is ink.bright else 0.26, tone)
        brush.polygon([(x - wide, 0.62), (x + wide, 0.62), (x * 0.32 + 0.02, 0.25), (x * 0.32 - 0.02, 0.25)], tone)
    brush.rectangle(-0.10, 0.0, 0.10, 0.14, ink.trim(BROWN))
    brush.rectangle(-0.115, 0.11, 0.115, 0.15, ink.trim((168, 120, 80)))
    if ink.air.dark:
        brush.ellipse(0, 0.22, 0.04, 0.05, LAMP)
        brush.lamps.append((0.0, 0.42, 0.4))


def _cactus(brush: Brush, ink: Inks) -> None:
    def limb(points: list[Point], wide: float, tone: RGB) -> None:
        brush.line(points, wide, tone)
        for x, y in points:
            brush.ellipse(x, y, wide / 2, wide / 2, tone)

    for shift, tone in ((0.0, ink.shade), (-0.02, ink.main)):
        slim = 0.03 if shift else 0.0
        limb([(-0.04 + shift, 0.36), (-0.27 + shift, 0.40), (-0.27 + shift, 0.66)], 0.15 - slim, tone)
        limb([(0.04 + shift, 0.26), (0.28 + shift, 0.30), (0.28 + shift, 0.54)], 0.15 - slim, tone)
        limb([(shift, 0.0), (shift, 0.86)], 0.25 - slim, tone)
    for x in (-0.07, 0.03):
        brush.line([(x, 0.03), (x, 0.88)], 0.016, ink.bright)
    for x, y in ((0.0, 0.985), (-0.28, 0.74)):
        brush.ellipse(x, y, 0.055, 0.035, ink.trim((248, 120, 160)))


def _windmill(brush: Brush, ink: Inks) -> None:
    brush.polygon([(-0.22, 0.0), (0.22, 0.0), (0.13, 0.62), (-0.13, 0.62)], ink.main)
    brush.polygon([(0.22, 0.0), (0.10, 0.0), (0.05, 0.62), (0.13, 0.62)], ink.shade)
    brush.pie(0, 0.61, 0.155, 0.16, 180, 360, ink.trim(SLATE))
    brush.rectangle(-0.06, 0.0, 0.06, 0.17, ink.trim(BROWN))
    _window(brush, ink, -0.02, 0.36, 0.08, 0.10)
    hub = (0.0, 0.64)
    for quarter in range(4):
        angle = quarter * pi / 2 + 0.5
        along, aside = (cos(angle), sin(angle)), (-sin(angle), cos(angle))

        def on(far: float, off: float, a: Point = along, b: Point = aside) -> Point:
            return hub[0] + a[0] * far + b[0] * off, hub[1] + a[1] * far + b[1] * off

        brush.polygon([on(0.10, 0.0), on(0.40, 0.0), on(0.40, 0.10), on(0.10, 0.09)], ink.trim(CREAM))
        brush.line([hub, on(0.41, 0.0)], 0.025, ink.trim(BROWN))
        brush.line([on(0.25, 0.0), on(0.25, 0.095)], 0.012, ink.trim(BROWN))
    brush.ellipse(*hub, 0.035, 0.035, ink.trim(SLATE))


def _tent(brush: Brush, ink: Inks) -> None:
    brush.polygon([(-0.62, 0.0), (-0.06, 0.88), (0.30, 0.82), (0.70, 0.0)], ink.shade)
    brush.polygon([(-0.62, 0.0), (-0.06, 0.88), (0.36, 0.0)], ink.main)
    inside = LAMP if ink.air.dark else ink.trim((70, 56, 60))
    brush.polygon([(-0.30, 0.0), (-0.09, 0.56), (0.10, 0.0)], inside)
    brush.polygon([(-0.10, 0.56), (-0.09, 0.56), (0.22, 0.0), (0.08, 0.0)], ink.bright)
    brush.line([(-0.62, 0.0), (-0.06, 0.88), (0.02, 1.0)], 0.025, ink.bright)
    brush.line([(0.36, 0.0), (-0.06, 0.88), (-0.12, 1.0)], 0.025, ink.bright)
    brush.lamps.append((-0.1, 0.25, 0.4))


def _kite(brush: Brush, ink: Inks) -> None:
    tail = [(0.0, 0.36), (0.05, 0.27), (-0.03, 0.18), (0.04, 0.09), (0.0, 0.0)]
    brush.line(tail, 0.022, ink.trim(WHITE))
    for x, y in tail[1:4]:
        brush.polygon([(x, y), (x - 0.075, y + 0.04), (x - 0.075, y - 0.04)], ink.main)
        brush.polygon([(x, y), (x + 0.075, y + 0.04), (x + 0.075, y - 0.04)], ink.main)
    brush.polygon([(0.0, 1.0), (0.32, 0.72), (0.0, 0.34), (-0.32, 0.72)], ink.main)
    brush.polygon([(0.0, 1.0), (0.32, 0.72), (0.0, 0.72)], ink.bright)
    brush.polygon([(0.0, 0.34), (0.32, 0.72), (0.0, 0.72)], ink.shade)
    brush.line([(0.0, 1.0), (0.0, 0.34)], 0.02, ink.trim(BROWN))
    brush.line([(-0.32, 0.72), (0.32, 0.72)], 0.02, ink.trim(BROWN))


def _car(brush: Brush, ink: Inks) -> None:
    brush.polygon([(-0.52, 0.50), (-0.34, 0.86), (0.24, 0.86), (0.50, 0.50)], ink.main)
    brush.polygon([(-0.40, 0.52), (-0.28, 0.77), (-0.06, 0.77), (-0.06, 0.52)], ink.window)
    brush.polygon([(0.02, 0.52), (0.02, 0.77), (0.20, 0.77), (0.37, 0.52)], ink.window)
    brush.polygon([(-0.82, 0.16), (-0.80, 0.50), (-0.5, 0.56), (0.50, 0.56), (0.82, 0.44), (0.86, 0.16)], ink.main)
    brush.polygon([(-0.82, 0.16), (-0.81, 0.28), (0.855, 0.28), (0.86, 0.16)], ink.shade)
    brush.line([(-0.78, 0.46), (0.76, 0.46)], 0.03, ink.bright)
    for x in (-0.48, 0.48):
        brush.ellipse(x, 0.17, 0.18, 0.18, ink.trim((44, 44, 52)))
        brush.ellipse(x, 0.17, 0.085, 0.085, ink.trim(STEEL))
    brush.ellipse(0.80, 0.38, 0.055, 0.065, LAMP if ink.air.dark else ink.trim((255, 246, 206)))
    brush.lamps.append((0.95, 0.36, 0.3))


def _castle(brush: Brush, ink: Inks) -> None:
    roof = ink.trim(SLATE)
    for x, tall in ((-0.18, 0.78), (0.20, 0.70)):
        brush.rectangle(x - 0.10, 0.0, x + 0.10, tall, ink.shade)
        brush.polygon([(x - 0.14, tall), (x, tall + 0.20), (x + 0.14, tall)], roof)
    brush.rectangle(-0.46, 0.0, 0.46, 0.42, ink.main)
    for x in (-0.24, -0.08, 0.08, 0.24):
        brush.rectangle(x - 0.045, 0.41, x + 0.045, 0.48, ink.main)
    for x in (-0.46, 0.46):
        brush.rectangle(x - 0.13, 0.0, x + 0.13, 0.60, ink.main)
        brush.rectangle(x + 0.05, 0.0, x + 0.13, 0.60, ink.shade)
        brush.polygon([(x - 0.17, 0.59), (x, 0.84), (x + 0.17, 0.59)], roof)
        _window(brush, ink, x - 0.03, 0.44, 0.06, 0.10)
    brush.pie(0, 0.17, 0.12, 0.13, 180, 360, ink.trim(BROWN))
    brush.rectangle(-0.12, 0.0, 0.12, 0.175, ink.trim(BROWN))
    _window(brush, ink, -0.18, 0.60, 0.06, 0.10)
    brush.polygon([(-0.18, 1.06), (0.0, 1.02), (-0.18, 0.98)], ink.bright)
    brush.line([(-0.18, 0.95), (-0.18, 1.06)], 0.016, roof)


def _umbrella(brush: Brush, ink: Inks) -> None:
    brush.line([(0.0, 0.0), (0.0, 1.0)], 0.035, ink.trim((150, 118, 84)))
    brush.pie(0, 0.52, 0.52, 0.44, 180, 360, ink.main)
    brush.pie(0, 0.52, 0.30, 0.44, 180, 360, ink.bright)
    brush.pie(0, 0.52, 0.14, 0.44, 180, 360, ink.main)
    brush.pie(0.02, 0.52, 0.50, 0.44, 310, 360, ink.shade)
    for x in (-0.415, -0.22, 0.0, 0.22, 0.415):
        brush.ellipse(x, 0.52, 0.105, 0.045, ink.shade if x > 0.4 else ink.main)
    brush.ellipse(0, 0.97, 0.03, 0.03, ink.trim((150, 118, 84)))


def _whale(brush: Brush, ink: Inks) -> None:
    spray = ink.trim((226, 242, 252))
    for lean in (-1, 1):
        brush.line([(-0.38, 0.55), (-0.38 + 0.05 * lean, 0.86), (-0.38 + 0.19 * lean, 0.80)], 0.045, spray)
    brush.polygon([(0.40, 0.10), (0.78, 0.44), (0.92, 0.34), (0.66, 0.0), (0.40, -0.05)], ink.shade)
    brush.polygon([(0.83, 0.36), (0.62, 0.70), (0.90, 0.58), (1.02, 0.62), (1.14, 0.46), (0.92, 0.32)], ink.main)
    brush.pie(-0.10, 0.0, 0.78, 0.56, 180, 360, ink.main)
    brush.polygon([(-0.87, 0.0), (-0.84, 0.18), (-0.30, 0.12), (0.05, 0.0)], ink.trim(WHITE))
    brush.ellipse(-0.55, 0.24, 0.045, 0.05, ink.trim((30, 32, 44)))
    brush.pie(-0.28, 0.30, 0.34, 0.18, 200, 320, ink.bright)


def _mushroom(brush: Brush, ink: Inks) -> None:
    brush.polygon([(-0.14, 0.0), (0.14, 0.0), (0.10, 0.5), (-0.10, 0.5)], ink.trim(CREAM))
    brush.ellipse(0, 0.02, 0.14, 0.04, ink.trim(CREAM))
    brush.polygon([(0.14, 0.0), (0.05, 0.0), (0.04, 0.5), (0.10, 0.5)], ink.trim((214, 196, 164)))
    brush.ellipse(0, 0.46, 0.46, 0.09, ink.trim((226, 206, 176)))
    brush.pie(0, 0.46, 0.50, 0.52, 180, 360, ink.main)
    brush.pie(0.03, 0.46, 0.47, 0.50, 300, 360, ink.shade)
    dots = ink.shade if ink.main == thing_colour(ink.air, COLOURS["white"]) else ink.trim(WHITE)
    for x, y, radius in ((-0.25, 0.60, 0.075), (0.02, 0.80, 0.07), (0.20, 0.58, 0.065), (-0.07, 0.56, 0.045)):
        brush.ellipse(x, y, radius, radius * 0.85, dots)


class Shape(NamedTuple):
    """How to draw a kind of thing."""

    draw: Callable[[Brush, Inks], None]
    half: float
    """Half its width, as a share of its height."""
    tall: float
    """Height of a large one, in units of the canvas."""
    sink: float = 0.0
    """Extent below its foot."""


SHAPES: dict[Kind, Shape] = {
    "house": Shape(_house, 0.58, 0.30),
    "boat": Shape(_boat, 0.50, 0.34, 0.04),
    "tree": Shape(_tree, 0.46, 0.36),
    "lighthouse": Shape(_lighthouse, 0.19, 0.46),
    "balloon": Shape(_balloon, 0.38, 0.36),
    "cactus": Shape(_cactus, 0.37, 0.34, 0.02),
    "windmill": Shape(_windmill, 0.40, 0.40),
    "tent": Shape(_tent, 0.71, 0.26),
    "kite": Shape(_kite, 0.33, 0.36),
    "car": Shape(_car, 0.88, 0.21, 0.02),
    "castle": Shape(_castle, 0.64, 0.36),
    "umbrella": Shape(_umbrella, 0.53, 0.33),
    "whale": Shape(_whale, 1.02, 0.22, 0.03),
    "mushroom": Shape(_mushroom, 0.51, 0.29),
}

SMALL = 0.6
"""Height of a small thing, as a share of a large one's."""
