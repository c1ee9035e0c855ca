"""DPM2, DPM++ 2S and 3M SDE, DEIS, SA-Solver, IPNDM and TCD, against diffusers in float64, or against k-diffusion's
formulas where diffusers has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentc.core.errors import ProfileError, RequestError
from latentc.sampling.schedulers import first_call, schedule
from latentc.sampling.schedulers.integrals import weights
from latentc.sampling.schedulers.ipndm import Ipndm
from latentc.sampling.schedulers.settings import Settings

from .walks import (
    LATENT,
    LCM,
    SD15,
    SD21,
    SDXL,
    SHAPE,
    TURBO,
    ZERO_SNR,
    Array,
    Config,
    denoiser,
    distance,
    doubled,
    draws,
    no_noise,
    our_walk,
    said,
    their_walk,
    theirs,
)  # fmt: skip

Exact = NDArray[np.float64]

TOLERANCE = 3e-6
"""Of the largest value: what float32 rounds in up to 99 calls."""
FEW, COARSE = 3, 2e-5
"""Steps, and what is rounded where so few span all noise levels: a difference is multiplied by up to 500."""

DEIS: Config = {"_class_name": "DEISMultistepScheduler", **LATENT}
SA: Config = {"_class_name": "SASolverScheduler", **LATENT}
TCD: Config = {"_class_name": "TCDScheduler", **LATENT, "steps_offset": 1, "timestep_spacing": "trailing"}
COSINE: Config = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}

CASES: dict[str, tuple[Config, str | None]] = {
    **{f"dpm2{ramp}": (SDXL, f"dpm2{ramp}") for ramp in ("", "-karras", "-exponential", "-beta")},
    "dpm2-sd15": (SD15, "dpm2"),
    "dpm2-v": (SD21, "dpm2"),
    "dpm2-turbo": (TURBO, "dpm2-karras"),
    "dpm2-own": ({"_class_name": "KDPM2DiscreteScheduler", "use_karras_sigmas": True}, None),
    "dpm2-bounds": (said(SDXL, sigma_min=0.05, sigma_max=12.0), "dpm2-karras"),
    **{f"dpm2-ancestral{ramp}": (SDXL, f"dpm2-ancestral{ramp}") for ramp in ("", "-karras", "-exponential", "-beta")},
    "dpm2-ancestral-sd15": (SD15, "dpm2-ancestral"),
    "dpm2-ancestral-v": (SD21, "dpm2-ancestral-karras"),
    "dpm2-ancestral-turbo": (TURBO, "dpm2-ancestral"),
    "dpm2-ancestral-own": ({"_class_name": "KDPM2AncestralDiscreteScheduler", "timestep_spacing": "trailing"}, None),
    **{f"deis{ramp}": (SDXL, f"deis{ramp}") for ramp in ("", "-karras", "-exponential", "-beta")},
    "deis-sd15": (SD15, "deis"),
    "deis-v": (SD21, "deis-karras"),
    "deis-turbo": (TURBO, "deis"),
    "deis-own": (DEIS, None),
    "deis-1": (said(DEIS, solver_order=1), None),
    "deis-3": (said(DEIS, solver_order=3), None),
    "deis-3-sample": (said(DEIS, solver_order=3, prediction_type="sample", lower_order_final=False), None),
    "deis-3-v-karras": (said(DEIS, solver_order=3, prediction_type="v_prediction", use_karras_sigmas=True), None),
    "deis-cosine": (said(DEIS, beta_schedule="squaredcos_cap_v2", use_exponential_sigmas=True), None),
    "deis-of-dpm": (said(DEIS, algorithm_type="dpmsolver++", solver_type="midpoint"), None),
    **{f"sa{ramp}": (SDXL, f"sa-solver{ramp}") for ramp in ("", "-karras", "-exponential", "-beta")},
    "sa-sd15": (SD15, "sa-solver"),
    "sa-v": (SD21, "sa-solver"),
    "sa-turbo": (TURBO, "sa-solver"),
    "sa-own": (SA, None),
    "sa-sample": (said(SA, prediction_type="sample", timestep_spacing="trailing"), None),
    "sa-3-4": (said(SA, predictor_order=3, corrector_order=4), None),
    "sa-4-1": (said(SA, predictor_order=4, corrector_order=1, use_karras_sigmas=True), None),
    "sa-1-2": (said(SA, predictor_order=1, corrector_order=2, lower_order_final=False), None),
    "sa-noise": (said(SA, algorithm_type="noise_prediction"), None),
    "sa-noise-3-v": (said(SA, algorithm_type="noise_prediction", predictor_order=3, corrector_order=3,
                          prediction_type="v_prediction"), None),
    "sa-noise-sample": (said(SA, algorithm_type="noise_prediction", prediction_type="sample",
                             timestep_spacing="leading", steps_offset=1), None),
    "sa-cosine": (said(SA, **COSINE), None),
    "tcd-own": (TCD, None),
    "tcd-sd15": (SD15, "tcd"),
    "tcd-lcm": (LCM, "tcd"),
    "tcd-v": (said(SD21, original_inference_steps=100), "tcd"),
    "tcd-zero-snr": (ZERO_SNR, "tcd"),
    "tcd-sample": (said(TCD, prediction_type="sample", clip_sample=True, clip_sample_range=0.5), None),
}  # fmt: skip


def worst(
    config: Config, name: str | None, steps: int, monkeypatch: pytest.MonkeyPatch, begin: int = 0, eta: float = 0
) -> float:
    """The largest difference over the calls, with timesteps and the initial scale as in diffusers."""
    reference = doubled(theirs(config, name, steps, begin))
    ours = schedule(config, steps, name, eta=eta or None)
    np.testing.assert_allclose(ours.timesteps, reference.timesteps.numpy(), rtol=5e-6, atol=5e-6)
    assert ours.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)
    start = (next(draws(5)) * ours.init_noise_sigma).astype(np.float32)
    source = draws()
    pairs = zip(
        our_walk(ours, start, lambda: next(source), begin),
        their_walk(reference, start.astype(np.float64), eta, monkeypatch, begin),
        strict=True,
    )
    return max(
        max(distance(fed, their_fed), distance(sample, their_sample))
        for (fed, sample), (their_fed, their_sample) in pairs
    )


OFTEN = ("dpm2", "dpm2-ancestral", "deis-3", "sa-own", "sa-3-4", "tcd-own")
"""Cases at many numbers of steps."""


@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, steps) for case in CASES for steps in ((1, 2, 3, 10, 20, 50) if case in OFTEN else (2, 12))],
)
def test_agrees_with_diffusers(case: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name = CASES[case]
    assert worst(config, name, steps, monkeypatch) < (COARSE if steps <= FEW or case == "deis-3-sample" else TOLERANCE)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("case", ["tcd-own", "tcd-v", "tcd-zero-snr", "tcd-sample"])
def test_the_gamma_of_tcd_is_diffusers_eta(case: str, steps: int, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name = CASES[case]
    assert worst(config, name, steps, monkeypatch, eta=eta) < TOLERANCE


@pytest.mark.parametrize("begin", [2, 6, 16])
@pytest.mark.parametrize("case", ["dpm2", "dpm2-ancestral-karras", "deis-3", "deis-v", "sa-own", "sa-3-4", "tcd-own"])
def test_agrees_with_diffusers_from_the_middle(case: str, begin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name = CASES[case]
    assert worst(config, name, 20, monkeypatch, begin) < TOLERANCE


@pytest.mark.parametrize(
    ("nodes", "width"), [([0.0], 0.3), ([-0.5, 0.0], 1e-4), ([-1.1, -0.2, 0.0], 2.5), ([-3, -2, 0, 5], 5)]
)
@pytest.mark.parametrize("rate", [-1.0, 1.0, 2.0])
def test_weights_are_the_integrals(nodes: list[float], width: float, rate: float) -> None:
    """By Gauss and Legendre's rule of 60 points."""
    places, shares = np.polynomial.legendre.leggauss(60)
    places, shares = (places + 1) * width / 2, shares * width / 2
    for here, found in enumerate(weights(nodes, width, rate)):
        others = [node for index, node in enumerate(nodes) if index != here]
        polynomial = math.prod([(places - other) / (nodes[here] - other) for other in others], start=np.ones(60))
        assert found == pytest.approx(float(shares @ (np.exp(rate * places) * polynomial)), rel=1e-10)


