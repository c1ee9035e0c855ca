"""The schedulers against diffusers' own: the same denoiser and the same noise, step by step."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentc.core.errors import LatentcError, ProfileError, RequestError
from latentc.sampling.schedulers import FLOW_SCHEDULERS, KNOWN_KEYS, NAMES, SCHEDULERS, first_call, names, schedule
from latentc.sampling.schedulers.rows import parted
from latentc.sampling.schedulers.settings import INERT, REFUSED

from .walks import (
    LATENT,
    LCM,
    PLAIN,
    SD15,
    SD21,
    SDXL,
    SHAPE,
    TURBO,
    ZERO_SNR,
    Config,
    distance,
    draws,
    led_back,
    no_noise,
    our_walk,
    said,
    their_class,
    their_walk,
    theirs,
)  # fmt: skip

Array = NDArray[np.float32]
CHECKPOINTS = ("sd15", "sd21", "sdxl", "turbo", "lcm", "zero-snr")
TOLERANCE = 1e-5


# The published ones and the rest. What each row is: the config, the name that is asked for, and DDIM's eta.
CASES: dict[str, tuple[Config, str | None, float]] = {
    "sd15": (SD15, None, 0),
    "sd21": (SD21, None, 0),
    "sdxl": (SDXL, None, 0),
    "turbo": (TURBO, None, 0),
    "lcm": (LCM, None, 0),
    "zero-snr": (ZERO_SNR, None, 0),
    "ddim-plain": (said(PLAIN["ddim"], clip_sample=False), None, 0),
    "ddim-eta-half": (SD21, "ddim", 0.5),
    "ddim-eta-one": (said(SD15, timestep_spacing="linspace"), "ddim", 1),
    "ddim-sample": (said(SD21, prediction_type="sample", set_alpha_to_one=True), "ddim", 0),
    "ddim-clip": (said(SD21, clip_sample=True, clip_sample_range=0.7), "ddim", 0.3),
    "ddim-zero-snr-eta": (ZERO_SNR, "ddim", 0.7),
    "ddim-cosine": (said(SD21, beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace"), "ddim", 0),
    "ddim-betas": (said(SD15, trained_betas=np.geomspace(1e-4, 0.02, 1000).tolist()), "ddim", 0),
    "ddpm-plain": (said(PLAIN["ddpm"], clip_sample=False), None, 0),
    "ddpm-sd21": (SD21, "ddpm", 0),
    "ddpm-small-log": (said(SD15, variance_type="fixed_small_log", timestep_spacing="trailing"), "ddpm", 0),
    "ddpm-large": (said(SD15, variance_type="fixed_large", timestep_spacing="linspace"), "ddpm", 0),
    "ddpm-zero-snr": (ZERO_SNR, "ddpm", 0),
    "ddpm-sample-clip": (said(SD15, prediction_type="sample", clip_sample=True), "ddpm", 0),
    "pndm-plain": (PLAIN["pndm"], None, 0),
    "pndm-v": (said(SD15, prediction_type="v_prediction", set_alpha_to_one=True), None, 0),
    "pndm-trailing": (said(SD15, timestep_spacing="trailing"), None, 0),
    "pndm-linspace": (said(SD15, timestep_spacing="linspace"), None, 0),
    "pndm-runge-kutta": (said(SD15, skip_prk_steps=False), None, 0),
    "pndm-runge-kutta-v": (said(SD15, skip_prk_steps=False, prediction_type="v_prediction"), None, 0),
    "lms-plain": (PLAIN["lms"], None, 0),
    "lms-sdxl": (SDXL, "lms", 0),
    "lms-v": (said(SD21, timestep_spacing="trailing"), "lms", 0),
    "lms-bounds": (said(SDXL, sigma_min=0.05, sigma_max=12.0), "lms-exponential", 0),
    "lms-karras": (SDXL, "lms-karras", 0),
    "lms-sample": (said(SD21, prediction_type="sample"), "lms-exponential", 0),
    "euler-plain": (PLAIN["euler"], None, 0),
    "euler-sd15": (SD15, "euler", 0),
    "euler-karras": (SDXL, "euler-karras", 0),
    "euler-exponential": (SDXL, "euler-exponential", 0),
    "euler-beta": (said(SD21), "euler-beta", 0),
    "euler-bounds": (said(SDXL, sigma_min=0.05, sigma_max=12.0, use_karras_sigmas=True), None, 0),
    "euler-sample": (said(SDXL, prediction_type="sample", final_sigmas_type="sigma_min"), None, 0),
    "euler-log-linear": (said(SDXL, interpolation_type="log_linear"), None, 0),
    "euler-log-linear-karras": (said(SDXL, interpolation_type="log_linear", use_karras_sigmas=True), None, 0),
    "euler-zero-snr": (ZERO_SNR, "euler", 0),
    "euler-continuous": (
        said(SDXL, timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True,
             sigma_min=0.002, sigma_max=120.0), None, 0),
    "ancestral-plain": (PLAIN["euler-ancestral"], None, 0),
    "ancestral-sdxl": (SDXL, "euler-ancestral", 0),
    "ancestral-turbo": (TURBO, "euler-ancestral", 0),
    "ancestral-v": (SD21, "euler-ancestral", 0),
    "ancestral-zero-snr": (ZERO_SNR, "euler-ancestral", 0),
    "heun-plain": (PLAIN["heun"], None, 0),
    "heun-sdxl": (SDXL, "heun", 0),
    "heun-v-karras": (SD21, "heun-karras", 0),
    "heun-clip": (said(SD15, clip_sample=True), "heun-exponential", 0),
    "heun-bounds": (said(SDXL, sigma_min=0.05, sigma_max=12.0), "heun-karras", 0),
    "heun-sample": (said(SD15, prediction_type="sample", timestep_spacing="trailing"), "heun-beta", 0),
    "2m-plain": (PLAIN["dpm++2m"], None, 0),
    "2m-sd15": (SD15, "dpm++2m", 0),
    "2m-sd21": (SD21, "dpm++2m", 0),
    "2m-turbo": (TURBO, "dpm++2m", 0),
    "2m-karras": (SDXL, "dpm++2m-karras", 0),
    "2m-bounds": (said(SDXL, sigma_min=0.05, sigma_max=12.0), "dpm++2m-karras", 0),
    "2m-exponential": (SDXL, "dpm++2m-exponential", 0),
    "2m-beta": (SDXL, "dpm++2m-beta", 0),
    "2m-lu": (SDXL, "dpm++2m-lu", 0),
    "2m-cosine": (
        said(PLAIN["dpm++2m"], beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, prediction_type="sample"),
        None, 0),
    "2m-cosine-karras": (said(SD21, beta_schedule="squaredcos_cap_v2"), "dpm++2m-karras", 0),
    "2m-zero-snr": (ZERO_SNR, "dpm++2m", 0),
    "2m-euler-final": (said(PLAIN["dpm++2m"], **LATENT, euler_at_final=True, lower_order_final=False,
                            final_sigmas_type="sigma_min"), None, 0),
    "2m-sigma-min": (said(PLAIN["dpm++2m"], **LATENT, final_sigmas_type="sigma_min", lower_order_final=False,
                          solver_type="heun"), None, 0),
    "2m-sigma-min-karras": (said(PLAIN["dpm++2m"], **LATENT, final_sigmas_type="sigma_min"), "dpm++2m-karras", 0),
    "2m-from-unipc": (said(PLAIN["unipc"], **LATENT, solver_order=3, solver_type="bh2"), "dpm++2m", 0),
    "1st": (said(PLAIN["dpm++2m"], **LATENT, solver_order=1), None, 0),
    "3m": (said(PLAIN["dpm++2m"], **LATENT, solver_order=3), None, 0),
    "3m-v": (said(PLAIN["dpm++2m"], **LATENT, solver_order=3, prediction_type="v_prediction"), None, 0),
    "deis": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="deis", solver_type="logrho",
                  final_sigmas_type="sigma_min"), None, 0),
    "dpm": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"), None, 0),
    "dpm-heun-v": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="dpmsolver", final_sigmas_type="sigma_min",
                        solver_type="heun", prediction_type="v_prediction"), None, 0),
    "dpm-3-sample": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="dpmsolver", final_sigmas_type="sigma_min",
                          solver_order=3, prediction_type="sample"), None, 0),
    "dpm-sde": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"),
                None, 0),
    "dpm-sde-heun": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="sde-dpmsolver",
                          final_sigmas_type="sigma_min", solver_type="heun"), None, 0),
    "2m-sde": (SDXL, "dpm++2m-sde", 0),
    "2m-sde-karras": (SD15, "dpm++2m-sde-karras", 0),
    "2m-sde-v": (SD21, "dpm++2m-sde", 0),
    "2m-sde-zero-snr": (ZERO_SNR, "dpm++2m-sde", 0),
    "2m-sde-heun": (said(PLAIN["dpm++2m"], **LATENT, algorithm_type="sde-dpmsolver++", solver_type="heun",
                         final_sigmas_type="sigma_min"), None, 0),
    "sde-plain": (PLAIN["dpm++sde"], None, 0),
    "sde-sdxl": (SDXL, "dpm++sde", 0),
    "sde-karras": (SD15, "dpm++sde-karras", 0),
    "sde-v-exponential": (SD21, "dpm++sde-exponential", 0),
    "sde-turbo": (TURBO, "dpm++sde", 0),
    "unipc-plain": (PLAIN["unipc"], None, 0),
    "unipc-sd15": (SD15, "unipc", 0),
    "unipc-sd21": (SD21, "unipc", 0),
    "unipc-turbo": (TURBO, "unipc", 0),
    "unipc-karras": (SDXL, "unipc-karras", 0),
    "unipc-exponential": (SDXL, "unipc-exponential", 0),
    "unipc-beta": (SDXL, "unipc-beta", 0),
    "unipc-zero-snr": (ZERO_SNR, "unipc", 0),
    "unipc-bh1": (said(PLAIN["unipc"], **LATENT, solver_type="bh1", solver_order=3), None, 0),
    "unipc-3-v": (said(PLAIN["unipc"], **LATENT, solver_order=3, prediction_type="v_prediction"), None, 0),
    "unipc-4": (said(PLAIN["unipc"], **LATENT, solver_order=4), None, 0),
    "unipc-corrector": (said(PLAIN["unipc"], **LATENT, disable_corrector=[0, 2, 3]), None, 0),
    "unipc-sigma-min": (said(PLAIN["unipc"], **LATENT, final_sigmas_type="sigma_min", use_karras_sigmas=True),
                        None, 0),
    "unipc-noise": (said(PLAIN["unipc"], **LATENT, predict_x0=False, lower_order_final=False,
                         final_sigmas_type="sigma_min"), None, 0),
    "unipc-noise-v": (said(PLAIN["unipc"], **LATENT, predict_x0=False, final_sigmas_type="sigma_min",
                           prediction_type="v_prediction"), None, 0),
    "unipc-noise-sample": (said(PLAIN["unipc"], **LATENT, predict_x0=False, final_sigmas_type="sigma_min",
                                prediction_type="sample"), None, 0),
    "lcm-sd15": (SD15, "lcm", 0),
    "lcm-v-clip": (said(SD21, clip_sample=True, original_inference_steps=100, timestep_scaling=2.0), "lcm", 0),
    "lcm-zero-snr": (ZERO_SNR, "lcm", 0),
    "lcm-sample": (said(LCM, prediction_type="sample"), None, 0),
}  # fmt: skip


def worst(
    config: Config, name: str | None, eta: float, steps: int, monkeypatch: pytest.MonkeyPatch, begin: int = 0
) -> float:
    reference = theirs(config, name, steps, begin)
    ours = schedule(config, steps, name, eta=eta or None)
    np.testing.assert_allclose(ours.timesteps, reference.timesteps.numpy(), rtol=2e-6)
    assert ours.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)
    start = (next(draws(5)) * ours.init_noise_sigma).astype(np.float32)
    source = draws()
    pairs = zip(
        our_walk(ours, start, lambda: next(source), begin),
        their_walk(reference, start, eta, monkeypatch, begin),
        strict=True,
    )
    return max(
        max(distance(fed, their_fed), distance(sample, their_sample))
        for (fed, sample), (their_fed, their_sample) in pairs
    )


# Where float32 leaves fewer digits: diffusers in float32 is as far from diffusers in float64.
ROUNDING = {("lms-sample", 50): 1e-4, ("unipc-noise-sample", 2): 3e-5}
# Here at any number of steps: the first noise level is 4096, which a step subtracts from; which way each product is
# rounded depends on the CPU. Both are 3e-5 to 5e-5 from float64 on one, and equal on another.
FROM_4096 = {"euler-zero-snr": 1e-4, "ancestral-zero-snr": 1e-4}


def rows() -> Iterator[tuple[str, int]]:
    for case in CASES:
        fewest = 4 if case.startswith(("pndm-plain", "pndm-runge")) else 1  # theirs are of Runge-Kutta
        for steps in (1, 2, 5, 20, 50) if case in CHECKPOINTS else (fewest, 5, 20):
            yield case, steps
    yield from ROUNDING


@pytest.mark.parametrize(("case", "steps"), list(rows()))
def test_agrees_with_diffusers(case: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name, eta = CASES[case]
    allowed = ROUNDING.get((case, steps), FROM_4096.get(case, TOLERANCE))
    assert worst(config, name, eta, steps, monkeypatch) < allowed


@pytest.mark.parametrize(
    "case",
    ["sd21", "ddpm-sd21", "sdxl", "ancestral-turbo", "heun-sdxl", "2m-karras", "3m", "2m-sde", "sde-sdxl",
     "unipc-sd15", "unipc-bh1", "lcm"],
)  # fmt: skip
@pytest.mark.parametrize("begin", [2, 6])
def test_agrees_with_diffusers_from_the_middle(case: str, begin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name, eta = CASES[case]
    assert worst(config, name, eta, 10, monkeypatch, begin) < TOLERANCE


@pytest.mark.parametrize("name", [name for name, row in SCHEDULERS.items() if row.in_diffusers])
@pytest.mark.parametrize("begin", [0, 2, 6, 8])
def test_noise_levels_are_diffusers_own(name: str, begin: int) -> None:
    config = {**SDXL, "timestep_spacing": "trailing"} if name not in ("lcm", "tcd") else LCM
    ours, reference = schedule(config, 10, name), theirs(config, name, 10, begin)
    original, noise = next(draws(1)), next(draws(2))
    kept, added = ours.level(begin)
    timestep = reference.timesteps[begin : begin + 1]
    expected = reference.add_noise(torch.from_numpy(original), torch.from_numpy(noise), timestep)
    assert distance(kept * original + np.float32(added) * noise, expected.numpy()) < TOLERANCE
    assert ours.level(len(ours.timesteps)) == (1, 0)


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("name", list(FLOW_SCHEDULERS))
@pytest.mark.parametrize("begin", [0, 3, 9])
def test_noise_levels_of_flow_matching_are_diffusers_own(name: str, begin: int) -> None:
    config: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    row = FLOW_SCHEDULERS[name]
    own = {} if name == "euler" else {**row.asks, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    reference = their_class(row.class_name).from_config({**config, "_class_name": row.class_name}, **own)
    reference.set_timesteps(10)
    reference.set_begin_index(begin)
    original, noise = next(draws(1)), next(draws(2))
    arrays = torch.from_numpy(original), torch.from_numpy(noise)
    timestep = reference.timesteps[begin : begin + 1]
    if name == "euler":
        expected = reference.scale_noise(arrays[0], timestep, arrays[1])
    else:
        expected = reference.add_noise(*arrays, timestep)
    kept, added = schedule(config, 10, name).level(begin)
    assert distance(np.float32(kept) * original + np.float32(added) * noise, expected.numpy()) < TOLERANCE


DETERMINISTIC = ("ddim", "pndm", "lms", "euler", "heun", "dpm++2m", "unipc")


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("strength", [0.15, 0.3, 0.6, 0.85, 0.95, 1.0])
def test_the_exact_noise_leads_back_to_the_original(name: str, steps: int, strength: float) -> None:
    """From every strength. diffusers' PNDM and LMS fail this: they start in the middle with the wrong order."""
    config = {**SD15, "set_alpha_to_one": True}
    ours = schedule(config, steps, name)
    begin = first_call(config, ours, steps, strength)
    assert distance(*led_back(ours, begin)) < 5e-5


