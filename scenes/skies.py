"""The sky: its gradient, clouds, stars, sun or moon, and rain or snow."""

from __future__ import annotations

from collections.abc import Callable
from math import hypot

import numpy as np

from .air import RGB, mix
from .brush import Point, open_brush, stamp
from .canvas import Canvas, blend, glow, lay, noise, ramp, shine, waves
from .world import Light, Sky


def paint_sky(canvas: Canvas, sky: Sky, light: Light, spot: Point, horizon: float) -> None:
    """Paint everything above the horizon; `spot` is the position of the light."""
    air = canvas.air
    stops = [
        (0.0, np.array(air.zenith, np.float32)),
        (0.55, np.array(air.middle, np.float32)),
        (1.0, np.array(air.horizon, np.float32)),
    ]
    canvas.pixels[:] = blend(stops, canvas.y / horizon)
    if air.dark:
        _stars(canvas, STARS[light], spot, horizon)
    if light == "stars" and sky == "night":
        _milky_way(canvas)
    CLOUDS[sky](canvas, spot, horizon)
    LIGHTS[light](canvas, spot, horizon)


def paint_weather(canvas: Canvas, sky: Sky) -> None:
    """Paint rain or snow in front of everything."""
    WEATHER.get(sky, _no_weather)(canvas)


def _no_weather(_canvas: Canvas) -> None:
    pass


# Sun, moon and other lights

SUN_RADIUS = 0.062
MOON_RADIUS = 0.068
STARS: dict[Light, int] = {"stars": 150, "crescent moon": 26, "full moon": 14}


def _sun(canvas: Canvas, spot: Point, _horizon: float) -> None:
    glow(canvas, *spot, 0.36, canvas.air.light, 0.38)
    glow(canvas, *spot, 0.10, canvas.air.light, 0.6)
    _disc(canvas, spot, SUN_RADIUS, mix(canvas.air.light, (255, 255, 255), 0.3), 0.004)


def _disc(canvas: Canvas, spot: Point, radius: float, colour: tuple[float, ...], soft: float) -> None:
    rows = canvas.rows(spot[1] - radius - soft, spot[1] + radius + soft)
    far = np.hypot(canvas.x - np.float32(spot[0]), canvas.y[rows] - np.float32(spot[1]))
    soft = max(soft, 0.5 / canvas.unit)
    lay(canvas, np.array(colour, np.float32), ramp(-far, -radius - soft, -radius + soft), rows)


def _full_moon(canvas: Canvas, spot: Point, _horizon: float) -> None:
    glow(canvas, *spot, 0.30, canvas.air.light, 0.5)
    _disc(canvas, spot, MOON_RADIUS, (246, 244, 228), 0.002)
    for dx, dy, radius in ((-0.30, -0.25, 0.26), (0.28, 0.05, 0.30), (-0.15, 0.42, 0.18), (0.2, -0.5, 0.13)):
        place = spot[0] + dx * MOON_RADIUS, spot[1] + dy * MOON_RADIUS
        _disc(canvas, place, radius * MOON_RADIUS, (222, 220, 210), 0.006)


def _crescent(canvas: Canvas, spot: Point, _horizon: float) -> None:
    glow(canvas, *spot, 0.2, canvas.air.light, 0.4)
    radius, soft = MOON_RADIUS * 1.12, max(0.002, 0.5 / canvas.unit)
    rows = canvas.rows(spot[1] - radius - soft, spot[1] + radius + soft)
    y = canvas.y[rows] - np.float32(spot[1])
    x = canvas.x - np.float32(spot[0])
    whole = ramp(-np.hypot(x, y), -radius - soft, -radius + soft)
    bite = ramp(-np.hypot(x - 0.45 * radius, y + 0.22 * radius), -0.86 * radius - soft, -0.86 * radius + soft)
    lay(canvas, np.array((255, 248, 220), np.float32), whole * (1 - bite), rows)


def _rainbow(canvas: Canvas, spot: Point, horizon: float) -> None:
    radius = horizon * 0.92
    far = np.hypot(canvas.x - np.float32(0.6 * spot[0]), canvas.y - np.float32(horizon * 1.06)) / radius
    across = (1.0 - far) / 0.17
    hues: list[RGB] = [(232, 60, 60), (250, 150, 50), (252, 230, 80), (90, 200, 90), (70, 130, 230), (140, 80, 200)]
    stops = [(i / (len(hues) - 1), np.array(hue, np.float32)) for i, hue in enumerate(hues)]
    inside = ramp(across, -0.12, 0.12) * ramp(-across, -1.12, -0.88)
    fade = 0.62 * np.clip((horizon - canvas.y) / horizon * 1.6 + 0.35, 0.0, 1.0)
    shine(canvas, (255, 255, 255), 0.10 * ramp(-far, -0.85, -0.6))
    lay(canvas, blend(stops, across), inside * fade)


