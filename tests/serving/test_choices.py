"""The choices that a page offers, against what the schedulers do."""

import numpy as np
import pytest

from latentc.sampling.schedulers import NAMES, names, schedule
from latentc.serving.choices import presets, scheduler_groups

CONFIG = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = [14.6, 6.5, 3.9, 2.2, 1.3, 0.7, 0.4, 0.2, 0.1, 0.03, 0.03]


@pytest.fixture(scope="module")
def groups():
    return {one["label"]: one["names"] for one in scheduler_groups(names(CONFIG, LEVELS), "pndm")}


def test_each_name_is_in_one_group(groups):
    found = [name for group in groups.values() for name in group]
    assert sorted(found) == sorted(NAMES)
    assert next(iter(groups.items())) == ("Recommended for this model", ["pndm", "dpm++2m", "dpm++2m-ays"])


def adds_noise(name):
    drawn, sample = [], np.ones((1, 4, 8, 8), np.float32)
    walk, noise = schedule(CONFIG, 4, name), np.zeros_like(sample)
    for index in range(len(walk.timesteps)):
        sample = walk.step(sample * 0.1, index, sample, lambda: drawn.append(1) or noise)
    return bool(drawn)


def test_what_adds_noise_is_said_to(groups):
    assert {name: adds_noise(name) for name in groups["With noise at each step"] if not adds_noise(name)} == {}
    assert {name: adds_noise(name) for name in groups["Deterministic"] if adds_noise(name)} == {}


def test_presets_that_a_model_can_use():
    assert list(presets(["euler", "dpm++2m"], 150)) == ["exact", "balanced", "fast", "draft"]
    assert list(presets(["euler"], 150)) == ["exact"]
    assert presets(["dpm++2m"], 8) == {
        "fast": {"scheduler": "dpm++2m", "steps": 8},
        "draft": {"scheduler": "dpm++2m", "steps": 6},
    }
