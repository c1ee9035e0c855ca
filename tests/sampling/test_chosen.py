"""What a request chooses: spacings of other tools, Align Your Steps, timesteps, sigmas and eta."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from diffusers.schedulers import AysSchedules

from latentc.checkpoints.families import find_family
from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.sampling.schedulers import FLOW_SCHEDULERS, NAMES, SCHEDULERS, first_call, named, schedule
from latentc.sampling.schedulers.settings import LEVELS, Settings
from latentc.sampling.schedulers.sigmas import training_sigmas

from .walks import (
    LCM,
    SD15,
    SD21,
    SDXL,
    TURBO,
    Config,
    distance,
    doubled,
    draws,
    our_walk,
    said,
    their_class,
    their_walk,
)

TABLE = training_sigmas(Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")).astype(np.float64)
FLOW: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SPACED = [name for name, row in SCHEDULERS.items() if "levels" in row.chooses]
AYS = {"sd1": "StableDiffusion", "sdxl": "StableDiffusionXL"}


def levels_of(walk) -> np.ndarray:
    """The noise level before each call."""
    parts = [walk.level(index) for index in range(len(walk.timesteps))]
    return np.array([added / kept for kept, added in parts])


def k_sigma(timesteps) -> np.ndarray:
    """`t_to_sigma` of k-diffusion's `DiscreteSchedule`: interpolated in the logarithm."""
    whole, share = np.floor(timesteps).astype(int), np.asarray(timesteps) % 1
    return np.exp((1 - share) * np.log(TABLE[whole]) + share * np.log(TABLE[np.minimum(whole + 1, 999)]))


