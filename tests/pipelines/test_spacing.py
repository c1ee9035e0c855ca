"""Where steps fall: `timestep_spacing` of a request, and the notice where a few steps begin too late."""

import json

import diffusers
import numpy as np
import pytest

from latentc import Request
from latentc.core.errors import RequestError
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.schedulers import few_steps, replaced, schedule

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

CONFIG = "scheduler/scheduler_config.json"
LEADING = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_request_says_where_its_steps_fall(spacing, steps):
    theirs = diffusers.EulerDiscreteScheduler.from_config(LEADING, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    walk = schedule(LEADING, steps, spacing=spacing)
    assert walk.timesteps.tolist() == theirs.timesteps.tolist()
    assert walk.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)


def test_a_scheduler_without_spacings_says_so():
    with pytest.raises(RequestError, match=r"LCMScheduler uses the timesteps .* no timestep_spacing"):
        schedule(LEADING, 4, "lcm", spacing="trailing")


def test_a_spacing_that_is_none_is_refused():
    with pytest.raises(RequestError, match="timestep_spacing"):
        Request(prompt="x", timestep_spacing="even")


@pytest.mark.parametrize(
    ("steps", "name", "spacing", "noticed"),
    [
        (1, None, None, True),
        (8, None, None, True),
        (9, None, None, False),
        (4, None, "trailing", False),
        (4, None, "linspace", False),
        (4, "ddim", None, True),
        (4, "lcm", None, False),
        (4, "euler-karras", None, False),
    ],
)
def test_a_few_leading_steps_earn_a_notice(steps, name, spacing, noticed):
    notice = few_steps(LEADING, steps, name, spacing)
    assert bool(notice) == noticed
    if notice:
        assert "trailing" in notice
        assert f"start at timestep {schedule(LEADING, steps, name).timesteps[0]:g} of 1000" in notice


def test_the_result_has_the_spacing_and_the_notice(sd_bundle, engines):
    pipeline = Pipeline(sd_bundle, engines, load_profile("null"))
    walks = {}
    for spacing in ("leading", "trailing"):
        engines.feeds.clear()
        result = pipeline(Request(prompt="a cat", steps=4, seed=1, timestep_spacing=spacing))
        assert result.request.timestep_spacing == spacing
        assert any("--spacing trailing" in notice for notice in result.notices) == (spacing == "leading")
        walks[spacing] = [float(feeds["timestep"][0]) for feeds in engines.feeds["unet"]]
    theirs = diffusers.EulerDiscreteScheduler.from_config(sd_bundle.json(CONFIG), timestep_spacing="trailing")
    theirs.set_timesteps(4)
    assert walks["trailing"] == theirs.timesteps.tolist()
    assert walks["leading"][0] < 800
    assert json.loads(result.request.model_dump_json())["timestep_spacing"] == "trailing"
    assert np.isfinite(result.latents).all()


@pytest.mark.parametrize(
    ("changes", "preset", "seen"),
    [
        ({}, "fast", False),
        ({"timestep_spacing": "trailing"}, "fast", True),  # as in SDXL Turbo's config
        ({"timestep_spacing": "trailing"}, None, False),
        ({"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, "fast", False),
        ({"_class_name": "LCMScheduler"}, "draft", True),
    ],
)
def test_presets_for_models_of_few_steps_are_noticed(changes, preset, seen):
    notice = replaced(LEADING | changes, preset)
    assert (notice is not None) is seen
    assert notice is None or f"The preset {preset} replaces" in notice
