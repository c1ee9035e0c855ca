"""Noise schedulers in numpy: from a checkpoint's scheduler config to the steps of a request.

    schedule(config, steps)                       the checkpoint's own
    schedule(config, steps, "dpm++2m-karras")     another, on the same training schedule

Each matches diffusers' class of the same name step by step: for the same denoiser outputs and the same
noise, the samples agree up to float32 rounding.

    settings.py    the configuration, checked           betas.py      the training schedule
    spacing.py     which timesteps the steps use         sigmas.py     noise levels and their ramps
    prediction.py  epsilon, velocity, original           the others    one family of algorithms each
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ...core.errors import ProfileError, RequestError
from ...core.record import suggest
from .ddim import ddim
from .ddpm import ddpm
from .dpmsde import DpmSde, dpm_sde
from .dpmsolver import dpm_solver
from .euler import euler, euler_ancestral
from .flow import FLOW, flow_euler, shift_at
from .heun import Heun, heun
from .lcm import lcm
from .lms import lms
from .names import elsewhere, spelled
from .pndm import RUNGE_KUTTA_STEPS, Pndm, pndm
from .protocol import Noise, Schedule
from .settings import CLIP, RAMPS, SHIFTS, SIGMAS, SPACING, TRAINING, ZERO_SNR, Sampler, Settings, settings
from .unipc import unipc

__all__ = [
    "FLOW_SCHEDULERS",
    "KNOWN_KEYS",
    "NAMES",
    "NEAREST",
    "SCHEDULERS",
    "Noise",
    "Sampler",
    "Schedule",
    "check_name",
    "few_steps",
    "first_call",
    "named",
    "samplers",
    "schedule",
    "understood",
]

_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_DPM_SOLVER = (
    TRAINING | SPACING | SIGMAS | ZERO_SNR
    | {"solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"}
    | {"use_lu_lambdas", "lambda_min_clipped", "final_sigmas_type", "variance_type"}
)  # fmt: skip

SCHEDULERS: dict[str, Sampler] = {
    "ddim": Sampler(
        "DDIMScheduler",
        ddim,
        TRAINING | SPACING | ZERO_SNR | CLIP | {"set_alpha_to_one"},
        {"timestep_spacing": "leading"},
        clips=True,
    ),
    "ddpm": Sampler(
        "DDPMScheduler",
        ddpm,
        TRAINING | SPACING | ZERO_SNR | CLIP | {"variance_type"},
        {"timestep_spacing": "leading", "variance_type": "fixed_small"},
        clips=True,
    ),
    "pndm": Sampler(
        "PNDMScheduler",
        pndm,
        TRAINING | SPACING | {"skip_prk_steps", "set_alpha_to_one"},
        {"timestep_spacing": "leading", "set_alpha_to_one": False},
        predictions=("epsilon", "v_prediction"),
    ),
    "lms": Sampler("LMSDiscreteScheduler", lms, TRAINING | SPACING | SIGMAS),
    "euler": Sampler(
        "EulerDiscreteScheduler",
        euler,
        TRAINING | SPACING | SIGMAS | ZERO_SNR | {"interpolation_type", "timestep_type", "final_sigmas_type"},
    ),
    "euler-ancestral": Sampler(
        "EulerAncestralDiscreteScheduler",
        euler_ancestral,
        TRAINING | SPACING | ZERO_SNR,
        predictions=("epsilon", "v_prediction"),
    ),
    "heun": Sampler("HeunDiscreteScheduler", heun, TRAINING | SPACING | SIGMAS | CLIP, _LATENT_BETAS),
    "dpm++2m": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _DPM_SOLVER,
        asks={"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "dpm++2m-sde": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _DPM_SOLVER,
        asks={"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ),
    "dpm++sde": Sampler(
        "DPMSolverSDEScheduler",
        dpm_sde,
        TRAINING | SPACING | SIGMAS,
        _LATENT_BETAS,
        predictions=("epsilon", "v_prediction"),
    ),
    "unipc": Sampler(
        "UniPCMultistepScheduler",
        unipc,
        TRAINING | SPACING | SIGMAS | ZERO_SNR
        | {"solver_order", "predict_x0", "solver_type", "lower_order_final", "disable_corrector", "final_sigmas_type"},
    ),
    # diffusers' LCM has keys for spacing and for the last alpha but never reads them: its
    # timesteps are those that the model was distilled on.
    "lcm": Sampler(
        "LCMScheduler",
        lcm,
        TRAINING | ZERO_SNR | CLIP | {"original_inference_steps", "timestep_scaling"},
        {**_LATENT_BETAS, "beta_schedule": "scaled_linear"},
    ),
}  # fmt: skip
"""Samplers by short name, each of which may be followed by a ramp: `dpm++2m-karras`."""

_FLOW_SOLVER = frozenset({
    "num_train_timesteps", "prediction_type", "use_flow_sigmas", "flow_shift", "solver_order", "algorithm_type",
    "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
})  # fmt: skip
_FLOW_ASKS = {"use_flow_sigmas": True, "prediction_type": FLOW, "solver_order": 2}

FLOW_SCHEDULERS: dict[str, Sampler] = {
    "euler": Sampler(
        "FlowMatchEulerDiscreteScheduler",
        flow_euler,
        SHIFTS | {"num_train_timesteps", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"},
        {"prediction_type": FLOW},
        predictions=(FLOW,),
    ),
    "dpm++2m": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _FLOW_SOLVER,
        asks={**_FLOW_ASKS, "algorithm_type": "dpmsolver++"},
        predictions=(FLOW,),
    ),
    "dpm++2m-sde": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _FLOW_SOLVER,
        asks={**_FLOW_ASKS, "algorithm_type": "sde-dpmsolver++"},
        predictions=(FLOW,),
    ),
}
"""The same for models that were trained by flow matching, such as Stable Diffusion 3."""

NAMES = frozenset(SCHEDULERS) | {
    f"{name}-{ramp}" for name, row in SCHEDULERS.items() for ramp, key in RAMPS.items() if key in row.keys
}
"""All names that `schedule` accepts."""

NEAREST = {
    "DEISMultistepScheduler": "dpm++2m",
    "DPMSolverSinglestepScheduler": "dpm++2m",
    "SASolverScheduler": "dpm++2m-sde",
    "KDPM2DiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "euler-ancestral",
    "IPNDMScheduler": "pndm",
    "TCDScheduler": "ddim",
    "DDIMInverseScheduler": "ddim",
    "DPMSolverMultistepInverseScheduler": "dpm++2m",
    "FlowMatchHeunDiscreteScheduler": "euler",
}
"""Classes of diffusers that aren't supported, for models that are, and the closest sampler to each."""

