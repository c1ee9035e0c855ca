"""The colours of each sky: its gradient, its light on the land, and its haze over distant things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .world import Sky

Floats = NDArray[np.floating[Any]]
"""f32 on the canvas; intermediate values may be f64."""
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Air:
    """A sky's palette, sRGB 0 to 255, and how it colours the land."""

    zenith: RGB
    middle: RGB
    horizon: RGB
    haze: RGB
    """The colour into which distant things fade."""
    light: RGB
    """The colour of its sun or moon."""
    tint: RGB
    """Factors for the land's daylight colours."""
    clouds: tuple[RGB, RGB]
    """Bright side, shaded side."""
    haze_strength: float = 0.8
    dark: bool = False
    """Whether windows are lit and stars are visible."""
    frost: float = 0.0
    """How much fresh snow lies on the land."""


AIRS: dict[Sky, Air] = {
    "day": Air(
        zenith=(54, 124, 212),
        middle=(120, 182, 238),
        horizon=(220, 238, 246),
        haze=(196, 222, 242),
        light=(255, 246, 204),
        tint=(1.0, 1.0, 1.0),
        clouds=((255, 255, 255), (196, 212, 232)),
    ),
    "sunset": Air(
        zenith=(62, 56, 128),
        middle=(226, 100, 110),
        horizon=(255, 186, 96),
        haze=(244, 160, 116),
        light=(255, 236, 166),
        tint=(0.92, 0.68, 0.62),
        clouds=((255, 176, 128), (150, 84, 128)),
    ),
    "night": Air(
        zenith=(8, 13, 40),
        middle=(22, 36, 84),
        horizon=(62, 82, 140),
        haze=(50, 68, 122),
        light=(236, 240, 255),
        tint=(0.36, 0.41, 0.60),
        clouds=((70, 84, 132), (30, 40, 80)),
        dark=True,
    ),
    "storm": Air(
        zenith=(52, 58, 72),
        middle=(86, 95, 108),
        horizon=(150, 158, 162),
        haze=(122, 131, 140),
        light=(226, 232, 255),
        tint=(0.56, 0.60, 0.64),
        clouds=((136, 144, 154), (50, 55, 68)),
        haze_strength=0.85,
    ),
    "dawn": Air(
        zenith=(116, 144, 208),
        middle=(222, 176, 206),
        horizon=(255, 216, 196),
        haze=(242, 206, 210),
        light=(255, 246, 214),
        tint=(0.95, 0.86, 0.88),
        clouds=((255, 226, 222), (214, 172, 200)),
        haze_strength=1.0,
    ),
    "aurora": Air(
        zenith=(6, 12, 34),
        middle=(12, 36, 62),
        horizon=(36, 84, 98),
        haze=(30, 70, 88),
        light=(232, 246, 240),
        tint=(0.27, 0.40, 0.48),
        clouds=((50, 84, 100), (20, 40, 62)),
        dark=True,
    ),
    "snowfall": Air(
        zenith=(116, 136, 170),
        middle=(160, 178, 204),
        horizon=(216, 224, 236),
        haze=(198, 210, 228),
        light=(255, 255, 255),
        tint=(0.80, 0.87, 0.97),
        clouds=((196, 208, 224), (118, 136, 168)),
        haze_strength=0.72,
        frost=0.38,
    ),
}

SNOW = np.array((244, 248, 255), np.float32)


def land_colour(air: Air, colour: RGB, far: float = 0.0) -> Floats:
    """A daylight colour of the land as it looks under this sky, `far` from 0 (here) to 1 (lost in haze)."""
    own = np.array(colour, np.float32)
    own += (SNOW - own) * air.frost
    own *= np.array(air.tint, np.float32)
    return own + (np.array(air.haze, np.float32) - own) * min(1.0, far * air.haze_strength)


def thing_colour(air: Air, colour: RGB) -> RGB:
    """A thing's colour under this sky: tinted less than the land, so that it stays recognizable."""
    red, green, blue = (value * (0.58 + 0.42 * tint) for value, tint in zip(colour, air.tint, strict=True))
    return red, green, blue


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The colour between two: `a` at 0, `b` at 1."""
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


def land_ink(air: Air, colour: RGB, far: float = 0.0) -> RGB:
    """`land_colour` as plain numbers, for a brush."""
    red, green, blue = land_colour(air, colour, far).tolist()
    return red, green, blue