def web_ui(levels: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise levels of `modules/sd_schedulers.py` of AUTOMATIC1111's web UI, without the zero, and their timesteps."""
    match levels:
        case "normal":  # also `get_sigmas`, which the web UI calls Uniform
            timesteps = np.linspace(999, 0, steps)
        case "sgm-uniform":
            timesteps = np.linspace(999, 0, steps + 1)[:-1]
        case _:
            timesteps = np.array([999 - int(step * (1000 / steps)) for step in range(steps)], float)
    return k_sigma(timesteps), timesteps


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 38, 61])
@pytest.mark.parametrize("levels", ["normal", "simple", "sgm-uniform"])
@pytest.mark.parametrize("name", SPACED)
def test_spacings_are_those_of_the_web_ui(name: str, levels: str, steps: int) -> None:
    walk = schedule(SD15, steps, f"{name}-{levels}")
    calls = 2 if len(walk.timesteps) == 2 * steps - 1 and steps > 1 else 1
    sigmas, timesteps = web_ui(levels, steps)
    np.testing.assert_allclose(levels_of(walk)[:1], sigmas[:1], rtol=2e-6)
    first = slice(None, None, calls) if name != "heun" or calls == 1 else slice(0, None, 2)
    np.testing.assert_allclose(levels_of(walk)[first], sigmas, rtol=2e-6)
    np.testing.assert_allclose(walk.timesteps[first], timesteps, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("family", AYS)
def test_align_your_steps_is_the_published_one(family: str) -> None:
    """At 10 steps, diffusers' list, drawn by its Euler; at others, log-linear between, as in the paper."""
    aligned = find_family(family).align_your_steps
    assert aligned is not None
    published = AysSchedules[f"{AYS[family]}Sigmas"]
    walk = schedule(SDXL, 10, "euler-ays", aligned=aligned)
    reference = their_class("EulerDiscreteScheduler").from_config(SDXL)
    reference.set_timesteps(sigmas=published)
    np.testing.assert_allclose(walk.timesteps, reference.timesteps.numpy(), rtol=1e-5)
    np.testing.assert_allclose(levels_of(walk), published[:-1], rtol=1e-6)
    twice = levels_of(schedule(SDXL, 20, "dpm++2m-ays", aligned=aligned))
    np.testing.assert_allclose(twice[::2], published[:-1], rtol=2e-6)
    np.testing.assert_allclose(twice[1:-1:2], np.sqrt(twice[:-2:2] * twice[2::2]), rtol=2e-6)
    assert math.isclose(twice[-1], math.sqrt(0.029 * twice[-2]), rel_tol=1e-6)


def test_align_your_steps_needs_published_levels() -> None:
    with pytest.raises(RequestError, match="none are published for this one.*Use another spacing"):
        schedule(SD21, 10, "euler-ays")


CUSTOM: dict[str, tuple[Config, str, dict[str, Any]]] = {
    "euler": (SDXL, "euler", {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}),
    "euler-v": (SD21, "euler", {"timesteps": [900, 400, 3, 0]}),
    "euler-sigmas": (SDXL, "euler", {"sigmas": [14.615, 6.475, 3.861, 0.7, 0.152, 0.0]}),
    "euler-trailing-sigmas": (TURBO, "euler", {"sigmas": [9.0, 0.4, 0.0]}),
    "euler-ends-at-zero": (SDXL | {"final_sigmas_type": "sigma_min"}, "euler", {"sigmas": [14.6, 5.0, 0.0]}),
    "heun": (SDXL, "heun", {"timesteps": [999, 600, 300, 20]}),
    "ddpm": (SD15, "ddpm", {"timesteps": [999, 700, 699, 30, 0]}),
    "2m": (SD15, "dpm++2m", {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}),
    "2m-sde": (SD21, "dpm++2m-sde", {"timesteps": [981, 400, 100, 7]}),
    "lcm": (LCM, "lcm", {"timesteps": [999, 759, 499, 259]}),
    "tcd": (LCM, "tcd", {"timesteps": [999, 600, 100]}),
    "flow": (FLOW, "euler", {"sigmas": [1.0, 0.75, 0.5, 0.1, 0.0]}),
}


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("case", CUSTOM)
def test_chosen_steps_are_diffusers_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name, chosen = CUSTOM[case]
    row = (FLOW_SCHEDULERS if case == "flow" else SCHEDULERS)[name]
    reference = their_class(row.class_name).from_config(config, **({} if case == "flow" else row.asks))
    theirs = {"sigmas": chosen["sigmas"][:-1]} if case == "flow" else chosen  # where diffusers appends the zero
    reference.set_timesteps(**theirs)
    if hasattr(reference, "set_begin_index"):
        reference.set_begin_index(0)
    doubled(reference)
    steps = len(chosen.get("timesteps", chosen.get("sigmas", [])[1:]))
    ours = schedule(config, steps, name, **chosen)
    np.testing.assert_allclose(ours.timesteps, reference.timesteps.numpy(), rtol=5e-6, atol=5e-6)
    start = (next(draws(5)) * ours.init_noise_sigma).astype(np.float32)
    source = draws()
    monkeypatch.setattr(type(reference), "scale_model_input", lambda _, sample, __: sample, raising=False) if (
        case == "flow"
    ) else None
    pairs = zip(
        our_walk(ours, start, lambda: next(source)),
        their_walk(reference, start.astype(np.float64), 0, monkeypatch),
        strict=True,
    )
    assert max(distance(mine, theirs) for (_, mine), (_, theirs) in pairs) < 1e-5
    assert first_call(config, ours, steps, 1.0) == 0


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("euler-ancestral", {"eta": 0.5}, "EulerAncestralDiscreteScheduler has no eta.*use one of: ddim, tcd"),
        ("euler", {"eta": 0.0}, "has no eta, but 0 was given"),
        ("tcd", {"eta": 1.1}, "is not a valid eta"),
        ("ddim", {"timesteps": [999, 1]}, "DDIMScheduler has no custom timesteps, but 999, 1 was given"),
        ("heun", {"sigmas": [9.0, 0.0]}, "has no custom sigmas.*one of: ipndm, euler"),
        ("euler", {"timesteps": [999, 1], "sigmas": [9.0, 1.0, 0.0]}, "each determines the other"),
        ("euler", {"timesteps": [999, 1], "spacing": "trailing"}, "'trailing' spacing and timesteps were given"),
        ("euler-karras", {"sigmas": [9.0, 1.0, 0.0]}, "sigmas replace its spacing"),
        ("euler-simple", {"timesteps": [999, 1]}, "timesteps replace its spacing"),
        ("euler-simple", {"spacing": "trailing"}, "-simple of the scheduler replaces it"),
        ("euler", {"timesteps": [999, 500, 1]}, "3 timesteps and 2 steps were given"),
        ("euler", {"sigmas": [9.0, 0.0]}, "2 sigmas are 1 steps, and 2 were given"),
        ("euler", {"timesteps": [500, 500]}, "each must be lower than the one before, from 999"),
        ("euler", {"timesteps": [1000, 1]}, "are not valid"),
        ("euler", {"timesteps": [9, -1]}, "are not valid"),
        ("euler", {"sigmas": [9.0, 1.0, 0.1]}, "and the last 0"),
        ("euler", {"sigmas": [1.0, 9.0, 0.0]}, "each must be lower"),
        ("euler", {"sigmas": [20.0, 1.0, 0.0]}, "start at 20, but the highest.*is 14.6146"),
        ("ddim-simple", {}, "'ddim' does not support -simple. Leave it out, or use one of: ipndm, lms, euler, "),
    ],
)
def test_a_choice_that_cant_be_drawn(name: str, chosen, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        schedule(SD15, 2, name, **chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_karras_sigmas": True}, "has a ramp of noise levels, karras"),
        ({"interpolation_type": "log_linear"}, "by another rule"),
    ],
)
def test_timesteps_need_a_config_that_follows_them(change: Config, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        schedule(said(SDXL, **change), 2, timesteps=[999, 1])


def test_flow_matching_has_its_own_bounds() -> None:
    with pytest.raises(RequestError, match="highest noise level that the model was trained on is 1"):
        schedule(FLOW, 2, sigmas=[1.5, 0.5, 0])
    with pytest.raises(RequestError, match="FlowMatchEulerDiscreteScheduler has no custom timesteps"):
        schedule(FLOW, 2, timesteps=[999, 1])


@pytest.mark.parametrize("name", ["ipndm", "dpm++2s-ancestral", "dpm++3m-sde", "euler-ays", "dpm++2m-simple"])
def test_what_diffusers_lacks_is_no_bundles_own(name: str) -> None:
    with pytest.raises(RequestError, match=f"'{name}' can't be the scheduler of a bundle".replace("+", "\\+")):
        named(SD15, name)


def test_a_request_counts_the_steps_that_it_chooses() -> None:
    assert Request(prompt="a", timesteps=(999, 500, 1)).steps == 3
    assert Request(prompt="a", sigmas=(9.0, 1.0, 0.0)).steps == 2
    same = Request(prompt="a", sigmas=(9.0, 1.0, 0.0), eta=0.5)
    assert Request.model_validate_json(same.model_dump_json()) == same
    assert not {"eta", "timesteps", "sigmas"} & Request(prompt="a").model_dump().keys()
    for bad, message in (
        ({"timesteps": [999, 1], "steps": 3}, "the timesteps are 2 steps, but steps is 3"),
        ({"timesteps": [999, 1], "sigmas": [1.0, 0.0], "steps": 2}, "determine each other"),
        ({"sigmas": [1.0, 0.0], "timestep_spacing": "leading"}, "sigmas replace timestep_spacing"),
        ({"eta": 1.5}, "eta"),
        ({"timesteps": []}, "timesteps"),
    ):
        with pytest.raises(RequestError, match=message):
            Request.model_validate({"prompt": "a", **bad})


def test_every_spacing_has_a_name_for_every_sampler_of_noise_levels() -> None:
    assert {f"{name}-{levels}" for name in SPACED for levels in LEVELS} <= NAMES