@pytest.mark.parametrize(
    ("strength", "begin"), [(1.0, 0), (0.95, 4), (0.9, 8), (0.85, 12), (0.8, 13), (0.5, 19), (0.05, 28)]
)
def test_runge_kutta_steps_of_pndm_are_skipped_whole(strength: float, begin: int) -> None:
    """They take four calls each; diffusers counts calls instead, and begins inside of one."""
    ours = schedule(said(SD15, skip_prk_steps=False, set_alpha_to_one=True), 20, "pndm")
    assert first_call(SD15, ours, 20, strength) == begin
    assert distance(*led_back(ours, begin)) < 5e-5


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize(
    ("pipeline", "config", "name"),
    [
        ("StableDiffusionImg2ImgPipeline", SD15, "dpm++2m"),
        ("StableDiffusionImg2ImgPipeline", SD15, "pndm"),
        ("StableDiffusionImg2ImgPipeline", SD15, "heun"),
        ("StableDiffusion3Img2ImgPipeline", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "euler"),
    ],
)
def test_calls_at_every_strength_are_diffusers_own(pipeline: str, config: Config, name: str) -> None:
    """The number of calls and their timesteps, where a share of the steps isn't a whole number too: 0.58 * 50."""
    flow = "3" in pipeline
    for steps in (1, 2, 7, 10, 20, 50, 100):
        class_name = (FLOW_SCHEDULERS if flow else SCHEDULERS)[name].class_name
        scheduler = their_class(class_name).from_config(config)
        scheduler.set_timesteps(steps)
        one = types.SimpleNamespace(scheduler=scheduler)
        for strength in (0.05, 0.1, 0.29, 0.3, 0.58, 0.6, 0.7, 0.8, 0.999, 1.0):
            expected, _ = getattr(importlib.import_module("diffusers"), pipeline).get_timesteps(
                one, steps, strength, "cpu"
            )
            ours = schedule(config, steps, name)
            if not len(expected) or (steps * strength < 1 and not flow):
                with pytest.raises(RequestError, match="leaves no denoiser call"):
                    first_call(config, ours, steps, strength)
                continue
            made = ours.timesteps[first_call(config, ours, steps, strength) :]
            np.testing.assert_allclose(made, np.asarray(expected), rtol=2e-6)


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
def test_lcm_takes_a_share_of_its_own_timesteps(strength: float) -> None:
    reference = theirs(LCM, "lcm", 4)
    reference.set_timesteps(4, strength=strength)
    np.testing.assert_array_equal(schedule(LCM, 4, "lcm", strength=strength).timesteps, reference.timesteps.numpy())
    with pytest.raises(RequestError, match=r"strength of 0\.02 leaves 1, but 4 were requested. Use 1 to 1"):
        schedule(LCM, 4, "lcm", strength=0.02)