def _lightning(canvas: Canvas, spot: Point, horizon: float) -> None:
    rng = canvas.rng("lightning")
    shine(canvas, (190, 200, 255), 0.28 * ramp(-np.abs(canvas.x - np.float32(spot[0])) - canvas.y * 0.4, -0.7, 0.0))
    brush = open_brush(canvas, (-canvas.width / 2, 0, canvas.width / 2, horizon + 0.05))
    main = _bolt(rng, (spot[0], 0.02), (spot[0] + rng.uniform(-0.1, 0.1), horizon + 0.02))
    fork = main[3]
    branch = _bolt(rng, fork, (fork[0] + rng.choice((-1, 1)) * rng.uniform(0.12, 0.2), fork[1] + 0.24 * horizon / 0.5))
    for x, y in main[1::2]:
        glow(canvas, x, y, 0.09, (176, 188, 255), 0.5)
    brush.line(branch, 0.007, (232, 236, 255))
    brush.line(main, 0.014, (255, 253, 240))
    stamp(canvas, brush)


def _bolt(rng: np.random.Generator, start: Point, end: Point) -> list[Point]:
    steps = 8
    return [
        (
            start[0] + (end[0] - start[0]) * i / steps + (0 if i in (0, steps) else rng.uniform(-0.045, 0.045)),
            start[1] + (end[1] - start[1]) * i / steps,
        )
        for i in range(steps + 1)
    ]


def _no_light(_canvas: Canvas, _spot: Point, _horizon: float) -> None:
    pass


LIGHTS: dict[Light, Callable[[Canvas, Point, float], None]] = {
    "sun": _sun,
    "full moon": _full_moon,
    "crescent moon": _crescent,
    "stars": _no_light,
    "rainbow": _rainbow,
    "lightning": _lightning,
    "none": _no_light,
}


def _stars(canvas: Canvas, number: int, spot: Point, horizon: float) -> None:
    rng = canvas.rng("stars")
    wide = int(number * max(1.0, canvas.width))
    brush = open_brush(canvas, (-canvas.width / 2, 0, canvas.width / 2, horizon))
    for across, down, size, warm in rng.random((wide, 4)):
        x, y = (across - 0.5) * canvas.width, down**1.2 * horizon * 0.96
        if hypot(x - spot[0], y - spot[1]) < 0.14:
            continue
        radius = 0.0025 + 0.0045 * size**4
        ink = (255, 244 + 8 * warm, 226 + 29 * warm)
        brush.ellipse(x, y, radius, radius, ink)
        if size > 0.95:
            glow(canvas, x, y, 0.016, (220, 230, 255), 0.8)
    stamp(canvas, brush, 0.95)


def _milky_way(canvas: Canvas) -> None:
    lean = 0.5 if canvas.rng("milky way").random() < 0.5 else -0.5
    across = canvas.x * lean + (canvas.y - 0.2) + 0.05 * noise(canvas, "milky", 5, 5)
    band = np.exp(-((across / 0.12) ** 2)) * (0.75 + 0.35 * noise(canvas, "milky dust", 8, 8, 2))
    shine(canvas, (168, 170, 232), 0.30 * np.clip(band, 0.0, 1.0).astype(np.float32))


def _aurora(canvas: Canvas, _spot: Point, horizon: float) -> None:
    rng = canvas.rng("aurora")
    stops = [(0.0, (90, 255, 170)), (0.45, (60, 214, 190)), (1.0, (170, 90, 230))]
    colours = [(at, np.array(colour, np.float32)) for at, colour in stops]
    for layer in range(2):
        foot = horizon * (0.62 - 0.22 * layer) + 0.09 * waves(rng, canvas.x, 0.7, 3)
        rays = 0.62 + 0.38 * waves(rng, canvas.x, 5.0, 3)
        gap = np.clip(0.75 + 0.55 * waves(rng, canvas.x, 0.6, 2), 0.15, 1.0)
        rise = (foot - canvas.y) / (0.36 - 0.06 * layer)
        strength = ramp(rise, -0.09, 0.05) * np.exp(-2.1 * np.clip(rise, 0, None)) * rays * gap
        part = canvas.pixels
        part += (255.0 - part) * (0.85 * strength[..., None] * (blend(colours, np.clip(rise, 0, 1)) / 255.0))


# Clouds


