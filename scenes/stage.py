"""Positions in a scene: things next to each other, and the light where it is visible."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .brush import Point
from .canvas import Canvas
from .places import LIES, Lie
from .things import SHAPES, SMALL
from .world import HABITS, Colour, Kind, Light, Scene, Sky, Thing

MARGIN = 0.03
ROOM = {"left": 0.70, "centre": 0.94, "right": 0.70}
"""Largest width of a group, as a share of the image's width."""

FROM_CENTRE = {"left": -0.29, "centre": 0.0, "right": 0.29}


@dataclass(frozen=True)
class Actor:
    """One thing of a scene in its place: its foot and its height, in units of the canvas."""

    kind: Kind
    colour: Colour
    x: float
    y: float
    tall: float

    @property
    def half(self) -> float:
        """Half its width."""
        return SHAPES[self.kind].half * self.tall


def arrange(canvas: Canvas, scene: Scene) -> tuple[Actor, ...]:
    """Every single thing of the scene, from far to near."""
    rng = canvas.rng("stage")
    lie = LIES[scene.place]
    groups = [_group(canvas, rng, thing, lie) for thing in scene.things]
    groups = [
        _fitted(group, ROOM[thing.position] * canvas.width) for thing, group in zip(scene.things, groups, strict=True)
    ]
    needs = [_need(group) for group in groups]
    fit = min(1.0, (canvas.width - 2 * MARGIN) / max(sum(needs), 1e-6))
    groups = [_fitted(group, need * fit) for need, group in zip(needs, groups, strict=True)]
    needs = [need * fit for need in needs]
    centres = _apart(canvas, needs, [thing.position for thing in scene.things], rng)
    actors = [
        replace(actor, x=centre + actor.x) for centre, group in zip(centres, groups, strict=True) for actor in group
    ]
    return tuple(sorted(actors, key=lambda actor: actor.y))


def _group(canvas: Canvas, rng: np.random.Generator, thing: Thing, lie: Lie) -> list[Actor]:
    """The things of one kind, around x = 0."""
    shape = SHAPES[thing.kind]
    stands = HABITS[thing.kind].stands
    tall = shape.tall * (1.0 if thing.size == "large" else SMALL)
    actors: list[Actor] = []
    for i in range(thing.count):
        share, lift, own = rng.random(3)
        size = tall * (0.94 + 0.12 * own)
        if stands == "air":
            top = 0.05 * canvas.height
            low = max(top + 0.01, lie.horizon * canvas.height - size - 0.06)
            y = top + (low - top) * (0.1 + 0.75 * share) + size
        else:
            far, near = (lie.water or lie.ground) if stands == "water" else lie.ground
            y = (far + (near - far) * share) * canvas.height
            size *= 0.90 + 0.2 * share
        step = 2.06 * shape.half * tall
        x = step * (i - (thing.count - 1) / 2) + 0.1 * shape.half * tall * (lift - 0.5)
        actors.append(Actor(thing.kind, thing.colour, x, y, size))
    return actors


def _fitted(group: list[Actor], room: float) -> list[Actor]:
    """The group, scaled down if it is too wide."""
    fit = min(1.0, room / _need(group))
    return [replace(actor, x=actor.x * fit, tall=actor.tall * fit) for actor in group]


def _need(group: list[Actor]) -> float:
    return 2 * max(abs(actor.x) + actor.half for actor in group)


def _apart(canvas: Canvas, needs: list[float], positions: list[str], rng: np.random.Generator) -> list[float]:
    """The centres of groups of these widths, near their positions, without overlaps and inside the image."""
    middles = [FROM_CENTRE[name] * canvas.width + rng.uniform(-0.035, 0.035) for name in positions]
    left = -canvas.width / 2 + MARGIN
    for i, need in enumerate(needs):
        middles[i] = max(middles[i], left + need / 2)
        left = middles[i] + need / 2
    right = canvas.width / 2 - MARGIN
    for i in reversed(range(len(needs))):
        middles[i] = min(middles[i], right - needs[i] / 2)
        right = middles[i] - needs[i] / 2
    return middles


LOW_SUN: dict[Sky, float] = {"sunset": 0.035, "dawn": 0.10}
"""Height of a low sun above the land's crest."""

SHINING: frozenset[Light] = frozenset({"sun", "full moon", "crescent moon"})


def spot(canvas: Canvas, scene: Scene, actors: tuple[Actor, ...]) -> Point:
    """The position of the light: a random one that is clear of things, or else the clearest of several."""
    rng = canvas.rng("light")
    height = LIES[scene.place].crest * canvas.height - LOW_SUN[scene.sky] if scene.sky in LOW_SUN else None
    tries: list[tuple[float, Point]] = []
    for _ in range(12):
        x = rng.uniform(-0.40, 0.40) * canvas.width
        y = (rng.uniform(0.13, 0.25) * canvas.height) if height is None else height - rng.uniform(0.0, 0.05)
        tries.append((min((_gap(actor, x, y) for actor in actors), default=1.0), (x, max(y, 0.10))))
        if tries[-1][0] > 0.10:
            break
    return max(tries)[1]


def _gap(actor: Actor, x: float, y: float) -> float:
    """Distance of a point from a thing's box; negative inside."""
    aside = abs(x - actor.x) - actor.half
    above = max(actor.y - actor.tall - y, y - actor.y)
    return max(aside, above)