@pytest.mark.parametrize("name", ["lms", "pndm"])
def test_first_step_from_the_middle_is_of_first_order(name: str) -> None:
    # Here diffusers takes weights of an order that it has no history for.
    ours, plain = schedule(SD15, 10, name), schedule(SD15, 10, "euler" if name == "lms" else "ddim")
    sample, output = next(draws(1)), next(draws(2))
    index = 5 if name == "lms" else 4  # PNDM makes its second call twice
    mine = ours.step(output, 5, sample, no_noise)
    assert distance(mine, plain.step(output, index, sample, no_noise)) < TOLERANCE


def test_pndm_from_its_second_call_waits_for_the_third() -> None:
    ours = schedule(SD15, 10)
    sample = next(draws(1))
    assert ours.timesteps[1] == ours.timesteps[2]
    np.testing.assert_array_equal(ours.step(next(draws(2)), 1, sample, no_noise), sample)


@pytest.mark.parametrize(("name", "config"), [("heun", SDXL), ("dpm++sde", SDXL), ("pndm", PLAIN["pndm"])])
def test_second_half_of_a_step_cant_come_first(name: str, config: Config) -> None:
    sample = next(draws())
    with pytest.raises(RequestError, match="Start at"):
        schedule(config, 10, name).step(sample, 5, sample, no_noise)


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_schedules_share_no_state(name: str) -> None:
    def walk(seed: int) -> Iterator[tuple[Array, Array]]:
        source = draws(seed)
        return our_walk(schedule(SD15, 6, name), next(source), lambda: next(source))

    alone = list(walk(1))
    first, second = walk(1), walk(2)
    for _, sample in alone:
        np.testing.assert_array_equal(next(first)[1], sample)
        next(second)