FEW_STEPS = 8
"""With at most this many steps, an image depends on the timestep at which sampling starts."""

KNOWN_KEYS = frozenset[str]().union(*(row.keys for rows in (SCHEDULERS, FLOW_SCHEDULERS) for row in rows.values()))
"""Keys of a config that at least one of them reads."""


def schedule(
    config: Mapping[str, object],
    steps: int,
    name: str | None = None,
    *,
    spacing: str | None = None,
    eta: float = 0.0,
    tokens: int = 4096,
    strength: float = 1.0,
) -> Schedule:
    """Return a fresh schedule of `steps` steps for one request.

    `config` is the checkpoint's `scheduler_config.json`. `name` replaces its algorithm by one
    of `SCHEDULERS`, with the suffix `-karras`, `-exponential`, `-beta` or `-lu` for a ramp of
    noise levels; the training schedule still comes from the config, and keys that only its own
    class reads are dropped. `spacing` replaces the config's `timestep_spacing`. `eta` is DDIM's, between 0 and 1.
    `tokens` is the number of the image's tokens, on which the noise levels depend with `use_dynamic_shifting`.
    `strength` shortens LCM's own schedule for image to image, as diffusers' `LCMScheduler` does; others ignore it:
    `first_call` is for them.

    Raises `ProfileError` for a config that isn't supported, and `RequestError` for an invalid name,
    number of steps or `eta`.
    """
    sampler, checked = _settled(config, name, spacing)
    count = checked.num_train_timesteps
    if not 1 <= steps <= count:
        raise RequestError(
            f"{steps} is not a valid number of steps: the model has {count} timesteps. Use 1 to {count}."
        )
    if sampler.build is ddim:
        if not 0 <= eta <= 1:
            raise RequestError(f"{eta} is not a valid eta, the randomness of DDIM. Use 0 to 1.")
        return ddim(checked, steps, eta)
    if eta != 0:
        raise RequestError(f"{sampler.class_name} has no eta, but {eta} was given. Leave it out, or use 'ddim'.")
    if sampler.build is lcm:
        return lcm(checked, steps, strength)
    return sampler.build(checked.model_copy(update={"shift": shift_at(checked, tokens)}), steps)