def _puffs(canvas: Canvas, spot: Point, horizon: float) -> None:
    rng = canvas.rng("clouds")
    bright, shade = (np.array(colour, np.float32) for colour in canvas.air.clouds)
    for i in range(round(3 * max(1.0, canvas.width))):
        x = (rng.uniform(-0.12, 0.12) + (i + 0.5) / round(3 * max(1.0, canvas.width)) - 0.5) * canvas.width
        y = horizon * rng.uniform(0.16, 0.72)
        size = rng.uniform(0.7, 1.25) * (1.15 - 0.6 * y / horizon)
        blobs = [(-0.11, 0.0, 0.05), (-0.045, -0.025, 0.068), (0.03, -0.035, 0.075), (0.10, -0.005, 0.055)]
        jittered = [(dx + rng.uniform(-0.02, 0.02), dy, r * rng.uniform(0.85, 1.15)) for dx, dy, r in blobs]
        if abs(x - spot[0]) < 0.17 * size + 0.05 and abs(y - spot[1]) < 0.16:
            y = spot[1] + 0.16 if spot[1] + 0.16 < 0.75 * horizon else spot[1] - 0.16
        rows = canvas.rows(y - 0.16 * size, y + 0.08 * size)
        dx, dy = (canvas.x - np.float32(x)) / size, (canvas.y[rows] - np.float32(y)) / size
        body = sum(
            (np.exp(-((dx - bx) ** 2 + (dy - by) ** 2) / (0.5 * r * r)) for bx, by, r in jittered),
            start=np.zeros((dy.shape[0], dx.shape[0]), np.float32),
        ).astype(np.float32)
        alpha = ramp(body, 0.18, 0.62) * ramp(-dy, -0.05, -0.005)
        share = ramp(dy + 0.02 * body, -0.05, 0.05)[..., None]
        lay(canvas, bright + (shade - bright) * share, alpha * 0.94, rows)


def _streaks(canvas: Canvas, _spot: Point, horizon: float) -> None:
    bright, shade = (np.array(colour, np.float32) for colour in canvas.air.clouds)
    thick = noise(canvas, "streaks", 9, 2, 3)
    alpha = ramp(thick, 0.08, 0.85) * ramp(canvas.y, 0.02, 0.16) * ramp(-canvas.y, -horizon * 0.99, -horizon * 0.7)
    low = ramp(canvas.y / horizon, 0.15, 0.8)[..., None]
    lay(canvas, shade + (bright - shade) * low, alpha * 0.72)


def _veil(canvas: Canvas, _spot: Point, horizon: float) -> None:
    bright, _ = (np.array(colour, np.float32) for colour in canvas.air.clouds)
    alpha = ramp(noise(canvas, "veil", 7, 2, 2), 0.15, 1.1) * ramp(-canvas.y, -horizon, -horizon * 0.6)
    lay(canvas, bright, alpha * 0.5)


def _billows(canvas: Canvas, _spot: Point, horizon: float) -> None:
    bright, shade = (np.array(colour, np.float32) for colour in canvas.air.clouds)
    shape = noise(canvas, "billows", 5, 4, 4)
    lift = max(1, canvas.unit // 28)
    above = np.concatenate((np.repeat(shape[:1], lift, axis=0), shape[:-lift]))
    share = ramp(shape - 0.55 * above + 0.3 * (canvas.y / horizon), -0.45, 0.75)[..., None]
    alpha = ramp(shape + 1.15 - 1.5 * canvas.y / horizon, -0.15, 0.75)
    lay(canvas, shade + (bright - shade) * share, alpha * 0.85)


def _grey(canvas: Canvas, _spot: Point, horizon: float) -> None:
    bright, shade = (np.array(colour, np.float32) for colour in canvas.air.clouds)
    shape = noise(canvas, "grey", 5, 3, 3)
    lay(canvas, shade + (bright - shade) * ramp(shape, -0.6, 0.6)[..., None], 0.45 * ramp(-canvas.y, -horizon, -0.1))


CLOUDS: dict[Sky, Callable[[Canvas, Point, float], None]] = {
    "day": _puffs,
    "sunset": _streaks,
    "night": _veil,
    "storm": _billows,
    "dawn": _streaks,
    "aurora": _aurora,
    "snowfall": _grey,
}


# Rain and snow


def _rain(canvas: Canvas) -> None:
    rng = canvas.rng("rain")
    brush = open_brush(canvas, (-canvas.width / 2, 0, canvas.width / 2, canvas.height))
    slant = rng.uniform(0.12, 0.3) * rng.choice((-1, 1))
    for x, y, size in rng.random((round(130 * canvas.width * canvas.height), 3)):
        long = 0.03 + 0.05 * size
        start = (x - 0.5) * (canvas.width + 0.2), (y * 1.1 - 0.08) * canvas.height
        brush.line([start, (start[0] - slant * long, start[1] + long)], 0.0035, (214, 224, 236))
    stamp(canvas, brush, 0.42)


def _snow(canvas: Canvas) -> None:
    rng = canvas.rng("snow")
    brush = open_brush(canvas, (-canvas.width / 2, 0, canvas.width / 2, canvas.height))
    for x, y, size in rng.random((round(150 * canvas.width * canvas.height), 3)):
        radius = 0.004 + 0.0075 * size**3
        brush.ellipse((x - 0.5) * canvas.width, y * canvas.height, radius, radius, (255, 255, 255))
    stamp(canvas, brush, 0.9)


WEATHER: dict[Sky, Callable[[Canvas], None]] = {"storm": _rain, "snowfall": _snow}
