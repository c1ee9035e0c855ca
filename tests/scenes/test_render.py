import numpy as np
import pytest

from latentc.scenes.render import masks, render
from latentc.scenes.world import COLOURS, HABITS, LIGHTS, PLACES, Scene, Thing, kinds_of, sample


def shrink(picture, factor):
    height, width, _ = picture.shape
    return picture.reshape(height // factor, factor, width // factor, factor, 3).mean((1, 3))


def lone(place, kind, colour="red", sky="day", size="large", count=1, light=None):
    thing = Thing(kind=kind, colour=colour, size=size, count=count, position="centre")
    return Scene(place=place, sky=sky, light=light or LIGHTS[sky][-1], things=(thing,))


def test_the_same_picture_to_the_byte():
    for seed in range(5):
        scene = sample(seed)
        assert np.array_equal(render(scene, 64, seed), render(scene, 64, seed))


def test_another_seed_or_scene_is_another_picture():
    scene = sample(2)
    assert not np.array_equal(render(scene, 64, 1), render(scene, 64, 2))
    assert not np.array_equal(render(scene, 64, 1), render(sample(3), 64, 1))


@pytest.mark.parametrize("sky", LIGHTS)
def test_every_size_shows_the_same_picture(sky):
    for seed, place in enumerate(PLACES):
        scene = Scene(place=place, sky=sky, light=LIGHTS[sky][0])
        large = render(scene, 192, seed)
        assert large.shape == (192, 192, 3)
        assert large.dtype == np.uint8
        for factor in (2, 3):
            small = render(scene, 192 // factor, seed).astype(np.float64)
            assert np.abs(shrink(large, factor) - small).mean() < 2.5 * factor, (place, sky, factor)


def test_every_size_shows_the_same_things():
    for seed in range(30):
        scene = sample(seed, "any")
        large, small = masks(scene, 128, seed), masks(scene, 64, seed)
        for kind, mask in large.items():
            assert np.abs(mask.reshape(64, 2, 64, 2).mean((1, 3)) - small[kind]).mean() < 0.012, scene


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (40, 200), (8, 8), (200, 72)])
def test_any_shape(size):
    for seed in range(6):
        picture = render(sample(seed), size, seed)
        assert picture.shape == (size[1], size[0], 3)
        assert picture.std() > 2


@pytest.mark.parametrize("place", PLACES)
def test_every_thing_under_every_sky(place):
    for turn, sky in enumerate(LIGHTS):
        for i, kind in enumerate(kinds_of(place)):
            light = LIGHTS[sky][(turn + i) % len(LIGHTS[sky])]
            scene = lone(place, kind, list(COLOURS)[(turn + i) % 7], sky, ("small", "large")[i % 2], 1 + i % 3, light)
            seen = masks(scene, 48, i)[kind]
            assert 0.006 < seen.mean() < 0.5, scene
            assert seen.max() <= 1 + 1e-4


@pytest.mark.parametrize("kind", HABITS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_the_colour_it_is_said_to_have(kind, colour):
    place = next(place for place in PLACES if place in HABITS[kind].places)
    scene = lone(place, kind, colour)
    picture = render(scene, 64, 4).astype(np.float64)
    inside = picture[masks(scene, 64, 4)[kind] > 0.95]
    names, inks = list(COLOURS), np.array(list(COLOURS.values()), np.float64)
    nearest = np.linalg.norm(inside[:, None] - inks, axis=2).argmin(1)
    # Doors, wheels and shades have colours of their own: most pixels that are vivid decide (all, for white).
    vivid = inside.max(1) - inside.min(1) > 90
    votes = np.bincount(nearest if colour == "white" else nearest[vivid], minlength=len(names))
    assert names[int(votes.argmax())] == colour


def test_things_stand_where_they_are_said_to():
    for seed in range(30):
        scene = sample(seed, "any")
        middles = {
            kind: (mask.sum(0) @ np.arange(64)) / mask.sum() / 63 for kind, mask in masks(scene, 64, seed).items()
        }
        order = [middles[thing.kind] for thing in scene.things]
        assert order == sorted(order)
        if len(order) == 1:
            wanted = {"left": (0, 0.45), "centre": (0.42, 0.58), "right": (0.55, 1)}[scene.things[0].position]
            assert wanted[0] <= order[0] <= wanted[1], scene


def test_large_is_larger_than_small_and_three_more_than_one():
    for kind, habit in HABITS.items():
        place = next(place for place in PLACES if place in habit.places)
        area = {
            (size, count): masks(lone(place, kind, size=size, count=count), 64, 3)[kind].sum()
            for size in ("small", "large")
            for count in (1, 3)
        }
        assert area["large", 1] > 1.8 * area["small", 1]
        assert area["small", 3] > 2 * area["small", 1]


def test_nights_are_dark_and_days_are_bright():
    for place in PLACES:
        day, night = (
            render(Scene(place=place, sky=sky, light=LIGHTS[sky][0]), 48, 1).mean() for sky in ("day", "night")
        )
        assert day > 1.8 * night