def first_call(config: Mapping[str, object], walk: Schedule, steps: int, strength: float) -> int:
    """The call of a walk of `steps` steps at which image to image begins.

    `config` is the checkpoint's. Counted as in diffusers: `steps * strength` is rounded down, in flow matching up.
    PNDM's Runge-Kutta steps, of four calls each, are skipped as a whole: diffusers would begin inside of one.
    Raises `RequestError` if no call is left.
    """
    flow = samplers(config) is FLOW_SCHEDULERS
    skipped = int(steps - min(steps * strength, steps)) if flow else steps - min(int(steps * strength), steps)
    if skipped >= steps:
        raise RequestError(
            f"A strength of {strength:g} of {steps} steps leaves no denoiser call. Use a strength of at least "
            f"{math.ceil(1e4 / steps) / 1e4:g}, or more steps."
        )
    if isinstance(walk, Heun | DpmSde):
        return 2 * skipped
    if isinstance(walk, Pndm) and not walk.settings.skip_prk_steps:
        return skipped + 3 * min(skipped, RUNGE_KUTTA_STEPS)
    return skipped


def check_name(name: str) -> None:
    """Raise `RequestError` for a name that `schedule` accepts for no model, with a suggestion."""
    base, _, ramp = name.rpartition("-")
    if name in NAMES:
        return
    if base not in SCHEDULERS or ramp not in RAMPS:
        raise RequestError(
            f"{name!r} is not a known scheduler. {_hint(name)} Some accept a suffix for the spacing of noise levels: "
            f"-{', -'.join(RAMPS)}."
        )
    able = ", ".join(other for other, row in SCHEDULERS.items() if RAMPS[ramp] in row.keys)
    raise RequestError(f"{base!r} does not support -{ramp}. Leave it out, or use one of: {able}.")


def understood(name: str) -> str | None:
    """The name in `NAMES` for another tool's name, such as `dpmpp_2m_karras`; None if there is none."""
    found = spelled(name)
    return found if found in NAMES else None


