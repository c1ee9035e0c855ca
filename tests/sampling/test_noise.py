from __future__ import annotations

import numpy as np
import pytest

from latentc.core.errors import RequestError
from latentc.sampling.noise import added_noise, checked_latents, checked_noise, initial_noise

SHAPE = (3, 4, 16, 16)
FIRST = [-0.016616998240351677, -1.1902087926864624, 0.8245428800582886, 0.3317311704158783]
ADDED = [2.902196168899536, 0.34514153003692627, 0.19756527245044708, -0.7972021102905273]


def test_the_values_of_a_seed_never_change():
    first = [float(value) for value in initial_noise(1, (1, 4, 2, 2)).ravel()[:4]]
    added = [float(value) for value in added_noise(1, (1, 4, 2, 2))().ravel()[:4]]
    assert first == FIRST
    assert added == ADDED


def test_values_are_standard_normal():
    values = initial_noise(7, (4, 4, 64, 64))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def test_image_k_is_image_0_of_the_seed_k_later():
    many, added = initial_noise(40, SHAPE), added_noise(40, SHAPE)
    draws = [added(), added()]
    for image in range(3):
        alone = added_noise(40 + image, (1, *SHAPE[1:]))
        assert (initial_noise(40 + image, (1, *SHAPE[1:]))[0] == many[image]).all()
        assert all((alone()[0] == draw[image]).all() for draw in draws)


def test_streams_differ():
    values = initial_noise(0, SHAPE)
    added = added_noise(0, SHAPE)
    draws = [values, added(), added(), initial_noise(3, SHAPE)]
    flat = [image.ravel() for draw in draws for image in draw]
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 0.15


def test_the_largest_seed_is_drawn():
    assert np.isfinite(initial_noise(2**63 - 1, (2, 4, 8, 8))).all()


def test_what_is_passed_in_is_checked():
    good = np.zeros(SHAPE, np.float32)
    assert checked_latents(good, SHAPE) is good
    assert checked_noise(lambda: good, SHAPE)() is good
    with pytest.raises(RequestError, match=r"float64 \[3, 4, 16, 16\]; this request needs float32"):
        checked_latents(good.astype(np.float64), SHAPE)
    with pytest.raises(RequestError, match=r"float32 \[1, 4, 16, 16\]; this request"):
        checked_latents(good[:1], SHAPE)
    with pytest.raises(RequestError, match="NaN or infinity"):
        checked_latents(np.full(SHAPE, np.inf, np.float32), SHAPE)
    with pytest.raises(RequestError, match=r"returned float32 \[1, 4, 16, 16\]"):
        checked_noise(lambda: good[:1], SHAPE)()
