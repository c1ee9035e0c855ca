"""Captions of scenes in plain English, and which attributes of the scene they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from . import world
from .world import HABITS, Count, Kind, Light, Place, Position, Scene, Size, Sky, Thing

T = TypeVar("T")

COUNT_WORDS: dict[Count, str] = {1: "one", 2: "two", 3: "three"}

NOUNS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "house": (("house", "houses"), ("house", "houses"), ("cottage", "cottages")),
    "boat": (("boat", "boats"), ("boat", "boats"), ("sailing boat", "sailing boats")),
    "tree": (("tree", "trees"),),
    "lighthouse": (("lighthouse", "lighthouses"),),
    "balloon": (("balloon", "balloons"), ("hot-air balloon", "hot-air balloons")),
    "cactus": (("cactus", "cacti"), ("cactus", "cacti"), ("cactus", "cactuses")),
    "windmill": (("windmill", "windmills"),),
    "tent": (("tent", "tents"),),
    "kite": (("kite", "kites"),),
    "car": (("car", "cars"),),
    "castle": (("castle", "castles"),),
    "umbrella": (("umbrella", "umbrellas"), ("umbrella", "umbrellas"), ("parasol", "parasols")),
    "whale": (("whale", "whales"),),
    "mushroom": (("mushroom", "mushrooms"), ("mushroom", "mushrooms"), ("toadstool", "toadstools")),
}
"""Names in singular and plural; the first pair is the plainest."""

SIZES: dict[Size, tuple[str, ...]] = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}

POSITIONS: dict[Position, tuple[str, ...]] = {
    "left": ("on the left",),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right",),
}

PLACES: dict[Place, tuple[tuple[str, str], ...]] = {
    "meadow": (("a meadow", "in a meadow"), ("a green meadow", "in a green meadow"), ("a meadow", "on a meadow")),
    "sea": (("the sea", "at sea"), ("the open sea", "on the open sea"), ("the ocean", "on the ocean")),
    "desert": (("a desert", "in the desert"), ("sand dunes", "among sand dunes"), ("a sandy desert", "in a desert")),
    "mountains": (
        ("snowy mountains", "in snowy mountains"),
        ("snowy mountains", "in the mountains"),
        ("snow-capped peaks", "below snow-capped peaks"),
    ),
    "city": (
        ("a city skyline", "in front of a city skyline"),
        ("a city", "in a city"),
        ("a city by the river", "in a city by the river"),
    ),
    "forest": (("a forest", "in a forest"), ("a pine forest", "at the edge of a pine forest")),
    "lake": (("a lake", "at a lake"), ("a mountain lake", "at a mountain lake"), ("a lake", "by the lake")),
    "canyon": (("a canyon", "in a canyon"), ("a red canyon", "in a red canyon")),
    "lavender field": (
        ("a lavender field", "in a lavender field"),
        ("rows of lavender", "among rows of lavender"),
        ("a field of lavender", "in a field of lavender"),
    ),
    "beach": (("a beach", "on a beach"), ("a sandy beach", "on a sandy beach"), ("a beach", "at the beach")),
}
"""Each place as a noun and as a location; the first pair is the plainest."""

SKIES: dict[Sky, tuple[str, ...]] = {
    "day": ("by day", "on a clear day", "under a blue sky", "in daylight"),
    "sunset": ("at sunset", "at sunset", "in the evening glow", "under a red evening sky"),
    "night": ("at night", "at night", "under a night sky"),
    "storm": ("in a storm", "on a stormy day", "in heavy rain", "under storm clouds"),
    "dawn": ("at dawn", "at dawn", "early in the morning", "under a pink morning sky"),
    "aurora": ("under the northern lights", "under the northern lights", "under an aurora"),
    "snowfall": ("in falling snow", "while snow is falling", "in a snowfall"),
}

LIGHTS: dict[Light, tuple[str, ...]] = {
    "sun": ("the sun", "the sun in the sky"),
    "full moon": ("a full moon", "the full moon"),
    "crescent moon": ("a crescent moon", "a thin crescent moon"),
    "stars": ("a sky full of stars", "many stars"),
    "rainbow": ("a rainbow", "a rainbow in the sky"),
    "lightning": ("lightning", "a flash of lightning"),
    "none": ("no sun or moon",),
}

BOTH: dict[tuple[Sky, Light], tuple[str, ...]] = {
    ("day", "sun"): ("on a sunny day",),
    ("night", "stars"): ("on a starry night", "under a starry sky"),
    ("night", "full moon"): ("at night under a full moon",),
    ("night", "crescent moon"): ("at night under a crescent moon",),
    ("storm", "lightning"): ("in a thunderstorm",),
}
"""Sky and light in one phrase."""


@dataclass(frozen=True)
class Described:
    """A caption, and the keys of `attributes(scene)` that it names."""

    text: str
    said: frozenset[str]


WHOLE: dict[str, tuple[str, ...]] = {"place": world.PLACES, "sky": world.SKIES, "light": tuple(LIGHTS)}
"""Attributes of a whole scene and their values."""

EACH: dict[str, tuple[str, ...]] = {
    "count": tuple(COUNT_WORDS.values()),
    "colour": world.NAMES,
    "size": world.SIZES,
    "position": world.POSITIONS,
}
"""Attributes of each kind of thing and their values."""


def attributes(scene: Scene) -> dict[str, str]:
    """All attributes of a scene by key: `place`, `sky`, `light`, and for each kind of thing in it, such as `house`:
    `house.count`, `house.colour`, `house.size`, `house.position`.
    """
    found: dict[str, str] = {"place": scene.place, "sky": scene.sky, "light": scene.light}
    for thing in scene.things:
        found |= {
            f"{thing.kind}.count": COUNT_WORDS[thing.count],
            f"{thing.kind}.colour": thing.colour,
            f"{thing.kind}.size": thing.size,
            f"{thing.kind}.position": thing.position,
        }
    return found


def caption(scene: Scene, seed: int | np.random.Generator) -> str:
    """A caption of the scene; the seed decides its wording, and which attributes it leaves out."""
    return describe(scene, seed).text


CHANCE: Mapping[str, float] = {
    "place": 0.94,
    "sky": 0.90,
    "light": 0.60,
    "count": 1.0,
    "colour": 0.88,
    "size": 0.40,
    "position": 0.40,
}
"""How often a caption names each attribute."""

UNREMARKABLE: frozenset[str] = frozenset({"none"})
"""Values that are named a tenth as often, as captions rarely mention what is absent."""


def describe(scene: Scene, seed: int | np.random.Generator, chance: Mapping[str, float] = CHANCE) -> Described:
    """A caption, and which attributes it names. Every thing is named with its count; the rest is random."""
    rng = np.random.default_rng(seed)
    said = {
        key
        for key, value in attributes(scene).items()
        if rng.random() < chance[key.rpartition(".")[2]] * (0.1 if value in UNREMARKABLE else 1.0)
    }
    if not said:
        said = {"place"}
    form = FORMS[int(rng.integers(len(FORMS)))]
    return Described(_tidy(_written(scene, said, form, rng), form), frozenset(said))


def full_caption(scene: Scene) -> str:
    """The caption that names everything, in the plainest words."""
    return _tidy(_written(scene, set(attributes(scene)), "plain", None), "plain")


Form = Literal["plain", "landscape", "picture", "there", "tags", "sentence"]
FORMS: tuple[Form, ...] = ("plain", "plain", "plain", "landscape", "landscape", "picture", "there", "tags", "sentence")
"""Forms of captions; common ones are listed several times."""


def _written(scene: Scene, said: set[str], form: Form, rng: np.random.Generator | None) -> str:
    things = [_thing(thing, said, rng, article=form != "tags") for thing in scene.things]
    noun, where = _pick(rng, PLACES[scene.place])
    if scene.things and all(HABITS[thing.kind].stands == "air" for thing in scene.things):
        where = f"above {noun}"
    both = BOTH.get((scene.sky, scene.light), ()) if {"sky", "light"} <= said else ()
    if both and rng is not None and rng.random() < 0.4:
        sky, light = _pick(rng, both), ""
    else:
        sky = _pick(rng, SKIES[scene.sky]) if "sky" in said else ""
        light = _pick(rng, LIGHTS[scene.light]) if "light" in said else ""
    if form == "tags":
        tags = [scene.place if "place" in said else "", *things, *_tags(sky, light)]
        return ", ".join(tag for tag in tags if tag)
    if "place" not in said:
        noun = where = ""
    if form == "landscape" or not things:
        shown = [*things, *([light] if light else [])]
        if not noun and not sky:
            return _list(shown)
        return _spaced(noun or "a view", sky, f"with {_list(shown)}" if shown else "")
    opening = _opening(form, scene.things[0].count)
    return opening + _spaced(_list(things), where, sky) + (f", with {light}" if light else "")


def _tags(sky: str, light: str) -> list[str]:
    return [part for part in (sky, light) if part]


def _opening(form: Form, count: Count) -> str:
    return {"picture": "a picture of ", "there": "there is " if count == 1 else "there are "}.get(form, "")


def _thing(thing: Thing, said: set[str], rng: np.random.Generator | None, article: bool) -> str:
    """A thing in words, such as `two small red houses on the left`."""
    size = _pick(rng, SIZES[thing.size]) if f"{thing.kind}.size" in said else ""
    colour = thing.colour if f"{thing.kind}.colour" in said else ""
    one, several = _pick(rng, NOUNS[thing.kind])
    where = _pick(rng, POSITIONS[thing.position]) if f"{thing.kind}.position" in said else ""
    named = _spaced(size, colour, one if thing.count == 1 else several, where)
    if thing.count > 1:
        return f"{COUNT_WORDS[thing.count]} {named}"
    if not article:
        return named
    return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _spaced(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _tidy(text: str, form: Form) -> str:
    return f"{text[0].upper()}{text[1:]}." if form in {"there", "sentence"} else text


def _pick(rng: np.random.Generator | None, values: tuple[T, ...]) -> T:
    """A random one, or the first, which is the plainest."""
    return values[int(rng.integers(len(values)))] if rng is not None else values[0]
