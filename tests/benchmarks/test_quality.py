"""Picture metrics: against their definitions, and against pictures whose faults are known."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest

from latentc.benchmarks.quality import (
    Figures,
    compare,
    faults,
    flip,
    mean_absolute_difference,
    picture_psnr_db,
    ssim,
    summarize,
)
from latentc.core.errors import ParityError, RuntimeMissing
from latentc.core.tensors import PERFECT_DB


@pytest.fixture
def picture():
    """Smooth in large parts, with edges and some grain: no metric sees a special case."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[0:96, 0:128] / 96
    layers = np.stack([128 + 90 * np.sin(3 * x + y), 255 * (x > y), 200 * y], axis=2)
    return np.clip(layers + random.normal(0, 4, layers.shape), 0, 255).astype(np.uint8)


def noisy(picture, deviation):
    noise = np.random.default_rng(2).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


def test_a_picture_is_equal_to_itself(picture):
    assert compare(picture, picture.copy()) == Figures(
        psnr_db=PERFECT_DB, ssim=1.0, flip=0.0, mean_absolute_difference=0.0
    )


def test_every_figure_falls_as_noise_grows(picture):
    found = [compare(picture, noisy(picture, deviation)) for deviation in (1, 4, 16, 64)]
    for near, far in pairwise(found):
        assert near.psnr_db > far.psnr_db
        assert near.ssim > far.ssim
        assert near.flip < far.flip
        assert near.mean_absolute_difference < far.mean_absolute_difference


def test_psnr_and_difference_by_hand(picture):
    base = np.full((16, 16, 3), 40, np.uint8)
    assert picture_psnr_db(base, base + np.uint8(3)) == pytest.approx(20 * math.log10(255 / 3))
    assert mean_absolute_difference(base, base - np.uint8(3)) == 3
    one = base.copy()
    one[0, 0, 0] += 96
    assert mean_absolute_difference(base, one) == pytest.approx(96 / base.size)
    assert picture_psnr_db(base, one) == pytest.approx(10 * math.log10(255**2 * base.size / 96**2))
    # the peak is white, however dark the picture: unlike a tensor's
    assert picture_psnr_db(base // 10, base // 10 + np.uint8(3)) == picture_psnr_db(base, base + np.uint8(3))


def test_ssim_by_its_definition(picture):
    """Wang et al. 2004, equation 13, with an 11 x 11 Gaussian window of deviation 1.5, where it fits whole."""
    other = noisy(picture, 12)
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blurred(channel):
        views = np.lib.stride_tricks.sliding_window_view(channel, (11, 11))
        return np.einsum("yxij,ij->yx", views, window)

    maps = []
    for index in range(3):
        a, b = picture[..., index].astype(float), other[..., index].astype(float)
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
        covariance = blurred(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        maps.append(
            (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    assert ssim(picture, other) == pytest.approx(float(np.mean(maps)), abs=1e-6)


def test_flip_s_known_values(picture):
    """On one-coloured pictures only the colour term is left, and it can be worked out from the paper's section 4.1.

    Black and white are 100 apart in lightness: 100 ** 0.7 = 25.12 of at most 41.28 (green and blue). Up to 0.4 of that
    most is laid out over 0 to 0.95, the rest over 0.95 to 1: 0.95 + 0.05 * (25.12 - 16.51) / (41.28 - 16.51).
    """
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    green, blue = black.copy(), black.copy()
    green[..., 1], blue[..., 2] = 255, 255
    assert flip(black, white) == pytest.approx(0.9674, abs=2e-4)
    assert flip(green, blue) == pytest.approx(1.0, abs=2e-4)
    other = noisy(picture, 20)
    assert flip(picture, other) == pytest.approx(flip(other, picture), abs=1e-6)
    # sRGB is understood: the same step in value is a larger one for the eye in the dark
    step = [np.full((64, 64, 3), value, np.uint8) for value in (0, 20, 235, 255)]
    assert flip(step[0], step[1]) != pytest.approx(flip(step[2], step[3]), rel=0.05)


def test_inputs_are_left_alone(picture):
    other = noisy(picture, 8)
    before = picture.copy(), other.copy()
    picture.flags.writeable = other.flags.writeable = False
    compare(picture, other)
    assert (picture == before[0]).all()
    assert (other == before[1]).all()


@pytest.mark.parametrize("metric", [picture_psnr_db, ssim, flip, mean_absolute_difference])
def test_what_isn_t_a_pair_of_pictures_is_refused(picture, metric):
    for other in (picture[:-1], picture.astype(np.float32), picture[..., :1], picture[None]):
        with pytest.raises(ParityError):
            metric(picture, other)
    with pytest.raises(ParityError):
        metric(picture.astype(np.float64), picture.astype(np.float64))


def test_a_picture_too_small_for_ssim_is_refused():
    with pytest.raises(ParityError, match="11 x 11"):
        ssim(np.zeros((10, 40, 3), np.uint8), np.ones((10, 40, 3), np.uint8))


@pytest.mark.parametrize(("module", "metric"), [("skimage.metrics", ssim), ("flip_evaluator", flip)])
def test_a_missing_library_fails_and_says_what_to_install(picture, monkeypatch, module, metric):
    monkeypatch.setitem(sys.modules, module, None)
    for call in (metric, compare):
        with pytest.raises(RuntimeMissing, match=r'pip install .*"\.\[bench\]"'):
            call(picture, picture)


def test_faults_by_name(picture):
    assert faults(picture) == ()
    assert faults(np.zeros((8, 8, 3), np.uint8)) == ("black", "flat")
    assert faults(np.full((8, 8, 3), (200, 10, 10), np.uint8)) == ("flat",)
    assert faults((np.random.default_rng(0).integers(0, 4, (8, 8, 3))).astype(np.uint8)) == ("black",)
    dark = np.zeros((8, 8, 3), np.uint8)
    dark[3, 3] = 40
    assert faults(dark) == ()


def test_the_worst_is_each_figure_s_own_worst():
    many = [
        Figures(psnr_db=30.0, ssim=0.9, flip=0.3, mean_absolute_difference=1.0),
        Figures(psnr_db=40.0, ssim=0.5, flip=0.1, mean_absolute_difference=5.0),
        Figures(psnr_db=50.0, ssim=0.8, flip=0.2, mean_absolute_difference=3.0),
    ]
    found = summarize(many)
    assert found.worst == Figures(psnr_db=30.0, ssim=0.5, flip=0.3, mean_absolute_difference=5.0)
    assert found.median == Figures(psnr_db=40.0, ssim=0.8, flip=0.2, mean_absolute_difference=3.0)
    assert found.pictures == 3
    with pytest.raises(ParityError):
        summarize([])


def test_a_nan_isn_t_averaged_away():
    sound = Figures(psnr_db=30.0, ssim=0.9, flip=0.3, mean_absolute_difference=1.0)
    broken = Figures(psnr_db=math.nan, ssim=math.nan, flip=math.nan, mean_absolute_difference=math.nan)
    with np.errstate(invalid="ignore"):
        worst = summarize([sound, broken, sound]).worst
    assert math.isnan(worst.psnr_db)
    assert math.isnan(worst.flip)