@pytest.mark.parametrize(
    ("config", "name", "eta", "calls", "drawn"),
    [
        (SD15, "ddim", 0, 8, 0),
        (said(SD15, set_alpha_to_one=True), "ddim", 1, 8, 7),
        (SD15, "ddpm", 0, 8, 7),
        (said(SD15, variance_type="fixed_large"), "ddpm", 0, 8, 8),  # it ends at timestep 1, not 0
        (SD15, "pndm", 0, 9, 0),
        (said(SD15, skip_prk_steps=False), "pndm", 0, 17, 0),
        (SD15, "lms", 0, 8, 0),
        (SD15, "euler", 0, 8, 0),
        (SD15, "euler-ancestral", 0, 8, 7),
        (SD15, "heun", 0, 15, 0),
        (SD15, "dpm++2m", 0, 8, 0),
        (SD15, "dpm++2m-sde", 0, 8, 7),
        (said(PLAIN["dpm++2m"], final_sigmas_type="sigma_min"), "dpm++2m-sde", 0, 8, 8),
        (SD15, "dpm++sde", 0, 15, 14),
        (SD15, "unipc", 0, 8, 0),
        (SD15, "lcm", 0, 8, 7),
    ],
)
def test_calls_and_draws(config: Config, name: str, eta: float, calls: int, drawn: int) -> None:
    ours, source, count = schedule(config, 8, name, eta=eta or None), draws(), 0

    def noise() -> Array:
        nonlocal count
        count += 1
        return next(source)

    walked = list(our_walk(ours, next(source), noise))
    assert (len(ours.timesteps), len(walked), count) == (calls, calls, drawn)
    assert ours.timesteps.dtype == np.float32
    assert all(np.isfinite(sample).all() for _, sample in walked)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "unipc"])
