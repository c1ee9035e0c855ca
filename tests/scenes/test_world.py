import numpy as np
import pytest

from latentc.scenes.world import (
    COLOURS,
    CROWD,
    HABITS,
    HELD_OUT_COLOURS,
    HELD_OUT_PLACES,
    LIGHTS,
    PLACES,
    Scene,
    Thing,
    crowd,
    distinct_scenes,
    held_out,
    kinds_of,
    sample,
)

HOUSE = Thing(kind="house", colour="red", size="large", count=1, position="left")


def pairs(scene):
    return {(thing.colour, thing.kind) for thing in scene.things} | {(t.kind, scene.place) for t in scene.things}


def test_a_seed_draws_one_scene():
    assert sample(7) == sample(7)
    assert sample(np.random.default_rng(7)) == sample(7)
    assert len({sample(seed) for seed in range(200)}) > 190


def test_training_never_shows_a_held_out_pair():
    shown = set().union(*(pairs(sample(seed)) for seed in range(1200)))
    assert not shown & (HELD_OUT_COLOURS | HELD_OUT_PLACES)


def test_held_out_scenes_always_show_one_and_together_all():
    scenes = [sample(seed, "held-out") for seed in range(800)]
    assert all(held_out(scene) for scene in scenes)
    assert set().union(*(pairs(scene) for scene in scenes)) >= HELD_OUT_COLOURS | HELD_OUT_PLACES


def test_any_shows_both():
    assert {held_out(sample(seed, "any")) for seed in range(100)} == {True, False}


def test_each_half_of_a_held_out_pair_is_trained_apart():
    """What was held out is the composition: training shows every kind, colour and place."""
    for colour, kind in HELD_OUT_COLOURS:
        assert sum((other, kind) in HELD_OUT_COLOURS for other in COLOURS) == 1
        assert sum((colour, other) in HELD_OUT_COLOURS for other in HABITS) <= 2
    for kind, place in HELD_OUT_PLACES:
        assert place in HABITS[kind].places
        assert sum((kind, other) in HELD_OUT_PLACES for other in PLACES) == 1
        assert len(HABITS[kind].places) >= 4


def test_every_place_has_things_and_every_value_is_drawn():
    assert all(len(kinds_of(place)) >= 6 for place in PLACES)
    scenes = [sample(seed, "any") for seed in range(700)]
    assert {(scene.sky, scene.light) for scene in scenes} == {
        (sky, one) for sky, all_ in LIGHTS.items() for one in all_
    }
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {thing.kind for scene in scenes for thing in scene.things} == set(HABITS)
    assert {thing.count for scene in scenes for thing in scene.things} == {1, 2, 3}
    assert {len(scene.things) for scene in scenes} == {0, 1, 2, 3}
    assert max(crowd((t.count, t.size) for t in scene.things) for scene in scenes) == CROWD


def test_the_world_is_too_large_to_memorize():
    assert distinct_scenes() == 1_477_172_636


def test_the_count_of_scenes_is_right_for_one_kind():
    """By listing: every scene with one kind of thing."""
    skies = [(sky, light) for sky, lights in LIGHTS.items() for light in lights]
    one = sum(7 * 3 * 6 for place in PLACES for _ in kinds_of(place)) * len(skies)
    assert one == sum(len(kinds_of(place)) for place in PLACES) * len(skies) * 126
    assert crowd([(3, "large")]) == CROWD


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"light": "full moon"}, "a day sky cannot show .full moon."),
        ({"place": "city"}, "the city cannot have a house"),
        ({"things": (HOUSE, HOUSE)}, "one kind at each position"),
        ({"things": (HOUSE, HOUSE.model_copy(update={"position": "right"}))}, "each kind of thing may occur only once"),
        (
            {
                "things": (
                    HOUSE.model_copy(update={"count": 3}),
                    Thing(kind="tree", colour="red", size="small", count=1, position="right"),
                )
            },
            "too many things for one image",
        ),
        ({"planet": "Mars"}, "planet"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Scene.model_validate({"place": "meadow", "sky": "day", "light": "sun", "things": (HOUSE,)} | change)


def test_a_scene_survives_json():
    scene = sample(5)
    assert Scene.model_validate_json(scene.model_dump_json()) == scene