def named(config: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the config of the scheduler called `name`, on the same training schedule.

    Raises `RequestError` for a name that isn't one of its `samplers`.
    """
    sampler, asks = _of_name(name, config)
    unclipped = {"clip_sample": False} if "clip_sample" in sampler.keys and not _clips(config, sampler) else {}
    return {**unclipped, **config, **asks, "_class_name": sampler.class_name}


def few_steps(config: Mapping[str, object], steps: int, name: str | None, spacing: str | None) -> str | None:
    """Return a notice if a few steps start far from the last timestep, where few-step models were trained to start."""
    sampler, checked = _settled(config, name, spacing)
    leads = "timestep_spacing" in sampler.keys and checked.ramp is None and checked.timestep_spacing == "leading"
    if steps > FEW_STEPS or not leads:
        return None
    first = float(sampler.build(checked, steps).timesteps[0])
    return (
        f"With timestep_spacing 'leading', {steps} steps start at timestep {first:g} of {checked.num_train_timesteps}. "
        "Models for few steps (Turbo, Lightning, Hyper) then generate noise: use the spacing 'trailing' (run --spacing "
        "trailing, or export --spacing trailing to make it the bundle's default)."
    )


def _settled(config: Mapping[str, object], name: str | None, spacing: str | None) -> tuple[Sampler, Settings]:
    sampler, asks = (_of_class(config), {}) if name is None else _of_name(name, config)
    if spacing is not None and samplers(config) is FLOW_SCHEDULERS:
        raise RequestError("The model was trained by flow matching, which has no timestep_spacing. Leave it out.")
    if spacing is not None and "timestep_spacing" not in sampler.keys:
        raise RequestError(
            f"{sampler.class_name} uses the timesteps that its model was distilled on, and has no timestep_spacing. "
            "Leave it out, or choose another scheduler, such as 'euler'."
        )
    asked = asks if spacing is None else {**asks, "timestep_spacing": spacing}
    clip = {"clip_sample": True} if _clips(config, sampler) else {}
    return sampler, settings(config, replace(sampler, defaults={**sampler.defaults, **clip}), KNOWN_KEYS, asked)


def _clips(config: Mapping[str, object], sampler: Sampler) -> bool:
    """Whether a sampler clips if the config has no `clip_sample`: if both its class and the config's class do so.

    diffusers' classes also clip when they replace another class, which damages latents of models that don't clip.
    """
    own = config.get("_class_name")
    return sampler.clips and any(row.clips and row.class_name == own for row in SCHEDULERS.values())


def _of_class(config: Mapping[str, object]) -> Sampler:
    known = {sampler.class_name: sampler for sampler in samplers(config).values()}
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in known:
        raise ProfileError(
            f"The scheduler config has an unknown class, {name!r}. {suggest(str(name), list(known))} "
            f"Or choose a scheduler by name: {', '.join(SCHEDULERS)}."
        )
    return known[name]


def samplers(config: Mapping[str, object]) -> Mapping[str, Sampler]:
    """The samplers for the model of a config: `FLOW_SCHEDULERS` if it was trained by flow matching."""
    own = config.get("_class_name")
    flow = (isinstance(own, str) and own.startswith("FlowMatch")) or config.get("prediction_type") == FLOW
    return FLOW_SCHEDULERS if flow else SCHEDULERS


def _of_name(name: str, config: Mapping[str, object]) -> tuple[Sampler, dict[str, object]]:
    """The sampler of this name for the config's model, and the keys that it sets."""
    check_name(name)
    rows = samplers(config)
    base, _, ramp = (name, "", "") if name in rows else name.rpartition("-")
    asked = next((key for word, key in RAMPS.items() if word == ramp), None)
    if base not in rows or (asked is not None and asked not in rows[base].keys):
        able = [f"{row}-{ramp}" for row in rows if asked in rows[row].keys]
        raise RequestError(
            f"{name!r} does not support this model, which was trained by flow matching. Use one of: "
            f"{', '.join([*rows, *able])}."
        )
    own = next((pair for pair in RAMPS.items() if config.get(pair[1])), None)
    continuous = config.get("timestep_type") == "continuous" and "timestep_type" in rows[base].keys
    if continuous and own is not None and asked != own[1]:
        raise RequestError(
            f"{name!r} would change the noise levels that the model was trained on, which are spaced as in "
            f"'{base}-{own[0]}'. Use that, or leave the scheduler out."
        )
    sampler = rows[base]
    ramps = {key: key == asked for key in RAMPS.values() if key in sampler.keys}
    shift = {"flow_shift": config.get("shift", config.get("flow_shift", 1.0))}
    return sampler, {**sampler.asks, **ramps, **(shift if "flow_shift" in sampler.keys else {})}


def _hint(name: str) -> str:
    """A suggestion: the name that another tool's name stands for, else the most similar one."""
    if found := understood(name):
        return f"Did you mean {found!r}? Known: {', '.join(sorted(SCHEDULERS))}."
    if elsewhere(name):  # a similar name would give another image
        return f"Other tools have it, but latentc does not support it yet. Known: {', '.join(sorted(SCHEDULERS))}."
    base, _, ramp = name.rpartition("-")
    return suggest(base if ramp in RAMPS else name, list(SCHEDULERS))