@pytest.mark.parametrize("steps", [61, 103, 1000])
def test_trailing_has_as_many_timesteps_as_steps(name: str, steps: int) -> None:
    # diffusers makes 62 of 61, the last at timestep -1.
    timesteps = schedule(TURBO, steps, name).timesteps
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert timesteps[-1] >= 0
    assert all(before > after for before, after in pairwise(timesteps))


def test_config_is_left_as_it_was() -> None:
    config = said(SDXL)
    schedule(config, 4, "dpm++2m-karras")
    assert config == SDXL


def test_every_key_of_diffusers_is_known() -> None:
    known = set(INERT) | set(REFUSED) | KNOWN_KEYS
    for sampler in filter(lambda row: row.in_diffusers, (*SCHEDULERS.values(), *FLOW_SCHEDULERS.values())):
        assert set(inspect.signature(their_class(sampler.class_name).__init__).parameters) - {"self"} <= known


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base_image_seq_len": 256, "max_image_seq_len": 256}, ProfileError, "needs two different numbers of tokens"),
        ({"max_image_seq_len": 257, "max_shift": 10.0}, RequestError, "an image of 8,192 tokens a shift of inf"),
        ({"time_shift_type": "linear", "max_shift": 0.1}, RequestError, "an image of 8,192 tokens a shift of -0.3"),
    ],
)
def test_a_size_without_a_shift_is_refused(change, error, message) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, **change}
    with pytest.raises(error, match=message):
        schedule(config, 4, tokens=8192)


