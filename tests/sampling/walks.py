"""Walks of our schedules and of diffusers', with the same denoiser and the same noise."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentc.sampling.schedulers import SCHEDULERS, Schedule
from latentc.sampling.schedulers.rows import parted
from latentc.sampling.schedulers.settings import RAMPS

Array = NDArray[np.float32]
Config = dict[str, object]

SHAPE = (1, 4, 6, 6)
MIX = np.random.default_rng(7).normal(size=(4, 4)).astype(np.float32) / 2

LATENT: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15: Config = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    **LATENT,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SD21: Config = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    **LATENT,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SDXL: Config = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    **LATENT,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
TURBO: Config = {
    **SDXL,
    "timestep_spacing": "trailing",
    "timestep_type": "discrete",
    "sigma_max": None,
    "sigma_min": None,
}
LCM: Config = {
    **SD15,
    "_class_name": "LCMScheduler",
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}
ZERO_SNR: Config = {
    **SD21,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
PLAIN: dict[str, Config] = {name: {"_class_name": sampler.class_name} for name, sampler in SCHEDULERS.items()}


def said(base: Mapping[str, object], **more: object) -> Config:
    return {**base, **more}


def denoiser(sample: Array, timestep: float) -> Array:
    """Answer as a denoiser might: bounded, mixing channels and neighbours, different at each timestep."""
    mixed = np.einsum("oc,bchw->bohw", MIX.astype(sample.dtype), sample) + 0.3 * np.roll(sample, 1, axis=-1)
    return np.tanh(mixed + np.float32(timestep / 1000)).astype(sample.dtype)


def draws(seed: int = 3) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.standard_normal(SHAPE, dtype=np.float32)


class BrownianPath:
    """What stands for torchsde: the path over a step's noise levels, from one draw per increment."""

    def __init__(self, *_: object) -> None:
        self.points: dict[float, Array] = {}

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        high, low = float(before), float(after)
        if high not in self.points:
            self.points = {high: np.zeros(SHAPE, np.float32)}
        reached = min(self.points)
        self.points[low] = self.points[reached] + np.sqrt(reached - low) * next(BrownianPath.source)
        increment = self.points[low] - self.points[high]
        return torch.from_numpy((increment / np.sqrt(high - low)).astype(np.float32))

    source: Iterator[Array] = draws()


def their_class(class_name: str) -> Any:
    if class_name != "DPMSolverSDEScheduler":
        return getattr(importlib.import_module("diffusers"), class_name)
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    module: Any = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    module.BrownianTreeNoiseSampler = BrownianPath
    return module.DPMSolverSDEScheduler


def theirs(config: Config, name: str | None, steps: int, begin: int = 0) -> Any:
    """Return diffusers' scheduler for the same config and name, at its first step."""
    asks: Config = {}
    class_name = str(config["_class_name"])
    if name is not None:
        base, ramp = parted(name)
        class_name = SCHEDULERS[base].class_name
        asks = {**SCHEDULERS[base].asks, **({RAMPS[ramp]: True} if ramp else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own: of numpy 2, of deprecated algorithm types
        scheduler = their_class(class_name).from_config(config, **asks)
        scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler


def their_walk(
    scheduler: Any, sample: Array, eta: float, monkeypatch: pytest.MonkeyPatch, begin: int = 0
) -> Iterator[tuple[Array, Array]]:
    """Yield what the denoiser is fed and the sample after each call."""
    source = draws()
    monkeypatch.setattr(BrownianPath, "source", source)

    def randn(*_: object, **__: object) -> torch.Tensor:
        return torch.from_numpy(next(source).astype(sample.dtype))

    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", randn)
    more = {"eta": eta} if "eta" in inspect.signature(scheduler.step).parameters else {}  # as pipelines pass it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scipy, on LMS's float32 integrand
        for timestep in scheduler.timesteps[begin:]:
            fed = scheduler.scale_model_input(torch.from_numpy(sample), timestep).numpy()
            output = torch.from_numpy(denoiser(fed, float(np.float32(timestep))))
            sample = scheduler.step(output, timestep, torch.from_numpy(sample), **more).prev_sample.numpy()
            yield fed, sample


def our_walk(
    ours: Schedule, sample: Array, noise: Callable[[], Array], begin: int = 0
) -> Iterator[tuple[Array, Array]]:
    for index, timestep in list(enumerate(ours.timesteps))[begin:]:
        fed = ours.scale(sample, index)
        sample = ours.step(denoiser(fed, float(timestep)), index, sample, noise)
        yield fed, sample


def distance(mine: Array, other: Array) -> float:
    assert mine.dtype == np.float32
    assert mine.shape == other.shape
    return float(np.max(np.abs(mine - other)) / np.max(np.abs(other)))


def no_noise() -> Array:
    raise AssertionError("no noise was expected to be drawn")


def led_back(ours: Schedule, begin: int) -> tuple[Array, Array]:
    """Where a walk from the middle ends with a denoiser that knows the noise, and the original."""
    original, noise = next(draws(1)), next(draws(2))
    kept, added = ours.level(begin)
    sample = (kept * original + np.float32(added) * noise).astype(np.float32)
    for index in range(begin, len(ours.timesteps)):
        sample = ours.step(noise, index, sample, no_noise)
    return sample, original


def doubled(scheduler: Any) -> Any:
    """Diffusers' scheduler with its tables in float64, so that it steps without rounding."""
    for key, value in list(vars(scheduler).items()):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and key != "timesteps":
            setattr(scheduler, key, value.double())
    if hasattr(scheduler, "sigmas_down"):  # differences of squares: in float32, the lowest have two digits
        sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2]])
        following = torch.cat([sigmas[1:], torch.zeros(1)])
        up = following * (1 - (following / sigmas) ** 2).clamp(min=0) ** 0.5
        down = following**2 / sigmas
        middle = (sigmas * down) ** 0.5
        middle[-2:] = 0
        for key, value in {"up": up, "down": down.nan_to_num(), "interpol": middle}.items():
            setattr(scheduler, f"sigmas_{key}", torch.cat([value[:1], value[1:].repeat_interleave(2), value[-1:]]))
        levels = np.asarray(scheduler.log_sigmas)
        scheduler.timesteps[1::2] = torch.tensor(
            [float(scheduler._sigma_to_t(one.numpy(), levels)) for one in middle[:-2]]
        )
    return scheduler
