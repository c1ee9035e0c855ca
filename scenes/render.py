"""From a scene to its image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .air import AIRS, RGB, Floats, land_ink
from .brush import Brush, Point, open_brush, press, shrunk
from .canvas import Canvas, glow, open_canvas, ramp, shine
from .places import LIES, paint_place
from .skies import paint_sky, paint_weather
from .stage import SHINING, Actor, arrange, spot
from .things import SHAPES, inks
from .world import HABITS, Kind, Scene

Extent = int | tuple[int, int]
"""The side of a square, or (width, height), in pixels."""


def render(scene: Scene, size: Extent, seed: int) -> NDArray[np.uint8]:
    """Render the scene's image, sRGB [height, width, 3].

    The seed determines what the scene leaves open: the shape of the hills, the clouds, the exact position of
    things. Another size gives the same image; another scene of the same place has the same land.
    """
    return _paint(scene, size, seed)[0]


def masks(scene: Scene, size: Extent, seed: int) -> dict[Kind, Floats]:
    """Where each kind of thing is visible in that image: its share of each pixel, [height, width]."""
    return _paint(scene, size, seed)[1]


def _paint(scene: Scene, size: Extent, seed: int) -> tuple[NDArray[np.uint8], dict[Kind, Floats]]:
    width, height = (size, size) if isinstance(size, int) else size
    canvas = open_canvas(width, height, seed, AIRS[scene.sky])
    actors = arrange(canvas, scene)
    where = spot(canvas, scene, actors)
    shining = where if scene.light in SHINING else None
    paint_sky(canvas, scene.sky, scene.light, where, LIES[scene.place].horizon * canvas.height)
    paint_place(canvas, scene.place, shining)
    seen: dict[Kind, Floats] = {thing.kind: np.zeros((height, width), np.float32) for thing in scene.things}
    for actor in actors:
        _perform(canvas, scene, actor, shining, seen)
    paint_weather(canvas, scene.sky)
    return np.clip(canvas.pixels + 0.5, 0, 255).astype(np.uint8), seen


def _perform(canvas: Canvas, scene: Scene, actor: Actor, shining: Point | None, seen: dict[Kind, Floats]) -> None:
    """Paint one thing: its shadow or reflection, the thing itself, and its lamps."""
    lie, stands = LIES[scene.place], HABITS[actor.kind].stands
    islet = lie.islets and stands == "ground"
    side = -1 if shining and shining[0] > actor.x else 1
    brush = _sprite(canvas, actor, side, islet)
    drawn = shrunk(brush)
    if stands == "water" or islet:
        _mirror(canvas, drawn, brush.corner, actor.y + (0.02 if islet else 0.0), lie.shore * canvas.height)
    elif stands == "ground" and lie.bank:
        _mirror(canvas, drawn, brush.corner, lie.bank * canvas.height, lie.shore * canvas.height)
    if stands == "ground" and not islet:
        _shadow(canvas, actor, shining)
    press(canvas, drawn, brush.corner)
    left, top = brush.corner
    window = slice(top, top + drawn.shape[0]), slice(left, left + drawn.shape[1])
    alpha = drawn[..., 3] / 255.0
    for mask in seen.values():
        mask[window] *= 1.0 - alpha
    seen[actor.kind][window] += alpha
    if canvas.air.dark:
        _light_up(canvas, actor, brush)


def _sprite(canvas: Canvas, actor: Actor, side: int, islet: bool) -> Brush:
    shape = SHAPES[actor.kind]
    wide = actor.half + (0.14 if islet else 0.01)
    sink = 0.05 if islet else shape.sink * actor.tall
    box = (actor.x - wide, actor.y - 1.1 * actor.tall, actor.x + wide, actor.y + sink)
    brush = open_brush(canvas, box, (actor.x, actor.y), actor.tall, up=True, side=side)
    if islet:
        _islet(canvas, brush, actor)
    shape.draw(brush, inks(canvas.air, actor.colour))
    return brush


def _islet(canvas: Canvas, brush: Brush, actor: Actor) -> None:
    reach, unit = (actor.half + 0.08) / actor.tall, 0.05 / actor.tall
    for wide, high, colour in ISLET:
        brush.pie(0.0, -0.5 * unit, reach * wide, unit * high, 180, 360, land_ink(canvas.air, colour))


ISLET: tuple[tuple[float, float, RGB], ...] = (
    (1.0, 0.9, (104, 92, 88)),
    (0.97, 1.2, (128, 112, 100)),
    (0.86, 1.3, (112, 150, 84)),
)
"""Wet rock, dry rock, grass: width, height, colour."""


def _shadow(canvas: Canvas, actor: Actor, shining: Point | None) -> None:
    """A soft patch of dark at the foot, away from the light."""
    lean = float(np.clip((actor.x - shining[0]) * 0.5, -0.25, 0.25)) * actor.tall if shining else 0.0
    wide, thick = actor.half * 0.95 + abs(lean) * 0.6, 0.05 * actor.tall + 0.006
    rows = canvas.rows(actor.y - 3 * thick, actor.y + 3 * thick)
    x = (canvas.x - np.float32(actor.x + lean)) / np.float32(wide)
    y = (canvas.y[rows] - np.float32(actor.y)) / np.float32(thick)
    dark = 0.42 * np.exp(-(x**4) - y * y)
    canvas.pixels[rows] *= (1.0 - dark.astype(np.float32))[..., None]


def _mirror(canvas: Canvas, drawn: Floats, corner: tuple[int, int], line: float, end: float) -> None:
    """Paint a thing's reflection on the water between a line and the water's near end."""
    left, top = corner
    first = round(line * canvas.unit)
    last: int = min(canvas.pixels.shape[0], 2 * first - top, round(end * canvas.unit))
    rows = np.arange(first, last, dtype=np.int64)
    sources = 2 * first - 1 - rows - top
    keep = (sources >= 0) & (sources < drawn.shape[0])
    rows, sources = rows[keep], sources[keep]
    if not len(rows):
        return
    deep = (rows + 0.5) / canvas.unit - line
    sway = 0.010 * np.sin(150 * np.sqrt(deep + 0.02)) * (0.3 + 3 * deep) * canvas.unit
    columns = np.rint(np.arange(drawn.shape[1], dtype=np.float32) + sway[:, None]).astype(np.int64)
    inside = (columns >= 0) & (columns < drawn.shape[1])
    image = drawn[sources[:, None], np.clip(columns, 0, drawn.shape[1] - 1)] * inside[..., None]
    fade = (0.5 * np.exp(-deep * 3.0)).astype(np.float32)[:, None, None]
    part = canvas.pixels[rows[0] : rows[-1] + 1, left : left + drawn.shape[1]]
    part += fade * (0.92 * image[..., :3] - part * (image[..., 3:] / 255.0))


def _light_up(canvas: Canvas, actor: Actor, brush: Brush) -> None:
    """The light around lamps at night, and a lighthouse's beam."""
    for x, y, radius in brush.lamps:
        place = actor.x + brush.side * x * actor.tall, actor.y - y * actor.tall
        glow(canvas, *place, max(0.03, 0.5 * radius * actor.tall), (255, 196, 110), 0.5)
        if actor.kind in BEAMS:
            _beam(canvas, place, brush.side)


BEAMS: frozenset[Kind] = frozenset({"lighthouse"})


def _beam(canvas: Canvas, place: Point, side: int) -> None:
    rows = canvas.rows(place[1] - 0.3, place[1] + 0.3)
    along = side * (canvas.x - np.float32(place[0]))
    aside = np.abs(canvas.y[rows] - np.float32(place[1]) + 0.12 * along)
    wide = 0.012 + 0.16 * np.clip(along, 0, None)
    strength = 0.55 * ramp(along, 0.0, 0.03) * np.exp(-along / 0.35) * ramp(-aside / wide, -1.0, -0.2)
    shine(canvas, (255, 236, 176), strength.astype(np.float32), rows)
