"""Pictures of `scenes`, whose meaning a test can see."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from latentc.checkpoints import SHIPPED, open_checkpoint
from latentc.compiler.build import build
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

PROFILE = load_profile("cpu-openvino-f32")


@pytest.fixture(scope="module")
def pipeline(bundle):
    opened = bundle("scenes")
    build(opened, PROFILE)
    with Pipeline.open(opened, PROFILE) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def draw(pipeline):
    def draw(prompt, seed=1, **others):
        return pipeline(Request(prompt=prompt, seed=seed, **{"guidance": 4.0, **others})).images[0].astype(float)

    return draw


def test_it_ships_small_and_is_said_to(bundle):
    opened = open_checkpoint("scenes")
    assert (opened.source.kind, opened.source.location) == ("shipped", "scenes")
    assert opened.family.name == "sd1"
    weights = [load_file(file) for file in SHIPPED["scenes"].rglob("*.safetensors")]
    assert sum(tensor.nbytes for part in weights for tensor in part.values()) <= 16_000_000
    manifest = bundle("scenes").manifest
    assert (manifest.source.kind, manifest.source.location, manifest.source.random) == ("shipped", "scenes", False)
    assert manifest.model.default_size == 128


@pytest.mark.parametrize("seed", [1, 2])
def test_night_is_darker_than_day(draw, seed):
    night, day = draw("a beach at night with stars", seed), draw("a beach by day", seed)
    assert night.mean() < 0.5 * day.mean()


@pytest.mark.parametrize("seed", [1, 2])
def test_places_have_their_colours(draw, seed):
    """Below the middle: grass is green, water blue, sand reddish."""
    meadow, sea, desert = (
        draw(f"{place} by day", seed)[80:].mean(axis=(0, 1)) for place in ("a meadow", "the sea", "a desert")
    )
    assert np.argmax(meadow) == 1
    assert np.argmax(sea) == 2
    assert np.argmax(desert) == 0


def test_a_negative_prompt_turns_the_picture_away(draw):
    plain = np.mean([draw("a meadow", seed).mean() for seed in (1, 2, 3)])
    without = np.mean([draw("a meadow", seed, negative_prompt="at night").mean() for seed in (1, 2, 3)])
    assert without > plain


def test_an_unknown_word_is_harmless(draw):
    """It moves the picture less than another sky does."""
    known = draw("a beach at sunset")
    strange = np.abs(draw("a zxqvu beach at sunset") - known).mean()
    assert strange < 0.5 * np.abs(draw("a beach at night") - known).mean()


def test_previews_show_the_image_early(pipeline):
    """Compared with the finished image at their own size; that of the latents themselves has 10 dB in the middle."""
    shown = []
    asked = Request(prompt="a red house by a lake at sunset", seed=3, steps=20, guidance=4.0, count=2)
    result = pipeline(asked, on_step=lambda step: shown.append(pipeline.preview(step)))
    small = result.images.reshape(2, 16, 8, 16, 8, 3).mean(axis=(2, 4))
    assert [one.shape for one in shown] == [(2, 16, 16, 3)] * 20
    found = [psnr_db(small, one.astype(np.float64)) for one in shown]
    assert found[7] > 20, "at step 8 of 20"
    assert found[-1] > 22
    assert found[0] < found[7] < found[-1]
