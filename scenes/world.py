"""The world of `scenes`: its vocabulary, which things go together, and random scenes.

A `Scene` is the full description of an image. Details that it leaves open, such as the shape of the hills and the
clouds, come from the renderer's seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from math import comb, perm
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
from pydantic import model_validator

from ..core.record import Record

Place = Literal["meadow", "sea", "desert", "mountains", "city", "forest", "lake", "canyon", "lavender field", "beach"]
Sky = Literal["day", "sunset", "night", "storm", "dawn", "aurora", "snowfall"]
Light = Literal["sun", "full moon", "crescent moon", "stars", "rainbow", "lightning", "none"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "white"]
Size = Literal["small", "large"]
Position = Literal["left", "centre", "right"]
Count = Literal[1, 2, 3]
Kind = Literal[
    "house",
    "boat",
    "tree",
    "lighthouse",
    "balloon",
    "cactus",
    "windmill",
    "tent",
    "kite",
    "car",
    "castle",
    "umbrella",
    "whale",
    "mushroom",
]
Split = Literal["train", "held-out", "any"]
T = TypeVar("T")

PLACES: tuple[Place, ...] = get_args(Place)
SKIES: tuple[Sky, ...] = get_args(Sky)
KINDS: tuple[Kind, ...] = get_args(Kind)

LIGHTS: dict[Sky, tuple[Light, ...]] = {
    "day": ("sun", "rainbow", "none"),
    "sunset": ("sun", "crescent moon", "none"),
    "night": ("full moon", "crescent moon", "stars"),
    "storm": ("lightning", "none"),
    "dawn": ("sun", "none"),
    "aurora": ("stars", "crescent moon", "full moon"),
    "snowfall": ("none",),
}
"""What may shine in each sky. Moonlit skies show a few stars too; `stars` means a sky full of them."""

COLOURS: dict[Colour, tuple[int, int, int]] = {
    "red": (214, 44, 44),
    "orange": (242, 130, 28),
    "yellow": (250, 212, 44),
    "green": (56, 158, 70),
    "blue": (42, 104, 210),
    "purple": (136, 62, 176),
    "white": (246, 246, 242),
}
"""The daylight sRGB value of each colour."""

NAMES: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = ("small", "large")
POSITIONS: tuple[Position, ...] = ("left", "centre", "right")
COUNTS: tuple[Count, ...] = (1, 2, 3)
CROWD = 6
"""Capacity of one image: a small thing counts one, a large thing two."""


class Habit(NamedTuple):
    """Where a kind of thing is found."""

    stands: Literal["ground", "water", "air"]
    places: frozenset[Place]


def _habit(stands: Literal["ground", "water", "air"], *places: Place) -> Habit:
    return Habit(stands, frozenset(places))


HABITS: dict[Kind, Habit] = {
    "house": _habit("ground", "meadow", "mountains", "forest", "lake", "lavender field", "beach", "sea", "desert"),
    "boat": _habit("water", "sea", "lake", "beach", "city"),
    "tree": _habit("ground", "meadow", "mountains", "lake", "lavender field", "sea", "city", "beach", "canyon"),
    "lighthouse": _habit("ground", "sea", "beach", "lake", "city"),
    "balloon": _habit(
        "air", "meadow", "sea", "desert", "mountains", "city", "forest", "lake", "canyon", "lavender field", "beach"
    ),
    "cactus": _habit("ground", "desert", "canyon", "beach", "meadow"),
    "windmill": _habit("ground", "meadow", "lavender field", "lake", "desert", "mountains", "beach"),
    "tent": _habit("ground", "meadow", "desert", "forest", "mountains", "lake", "canyon", "beach"),
    "kite": _habit("air", "meadow", "beach", "desert", "city", "lake", "lavender field", "mountains", "canyon"),
    "car": _habit("ground", "city", "desert", "meadow", "canyon", "forest", "mountains", "lavender field"),
    "castle": _habit("ground", "meadow", "mountains", "forest", "lake", "sea", "desert", "canyon"),
    "umbrella": _habit("ground", "beach", "city", "meadow", "desert", "lake", "lavender field"),
    "whale": _habit("water", "sea", "beach", "lake"),
    "mushroom": _habit("ground", "forest", "meadow", "lake", "city", "canyon", "lavender field"),
}

HELD_OUT_COLOURS: frozenset[tuple[Colour, Kind]] = frozenset(
    {
        ("purple", "house"),
        ("yellow", "boat"),
        ("blue", "tree"),
        ("green", "lighthouse"),
        ("white", "balloon"),
        ("red", "cactus"),
        ("blue", "windmill"),
        ("purple", "tent"),
        ("orange", "kite"),
        ("green", "car"),
        ("red", "castle"),
        ("white", "umbrella"),
        ("orange", "whale"),
        ("yellow", "mushroom"),
    }
)
"""Never together in `train`: one colour for each kind of thing, each colour held out twice."""

HELD_OUT_PLACES: frozenset[tuple[Kind, Place]] = frozenset(
    {
        ("house", "desert"),
        ("boat", "lake"),
        ("tree", "canyon"),
        ("lighthouse", "city"),
        ("balloon", "beach"),
        ("windmill", "mountains"),
        ("tent", "forest"),
        ("kite", "lavender field"),
        ("castle", "sea"),
        ("mushroom", "meadow"),
    }
)
"""Never together in `train`: one kind of thing for each place."""


class Thing(Record):
    """One kind of thing in an image: `count` identical ones, side by side."""

    kind: Kind
    colour: Colour
    size: Size
    count: Count
    position: Position


class Scene(Record):
    """The content of an image. `things` are ordered from left to right; no kind and no position occurs twice."""

    place: Place
    sky: Sky
    light: Light
    things: tuple[Thing, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Scene:
        if self.light not in LIGHTS[self.sky]:
            raise ValueError(f"a {self.sky} sky cannot show {self.light!r}; use one of: {', '.join(LIGHTS[self.sky])}")
        order = [POSITIONS.index(thing.position) for thing in self.things]
        if order != sorted(set(order)):
            raise ValueError("things must be ordered from left to right, with one kind at each position")
        if len({thing.kind for thing in self.things}) < len(self.things):
            raise ValueError("each kind of thing may occur only once; use its count for more")
        for thing in self.things:
            if self.place not in HABITS[thing.kind].places:
                raise ValueError(f"the {self.place} cannot have a {thing.kind}; use another kind of thing")
        if crowd((thing.count, thing.size) for thing in self.things) > CROWD:
            raise ValueError(f"too many things for one image; counts, large ones twice, may add up to {CROWD}")
        return self


def crowd(things: Iterable[tuple[Count, Size]]) -> int:
    """How much of `CROWD` these counts and sizes take."""
    return sum(count * (1 + SIZES.index(size)) for count, size in things)


def kinds_of(place: Place) -> tuple[Kind, ...]:
    """The kinds of things found there, in the order of `HABITS`."""
    return tuple(kind for kind, habit in HABITS.items() if place in habit.places)


def held_out(scene: Scene) -> bool:
    """Whether the scene has a pair that is held out of `train`."""
    return any(
        (thing.colour, thing.kind) in HELD_OUT_COLOURS or (thing.kind, scene.place) in HELD_OUT_PLACES
        for thing in scene.things
    )


def sample(seed: int | np.random.Generator, split: Split = "train") -> Scene:
    """A random scene: `train` never has a held-out pair, `held-out` always has one, `any` may have one."""
    rng = np.random.default_rng(seed)
    while True:
        scene = _draw(rng)
        if split == "any" or held_out(scene) == (split == "held-out"):
            return scene


EXAMINED = 1 << 40
"""First seed of scenes for evaluation; training uses much smaller seeds."""

NUMBER_OF_KINDS = (0.06, 0.38, 0.36, 0.20)
"""Probabilities of no thing, one kind, two kinds and three kinds in an image."""

COUNT_WEIGHTS = (0.54, 0.26, 0.20)


def _draw(rng: np.random.Generator) -> Scene:
    place: Place = _one(rng, PLACES)
    sky: Sky = _one(rng, SKIES)
    light: Light = _one(rng, LIGHTS[sky])
    kinds = kinds_of(place)
    number = int(rng.choice(len(NUMBER_OF_KINDS), p=NUMBER_OF_KINDS))
    chosen: list[int] = rng.permutation(len(kinds))[:number].tolist()
    positions: list[int] = sorted(rng.permutation(len(POSITIONS))[:number].tolist())
    while True:
        things = tuple(
            Thing(
                kind=kinds[kind],
                colour=_one(rng, NAMES),
                size=_one(rng, SIZES),
                count=COUNTS[int(rng.choice(len(COUNTS), p=COUNT_WEIGHTS))],
                position=POSITIONS[position],
            )
            for kind, position in zip(chosen, positions, strict=True)
        )
        if crowd((thing.count, thing.size) for thing in things) <= CROWD:
            return Scene(place=place, sky=sky, light=light, things=things)


def _one(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    return values[int(rng.integers(len(values)))]


@cache
def distinct_scenes() -> int:
    """The exact number of scenes, not counting the renderer's seed."""
    skies = sum(len(lights) for lights in LIGHTS.values())
    total = 0
    for place in PLACES:
        kinds = len(kinds_of(place))
        for number in range(len(POSITIONS) + 1):
            sizes = sum(crowd(things) <= CROWD for things in product(product(COUNTS, SIZES), repeat=number))
            spread = comb(len(POSITIONS), number) * perm(kinds, number)
            total += skies * spread * len(COLOURS) ** number * sizes
    return total
