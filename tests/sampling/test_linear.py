"""Steps as numbers, for engines that take them: walks by these numbers alone, against diffusers' schedulers."""

from dataclasses import replace

import numpy as np
import pytest

from latentc.core.looped import COUNT, DEPTH
from latentc.sampling.denoise import Kept, Walk, end_of
from latentc.sampling.linear import step_factors
from latentc.sampling.schedulers import FLOW_SCHEDULERS, SCHEDULERS, schedule

from .test_flow import DYNAMIC
from .test_flow import theirs as their_flow
from .walks import SD15, SD21, SDXL, SHAPE, distance, draws, no_noise, our_walk, said, their_walk, theirs
from .walks import denoiser as answer

TAKEN = {"ddim", "deis", "dpm++2m", "dpm2", "euler", "heun", "ipndm", "lms", "pndm", "tcd"}
LATENTS = next(draws(5))


def walk_of(config, name, steps=9, **more):
    made = schedule(config, steps, name, **more)
    return Walk(made, lambda: np.zeros(SHAPE, np.float32), None, None, 0.0, "sample", "unet", "numpy")


def by_numbers(walk, latents):
    """The walk as `core.looped` states it: yields what the denoiser is fed, and the latents after each call."""
    factors, first = step_factors(walk), walk.first
    assert factors.shape == (end_of(walk) - first, COUNT)
    carries = [np.zeros_like(latents) for _ in range(DEPTH)]
    sample = walk.schedule.scale(latents, first)
    for timestep, numbers in zip(walk.schedule.timesteps[first : end_of(walk)], factors, strict=True):
        _, scale, *pairs = numbers
        output = answer(sample, float(timestep))
        sums = [a * latents + b * output for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
        fed, latents = sample, sums[0] + carries[0]
        carries = [one + carry for one, carry in zip(sums[1:], [*carries[1:], np.float32(0)], strict=True)]
        sample = scale * latents
        yield fed, latents


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("config", [SD15, SD21, SDXL], ids=["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("name", [name for name in sorted(TAKEN) if SCHEDULERS[name].in_diffusers])
def test_walks_by_numbers_are_diffusers_own(name, config, monkeypatch):
    walk = walk_of(config, name)
    start = LATENTS * np.float32(walk.schedule.init_noise_sigma)
    reference = their_walk(theirs(config, name, 9), start, 0.0, monkeypatch)
    pairs = list(zip(by_numbers(walk, start), reference, strict=True))
    assert len(pairs) == len(walk.schedule.timesteps)
    for ours, other in pairs:
        assert max(map(distance, ours, other)) < 2e-5


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_so_are_those_of_flow_matching(name, monkeypatch):
    config, tokens = {**DYNAMIC, "shift": 3.0, "time_shift_type": "exponential"}, 1024
    walk = walk_of(config, name, tokens=tokens)
    found = step_factors(walk)
    if name not in TAKEN:
        assert isinstance(found, str)
        return
    reference = their_flow(config, name, 9, tokens)
    monkeypatch.setattr(type(reference), "scale_model_input", lambda _, sample, __: sample, raising=False)
    for ours, other in zip(by_numbers(walk, LATENTS), their_walk(reference, LATENTS, 0.0, monkeypatch), strict=True):
        assert max(distance(mine, one.astype(np.float32)) for mine, one in zip(ours, other, strict=True)) < 2e-5


def test_every_other_scheduler_says_why():
    found = {name: step_factors(walk_of(SD15, name)) for name in SCHEDULERS}
    assert {name for name, one in found.items() if not isinstance(one, str)} == TAKEN
    noisy = {name for name, one in found.items() if isinstance(one, str) and one == "the scheduler adds noise"}
    assert noisy >= {"euler-ancestral", "ddpm", "dpm++2m-sde", "lcm"}
    assert found["unipc"] == f"the scheduler uses more than {DEPTH} earlier outputs"
    clipped = said(SD15, clip_sample=True)
    assert step_factors(walk_of(clipped, "ddim")) == "the scheduler's step is not linear"
    assert step_factors(walk_of(SD15, "ddim", eta=0.5)) == "the scheduler adds noise"


def test_a_walk_may_begin_and_end_in_the_middle_and_keeps_its_own_history():
    for name in ("dpm++2m", "lms"):
        walk = replace(walk_of(SD15, name), first=3, end=7)
        *_, (_, found) = by_numbers(walk, LATENTS)
        part = walk.schedule
        sample = LATENTS
        for index in range(3, 7):
            sample = part.step(answer(part.scale(sample, index), float(part.timesteps[index])), index, sample, no_noise)
        assert distance(found, sample) < 2e-5
    whole = walk_of(SD15, "dpm++2m")
    step_factors(whole)
    *_, (_, after) = our_walk(whole.schedule, LATENTS, no_noise)
    *_, (_, plain) = our_walk(walk_of(SD15, "dpm++2m").schedule, LATENTS, no_noise)
    assert (after == plain).all()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"kept": Kept(LATENTS, LATENTS, LATENTS)}, "inpainting restores the kept area after each step"),
        ({"beside": LATENTS}, "the denoiser also reads an image"),
        ({"guidance": 3.0, "image_guidance": 1.5}, "the image has a guidance scale of its own"),
        ({"guidance": np.ones((1, 2, 1, 1, 1), np.float32)}, "each frame has a guidance scale of its own"),
        ({"guidance": 3.0, "guidance_rescale": 0.7}, "guidance_rescale depends on the whole output"),
    ],
)
def test_what_else_the_host_computes_is_said(more, why):
    assert step_factors(replace(walk_of(SD15, "euler"), **more)) == why
