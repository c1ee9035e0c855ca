"""Where a refiner takes over, for each scheduler, against diffusers' `denoising_end` and `denoising_start`."""

import types
from itertools import islice

import numpy as np
import pytest

from latentc.core.errors import RequestError
from latentc.sampling.schedulers import NAMES, SCHEDULERS, hand_over, schedule
from latentc.sampling.schedulers.rows import parted
from latentc.sampling.schedulers.settings import LEVELS

from .walks import LCM, SDXL, distance, draws, our_walk, said, their_walk, theirs

THEIRS = sorted(name for name in NAMES if SCHEDULERS[parted(name)[0]].in_diffusers and parted(name)[1] not in LEVELS)
SHARES = (0.05, 0.2, 0.5, 0.55, 0.63, 0.8, 0.9, 0.95)
WRONG = ("pndm", "lms")
"""Schedulers that diffusers starts wrongly in the middle."""


def config_of(name):
    return LCM if parted(name)[0] in ("lcm", "tcd") else said(SDXL, timestep_spacing="leading")


def calls_of(scheduler, steps, share):
    """The number of calls of the base pipeline, and the first one of the refiner's, by diffusers' own code."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    # As written in the call of StableDiffusionXLPipeline; that of the refiner is a function.
    trained = scheduler.config.num_train_timesteps
    cutoff = round(trained - (share * trained))
    own = len(list(filter(lambda ts: ts >= cutoff, scheduler.timesteps)))
    one = types.SimpleNamespace(scheduler=scheduler)
    left, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(one, steps, 0.3, "cpu", denoising_start=share)
    return own, len(scheduler.timesteps) - len(left)


def last(walk):
    """The sample after the last call."""
    return list(walk)[-1][1]


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("name", THEIRS)
def test_the_calls_are_diffusers_own(name):
    config, seen = config_of(name), set()
    for steps in (4, 7, 10, 25, 40):
        reference, ours = theirs(config, name, steps), schedule(config, steps, name)
        for share in SHARES:
            expected = calls_of(reference, steps, share)
            if 0 < expected[0] < len(ours.timesteps):
                assert hand_over(config, ours, share) == expected, (steps, share)
                seen.add(expected)
            else:
                with pytest.raises(RequestError, match="takes over from .* leaves none"):
                    hand_over(config, ours, share)
    assert len(seen) > 5


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("share", [0.5, 0.63, 0.8])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name in THEIRS and name not in WRONG])
def test_the_latents_are_diffusers_own(name, share, monkeypatch):
    """Both walks have no history of each other, as two pipelines with a scheduler each."""
    config, steps = config_of(name), 12
    ours, again = (schedule(config, steps, name) for _ in range(2))
    end, begin = hand_over(config, ours, share)
    start = next(draws(1)) * np.float32(ours.init_noise_sigma)
    source = draws()
    mine = last(islice(our_walk(ours, start, lambda: next(source)), end))
    assert distance(mine, last(islice(their_walk(theirs(config, name, steps), start, 0, monkeypatch), end))) < 1e-4
    source = draws()
    made = last(our_walk(again, mine, lambda: next(source), begin))
    assert distance(made, last(their_walk(theirs(config, name, steps, begin), mine, 0, monkeypatch, begin))) < 1e-4


def test_a_step_of_two_calls_is_not_divided():
    """diffusers' base pipeline ends in the middle of a step of Heun; its refiner repeats that step's first call."""
    ours = schedule(SDXL, 10, "heun")
    end, begin = hand_over(SDXL, ours, 0.8)
    assert (end, begin) == (15, 14)
    assert ours.timesteps[begin] == ours.timesteps[end - 1]
    assert hand_over(SDXL, schedule(SDXL, 10, "euler"), 0.8) == (8, 8)
