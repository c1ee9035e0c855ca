"""The step that draws, and that the compiler proves."""

from dataclasses import replace

import numpy as np
import pytest

from latentc.core.errors import NotFiniteError
from latentc.sampling.denoise import Kept, Walk, denoise, step
from latentc.sampling.schedulers import FLOW_SCHEDULERS, SCHEDULERS, schedule

CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
CASES = [(name, kind) for name, sampler in SCHEDULERS.items() for kind in sampler.predictions]


def walk_of(name, kind, guidance, **config):
    shape = (1, 4, 8, 8)
    made = schedule({**CONFIG, "prediction_type": kind, **config}, 4, name)
    return Walk(made, lambda: np.zeros(shape, np.float32), guidance, None, 0.0, "sample", "unet", "numpy")


@pytest.mark.parametrize("guidance", [None, 7.5])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_infinite_answer_is_an_error_whatever_the_scheduler_makes_of_it(name, kind, clip, value, guidance):
    walk = walk_of(name, kind, guidance, **({"clip_sample": True} if clip else {}))
    latents = np.ones((1, 4, 8, 8), np.float32)

    def run(feeds):
        out = np.zeros_like(feeds["sample"])
        out[-1, 0, 0, 0] = value
        return {"out_sample": out}

    with pytest.raises(NotFiniteError, match="The output of denoiser call 1 of"):
        step(run, walk, 0, latents)


@pytest.mark.parametrize("own", ["EulerDiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_are_clipped_only_where_the_config_or_its_class_says_so(name, own):
    """A config that leaves clip_sample out says so by its class alone: diffusers' DDIM and DDPM clip."""
    clips = own == "DDIMScheduler" and name in ("ddim", "ddpm")
    walk = walk_of(name, "epsilon", None, _class_name=own)
    latents = np.full((1, 4, 8, 8), 4.0, np.float32)
    found = step(lambda feeds: {"out_sample": np.zeros_like(feeds["sample"])}, walk, 0, latents)
    assert (np.abs(found).max() > 2) != clips, "an original far from zero stays there"


def test_the_shipped_checkpoint_says_that_latents_are_not_clipped():
    from latentc.checkpoints.open import open_checkpoint

    assert open_checkpoint("scenes").scheduler["clip_sample"] is False


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_ideal_denoiser_is_shown_to_know_the_original(name, kind):
    """It knows the original, and the noise levels from the training schedule alone: every estimate is the original."""
    random = np.random.default_rng(1)
    original, start = random.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    betas = np.linspace(CONFIG["beta_start"] ** 0.5, CONFIG["beta_end"] ** 0.5, 1000) ** 2
    table = np.cumprod(1 - betas)
    walk = replace(
        walk_of(name, kind, None, clip_sample=False),
        noise=lambda: random.standard_normal(start.shape).astype(np.float32),
    )

    def run(feeds):
        signal = np.interp(feeds["timestep"][0], np.arange(1000), table)
        noise = (feeds["sample"] - signal**0.5 * original) / (1 - signal) ** 0.5
        made = {
            "epsilon": noise,
            "v_prediction": signal**0.5 * noise - (1 - signal) ** 0.5 * original,
            "sample": original,
            "flow_prediction": noise,
        }[kind]
        return {"out_sample": made.astype(np.float32)}

    steps = []
    denoise(run, walk, start * np.float32(walk.schedule.init_noise_sigma), steps.append)
    assert len(steps) == len(walk.schedule.timesteps)
    for one in steps:
        assert np.abs(one.estimate - original).max() < 0.05, one.index
        assert not one.estimate.flags.writeable


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_an_ideal_denoiser_of_flow_matching_is_shown_to_know_the_original(name):
    random = np.random.default_rng(1)
    original, start = random.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    made = schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 4, name)
    walk = Walk(made, lambda: np.zeros_like(start), None, None, 0.0, "sample", "unet", "numpy")

    def run(feeds):
        level = feeds["timestep"][0] / 1000
        return {"out_sample": (feeds["sample"] - original) / np.float32(level)}  # noise - original

    steps = []
    denoise(run, walk, start, steps.append)
    # dpm++2m rounds the timesteps, from which this denoiser reads the level
    assert max(np.abs(step.estimate - original).max() for step in steps) < 0.02


def test_the_estimate_shows_what_inpainting_keeps():
    random = np.random.default_rng(1)
    original, noise = random.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    mask = np.zeros((1, 1, 8, 8), np.float32)
    mask[..., 4:] = 1
    walk = replace(walk_of("euler", "epsilon", None), kept=Kept(original, noise, mask))
    steps = []
    denoise(lambda feeds: {"out_sample": feeds["sample"]}, walk, noise, steps.append)
    assert all((step.estimate[..., :4] == original[..., :4]).all() for step in steps)
    assert all((step.estimate[..., 4:] != original[..., 4:]).any() for step in steps)