def test_keys_that_nobody_set_keep_the_defaults() -> None:
    config = said(SDXL, use_karras_sigmas=True, _use_default_values=["use_karras_sigmas"])
    np.testing.assert_array_equal(schedule(config, 5).timesteps, schedule(SDXL, 5).timesteps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "HeunDiscreteScheduler", "timestep_type": "continuous", "use_karras_sigmas": True},
            "HeunDiscreteScheduler does not support. Choose another scheduler, such as 'euler-karras'",
        ),
        ({"timestep_spaceing": "leading"}, "unknown key, 'timestep_spaceing'. Did you mean 'timestep_spacing'"),
        ({"sharpness": 3.0}, "unknown key, 'sharpness'. .*Known: algorithm_type, "),
        ({"_class_name": "EulerDiscretScheduler"}, "Did you mean 'EulerDiscreteScheduler'"),
        ({"_class_name": "IPNDMScheduler"}, "Known: DDIMScheduler, .*by name: ddim, ddpm"),
        ({"_class_name": None}, "unknown class, None"),
        ({"thresholding": True}, "thresholding = True, which is not supported"),
        ({"use_flow_sigmas": True}, "flow-matching"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: input should be 'linear', 'scaled_linear'"),
        ({"prediction_type": "flow_prediction"}, "Known: DPMSolverMultistepScheduler, FlowMatchEulerDiscrete"),
        ({"prediction_type": "flow"}, "prediction_type: input should be 'epsilon'"),
        ({"timestep_spacing": "even"}, "timestep_spacing: input should be"),
        ({"steps_offset": "1"}, "steps_offset: input should be a valid integer"),
        ({"sigma_min": 0.0}, "sigma_min: 0.0 should be greater than 0"),
        ({"sigma_min": 9.0, "sigma_max": 2.0, "use_karras_sigmas": True}, "from 2 down to 9"),
        ({"sigma_min": 0.01, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, "down to 0.01, below"),
        ({"trained_betas": [0.1, 0.2]}, "has 2 trained_betas for 1000 timesteps"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of them is possible"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type: input should be"),
        ({"_class_name": "HeunDiscreteScheduler", "rescale_betas_zero_snr": True}, "HeunDiscrete.* does not support"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "sample"}, "not support models of"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "no signal"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 2000}, "original_inference_steps = 2000"),
        ({"_class_name": "LMSDiscreteScheduler", "use_karras_sigmas": True, "sigma_max": 9.0}, "by sigma_min"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "orders 1 to 3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}, "variance_type: input should be"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "orders 1 and 2",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0 = false"),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False}, "lower_order_final = false"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_p": "DDIMScheduler"}, "its own predictor"),
    ],
)  # fmt: skip
def test_config_that_cant_be_honoured(change: Config, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        schedule({**SDXL, **change}, 10)


@pytest.mark.parametrize(
    ("steps", "name", "eta", "message"),
    [
        (0, None, 0, "Use 1 to 1000"),
        (-3, None, 0, "Use 1 to 1000"),
        (1001, None, 0, "Use 1 to 1000"),
        (60, "lcm", 0, "distilled on 50 steps"),
        (3, "pndm", 0, "at least 4"),
        (1000, "ddim", 0, "start at timestep 1000"),
        (1000, "dpm++2m", 0, "too many"),
        (10, "eulr", 0, "'eulr' is not a known scheduler. Did you mean 'euler'.*Known: ddim, ddpm"),
        (10, "dpm+2m-karras", 0, "Did you mean 'dpm\\+\\+2m'"),
        (
            10,
            "euler-caras",
            0,
            "Known: ddim, .*-karras, -exponential, -beta, -lu, -normal, -simple, -sgm-uniform, -ays",
        ),
        (10, "ddim-karras", 0, "'ddim' does not support -karras. Leave it out, or use one of: ipndm, lms, euler, heun"),
        (10, "euler-lu", 0, "does not support -lu"),
        (10, "ddim", 1.5, "Use 0 to 1"),
        (10, "euler", 0.5, "has no eta, but 0.5 was given. Leave it out, or use one of: ddim, tcd"),
    ],
)
def test_request_that_cant_be_drawn(steps: int, name: str | None, eta: float, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        schedule(said(SDXL, skip_prk_steps=False), steps, name, eta=eta or None)


def test_facts_of_the_model_outlive_a_change_of_scheduler() -> None:
    continuous = said(SDXL, timestep_type="continuous", prediction_type="v_prediction", sigma_max=120.0)
    with pytest.raises(LatentcError, match="trained with timestep_type = 'continuous'"):
        schedule(continuous, 10, "dpm++2m")
    with pytest.raises(LatentcError, match="trained with rescale_betas_zero_snr = True"):
        schedule(ZERO_SNR, 10, "pndm")


def test_needs_neither_torch_nor_diffusers() -> None:
    code = f"""
import sys
for name in ("torch", "diffusers", "scipy", "transformers"):
    sys.modules[name] = None
from latentc.sampling.schedulers import SCHEDULERS, schedule
import numpy as np
sample = np.ones({SHAPE}, np.float32)
for name in SCHEDULERS:
    walk = schedule({SD15!r}, 4, name)
    assert np.isfinite(walk.step(walk.scale(sample, 0), 0, sample, lambda: sample)).all()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=600)


def test_names_of_a_model():
    assert set(names(SD15)) == {name for name in NAMES if not name.endswith("-ays")}
    assert set(names(SD15, aligned=(14.6, 1.2, 0.03))) == NAMES
    flow = names({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert {parted(name)[0] for name in flow} == set(FLOW_SCHEDULERS)
    assert list(flow) == sorted(flow)


def test_a_plain_name_has_no_ramp_and_a_ramp_is_asked_for():
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "beta_schedule": "scaled_linear"}
    own, plain, karras = (schedule(config, 5, name).timesteps for name in (None, "dpm++2m", "dpm++2m-karras"))
    assert np.array_equal(own, karras)
    assert not np.array_equal(plain, karras)