# k-diffusion's samplers of the same name (crowsonkb/k-diffusion, `sampling.py`), and `sample_ipndm` of ComfyUI's copy,
# written again in float64: `x` is an original plus noise of a level, and `model(x, call)` returns the original.
Model = Callable[[Exact, int], Exact]


def dpmpp_2s_ancestral(model: Model, x: Exact, sigmas: list[float], noise: Iterator[Array]) -> Exact:
    for i, (before, after) in enumerate(pairwise(sigmas)):
        denoised = model(x, 2 * i)
        if after == 0:
            return denoised
        up = min(after, math.sqrt(after**2 * (before**2 - after**2) / before**2))
        down = math.sqrt(after**2 - up**2)
        t, t_next = -math.log(before), -math.log(down)
        h = t_next - t
        middle = t + h / 2
        x_2 = math.exp(t - middle) * x - math.expm1(-h / 2) * denoised
        denoised_2 = model(x_2, 2 * i + 1)
        x = math.exp(t - t_next) * x - math.expm1(-h) * denoised_2 + up * next(noise)
    return x


def dpmpp_3m_sde(model: Model, x: Exact, sigmas: list[float], noise: Iterator[Array]) -> Exact:
    known: list[Exact] = []
    widths: list[float] = []
    for i, (before, after) in enumerate(pairwise(sigmas)):
        known = [model(x, i), *known][:3]
        if after == 0:
            return known[0]
        h = math.log(before / after)
        x = math.exp(-2 * h) * x - math.expm1(-2 * h) * known[0]
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        if len(known) == 3:
            r0, r1 = widths[0] / h, widths[1] / h
            d1_0, d1_1 = (known[0] - known[1]) / r0, (known[1] - known[2]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / (2 * h) - 0.5) * d2
        elif len(known) == 2:
            x = x + phi_2 * (known[0] - known[1]) / (widths[0] / h)
        x = x + next(noise) * after * math.sqrt(-math.expm1(-2 * h))
        widths = [h, *widths][:2]
    return x


