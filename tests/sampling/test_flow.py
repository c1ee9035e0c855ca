"""Whole walks of flow matching against diffusers in float64, with the noise levels that a size gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from latentc.sampling.schedulers import FLOW_SCHEDULERS, names, schedule
from latentc.sampling.schedulers.rows import parted
from latentc.sampling.schedulers.settings import RAMPS

from .walks import Config, distance, doubled, draws, our_walk, their_class, their_walk

EULER: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DYNAMIC: Config = {**EULER, "use_dynamic_shifting": True}
SOLVER: Config = {
    "_class_name": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
FLOWS: dict[str, tuple[Config, int]] = {
    "of-a-solver": ({**SOLVER, "flow_shift": 3.0}, 4096),
    "of-a-solver-dynamic": ({**SOLVER, "flow_shift": 3.0, "use_dynamic_shifting": True}, 1024),
    "shift-1": ({**EULER, "shift": 1.0}, 4096),
    "shift-3": ({**EULER, "shift": 3.0}, 4096),
    **{
        f"{kind}-{tokens}": ({**DYNAMIC, "shift": 3.0, "time_shift_type": kind}, tokens)
        for kind in ("exponential", "linear")
        for tokens in (256, 1024, 4096)
    },
}
TOLERANCE = 1e-6


def theirs(config: Config, name: str, steps: int, tokens: int) -> Any:
    base, ramp = parted(name)
    row, shift, mu = FLOW_SCHEDULERS[base], config.get("shift", config.get("flow_shift")), calculate_shift(tokens)
    given = {"mu": mu} if "use_dynamic_shifting" in config else {}
    if base != "euler" and config.get("time_shift_type") == "linear":  # theirs has it in Euler's method alone
        shift, given, config = mu, {}, EULER
    own = {"shift" if base == "euler" else "flow_shift": shift, **({RAMPS[ramp]: True} if ramp else {})}
    scheduler = their_class(row.class_name).from_config(config, **row.asks, **own)
    scheduler.set_timesteps(steps, **given)
    scheduler.set_begin_index(0)
    return doubled(scheduler)


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("name", names(EULER))
@pytest.mark.parametrize("case", FLOWS)
def test_whole_walks_are_diffusers_own(case: str, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tokens = FLOWS[case]
    reference = theirs(config, name, steps, tokens)
    if "euler" in name:  # theirs doesn't scale
        monkeypatch.setattr(type(reference), "scale_model_input", lambda _, sample, __: sample, raising=False)
    ours = schedule(config, steps, name, tokens=tokens)
    np.testing.assert_allclose(ours.timesteps, reference.timesteps.numpy(), rtol=1e-6)
    start, source = next(draws(5)), draws()
    pairs = zip(
        our_walk(ours, start, lambda: next(source)),
        their_walk(reference, start.astype(np.float64), 0, monkeypatch),
        strict=True,
    )
    assert max(distance(sample, their_sample) for (_, sample), (_, their_sample) in pairs) < TOLERANCE
