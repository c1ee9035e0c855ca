"""The step that draws, and that the compiler proves."""

import numpy as np
import pytest

from latentc.core.errors import NotFiniteError
from latentc.sampling.denoise import Walk, step
from latentc.sampling.schedulers import SCHEDULERS, schedule

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
    return Walk(made, lambda: np.zeros(shape, np.float32), guidance, 0.0, "sample", "unet", "numpy")


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