def ipndm(model: Model, x: Exact, sigmas: list[float], _noise: Iterator[Array]) -> Exact:
    d: list[Exact] = []
    for i, (before, after) in enumerate(pairwise(sigmas)):
        denoised = model(x, i)
        if after == 0:
            return denoised
        d = [(x - denoised) / before, *d][:4]
        match d:
            case [a]:
                slope = a
            case [a, b]:
                slope = (3 * a - b) / 2
            case [a, b, c]:
                slope = (23 * a - 16 * b + 5 * c) / 12
            case _:
                slope = (55 * d[0] - 59 * d[1] + 37 * d[2] - 9 * d[3]) / 24
        x = x + (after - before) * slope
    return x


ORACLES = {"dpm++2s-ancestral": dpmpp_2s_ancestral, "dpm++3m-sde": dpmpp_3m_sde, "ipndm": ipndm}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("suffix", ["", "-karras"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("name", ORACLES)
def test_agrees_with_k_diffusion(name: str, steps: int, suffix: str, kind: str) -> None:
    config = said(SDXL, prediction_type=kind)
    ours = schedule(config, steps, name + suffix)
    levels = [ours.level(index) for index in range(len(ours.timesteps) + 1)]
    scales = [kept if name == "dpm++3m-sde" else 1.0 for kept, _ in levels]  # which keeps its samples at unit variance
    sigmas = [added / kept for kept, added in levels]
    ends = sigmas[:: 2 if name == "dpm++2s-ancestral" else 1]
    if ends[-1] != 0:
        ends.append(0.0)
    start, source = next(draws(5)).astype(np.float64) * sigmas[0], draws()

    def model(x: Exact, call: int) -> Exact:
        sigma = sigmas[call]
        output = denoiser(x / math.sqrt(sigma**2 + 1), float(ours.timesteps[call]))
        return (
            x - sigma * output if kind == "epsilon" else x / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * output
        )

    expected = ORACLES[name](model, start, ends, source)
    source = draws()
    *_, (_, made) = our_walk(ours, (start * scales[0]).astype(np.float32), lambda: next(source))
    assert distance(made, expected) < (COARSE if steps <= FEW else TOLERANCE)


@pytest.mark.parametrize("steps", [3, 10, 20])
def test_ipndm_averages_as_the_class_of_diffusers(steps: int) -> None:
    """`IPNDMScheduler` has its own schedule, from no signal at all: from its second call, on its noise levels."""
    import diffusers

    reference = diffusers.IPNDMScheduler()
    reference.set_timesteps(steps)
    reference.set_begin_index(1)
    alphas, betas = reference.alphas.double().numpy(), reference.betas.double().numpy()
    reference.alphas, reference.betas = reference.alphas.double(), reference.betas.double()
    sigmas = (betas[1:] / alphas[1:]).tolist()
    config = Settings(prediction_type="v_prediction")
    ours = Ipndm(reference.timesteps[1:].numpy(), sigmas, 1.0, config)
    sample = next(draws(5)).astype(np.float64)
    mine = (sample / alphas[1]).astype(np.float32)
    for index, timestep in enumerate(reference.timesteps[1:-1]):  # the last is theirs alone: ours ends at the original
        output = denoiser(sample, float(timestep) * 1000)
        mine = ours.step(denoiser(ours.scale(mine, index), float(timestep) * 1000), index, mine, no_noise)
        sample = reference.step(torch.from_numpy(output), timestep, torch.from_numpy(sample)).prev_sample.numpy()
        assert distance((mine * alphas[index + 2]).astype(np.float32), sample) < TOLERANCE


# Where the walk ends: DEIS and SA-Solver at the lowest noise level, TCD at timestep 0.
ENDS = {"dpm2": 0, "ipndm": 0, "deis": 1, "sa-solver": 1, "tcd": 1}


@pytest.mark.parametrize("strength", [0.15, 0.3, 0.6, 0.85, 0.95, 1.0])
@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("name", ENDS)
def test_the_exact_noise_leads_back_to_the_original(name: str, steps: int, strength: float) -> None:
    config = {**SD15, "original_inference_steps": 50}
    ours: Any = schedule(config, steps, name)
    if name == "sa-solver":  # without noise, it is an ODE solver
        ours = replace(ours, timesteps=ours.timesteps + 1000)
    begin = first_call(config, ours, steps, strength)
    lowest = schedule(said(SD15, timestep_spacing="leading", steps_offset=0), 1, "ddim").level(0)
    kept, added = lowest if ENDS[name] else (1.0, 0.0)
    original, noise = next(draws(1)), next(draws(2))
    before, level = ours.level(begin)
    sample = (before * original + np.float32(level) * noise).astype(np.float32)
    for index in range(begin, len(ours.timesteps)):
        sample = ours.step(noise, index, sample, lambda: noise)
    assert distance(sample, (kept * original + added * noise).astype(np.float32)) < 5e-5


def test_dpm2_counts_steps_of_two_calls() -> None:
    for name in ("dpm2", "dpm2-ancestral", "dpm++2s-ancestral"):
        assert first_call(SD15, schedule(SD15, 10, name), 10, 0.7) == 6
        with pytest.raises(RequestError, match="second of its step. Start at an even call"):
            schedule(SD15, 10, name).step(next(draws()), 5, next(draws()), no_noise)


@pytest.mark.parametrize(
    ("name", "eta", "calls", "drawn"),
    [
        ("dpm2", None, 15, 0),
        ("dpm2-ancestral", None, 15, 7),
        ("dpm++2s-ancestral", None, 15, 7),
        ("dpm++3m-sde", None, 8, 7),
        ("deis", None, 8, 0),
        ("sa-solver", None, 8, 8),  # as diffusers draws
        ("ipndm", None, 8, 0),
        ("tcd", None, 8, 0),
        ("tcd", 0.3, 8, 7),
    ],
)
def test_calls_and_draws(name: str, eta: float | None, calls: int, drawn: int) -> None:
    ours, count = schedule(SD15, 8, name, eta=eta), 0

    def noise() -> Array:
        nonlocal count
        count += 1
        return np.ones(SHAPE, np.float32)

    walked = list(our_walk(ours, next(draws()), noise))
    assert (len(ours.timesteps), len(walked), count) == (calls, calls, drawn)
    assert all(np.isfinite(sample).all() for _, sample in walked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({**DEIS, "solver_order": 4}, "DEIS has orders 1 to 3"),
        ({**SA, "predictor_order": 5}, "predictor_order = 5, but SA-Solver has orders 1 to 4"),
        ({**SA, "algorithm_type": "dpmsolver++"}, "SA-Solver has 'data_prediction' and 'noise_prediction'"),
        ({**SA, "tau_func": "constant"}, "only supported with diffusers' default"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "data_prediction"}, "which is SA-Solver's"),
        ({"_class_name": "KDPM2DiscreteScheduler", "prediction_type": "sample"}, "does not support models of"),
        ({"_class_name": "KDPM2DiscreteScheduler", "rescale_betas_zero_snr": True}, "does not support"),
        ({"_class_name": "TCDScheduler", "original_inference_steps": 2000}, "original_inference_steps = 2000"),
        ({"_class_name": "sample_ipndm"}, "unknown class, 'sample_ipndm'"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "third of diffusers 0.42.1 has a wrong sign.*'dpm\\+\\+3m-sde'",
        ),
    ],
)
def test_config_that_cant_be_honoured(change: Config, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        schedule(change, 10)


def test_the_third_order_of_dpm_3m_sde_converges() -> None:
    """Twice the steps of the SDE, without its noise, divide the error by about 2 ** 3."""

    # The original is a smooth function of the noise level, so that its mean has a known limit.
    def walked(steps: int) -> float:
        sigmas = [*np.geomspace(10, 0.1, steps + 1).tolist(), 0.0]
        ours = schedule(SD15, len(sigmas) - 1, "dpm++3m-sde", sigmas=sigmas)
        sample = np.ones(SHAPE, np.float32)
        for index in range(steps):
            kept, added = ours.level(index)
            original = np.full(SHAPE, math.cos(added / kept), np.float32)
            output = (sample - np.float32(kept) * original) / np.float32(added)
            sample = ours.step(output, index, sample, lambda: np.zeros(SHAPE, np.float32))
        return float(sample.flat[0])

    limit = walked(640)
    errors = [abs(walked(steps) - limit) for steps in (10, 20, 40)]
    assert errors[0] / errors[1] > 5
    assert errors[1] / errors[2] > 5
