"""The measures that a judge's answers give."""

import numpy as np

from latentc.scenes.caption import EACH, WHOLE, attributes
from latentc.scenes.judge import SIDE, attributes_of, prepare, scene_score, scores_by_attribute
from latentc.scenes.world import KINDS, sample


def answers(scenes):
    """What a judge that reads everything rightly says of these scenes."""
    outputs = {name: np.zeros((len(scenes), len(values)), np.float32) for name, values in WHOLE.items()}
    for name, values in EACH.items():
        outputs[name] = np.zeros((len(scenes), len(KINDS), len(values) + (name == "count")), np.float32)
    for i, scene in enumerate(scenes):
        for name, values in WHOLE.items():
            outputs[name][i, values.index(getattr(scene, name))] = 5
        for thing in scene.things:
            k = KINDS.index(thing.kind)
            outputs["count"][i, k, thing.count] = 5
            for name in ("colour", "size", "position"):
                outputs[name][i, k, EACH[name].index(getattr(thing, name))] = 5
    return outputs


def test_what_was_drawn_is_read():
    scenes = [sample(seed, "any") for seed in range(40)]
    assert attributes_of(answers(scenes)) == [attributes(scene) for scene in scenes]


def test_a_score_counts_what_was_said():
    read = [{"place": "sea", "sky": "day", "house.count": "two", "house.colour": "red"}, {"place": "city"}]
    said = [{"place": "sea", "house.count": "two", "house.colour": "blue"}, {"place": "city", "tree.count": "one"}]
    assert scene_score(read, said) == 3 / 5
    assert scores_by_attribute(read, said) == {"place": 1.0, "count": 0.5, "colour": 0.0}
    assert scene_score([], []) == 0.0


def test_pictures_of_another_size_are_scaled():
    images = np.full((2, 64, 64, 3), 255, np.uint8)
    prepared = prepare(images)
    assert prepared.shape == (2, 3, SIDE, SIDE)
    assert prepared.dtype == np.float32
    assert prepared.max() == prepared.min() == 1.0
    assert prepare(np.zeros((1, 512, 512, 3), np.uint8)).shape == (1, 3, SIDE, SIDE)
