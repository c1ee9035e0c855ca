"""Noise schedulers of diffusion sampling, in numpy: from a checkpoint's configuration to a request's walk.

    schedule(config, steps)                       the checkpoint's own
    schedule(config, steps, "dpm++2m-karras")     another, on the same training schedule

Each agrees with diffusers' class of the same name step by step: given the same denoiser outputs
and the same noise, the samples are equal to float32's rounding.

    settings.py    the configuration, checked           betas.py      the training schedule
    spacing.py     which timesteps the steps fall on     sigmas.py     noise levels and their ramps
    prediction.py  epsilon, velocity, original           the others    one family of algorithms each
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...core.errors import ProfileError, RequestError
from ...core.record import suggest
from .ddim import ddim
from .ddpm import ddpm
from .dpmsde import dpm_sde
from .dpmsolver import dpm_solver
from .euler import euler, euler_ancestral
from .heun import heun
from .lcm import lcm
from .lms import lms
from .names import elsewhere, spelled
from .pndm import pndm
from .protocol import Noise, Schedule
from .settings import CLIP, RAMPS, SIGMAS, SPACING, TRAINING, ZERO_SNR, Sampler, Settings, settings
from .unipc import unipc

__all__ = [
    "KNOWN_KEYS",
    "NAMES",
    "NEAREST",
    "SCHEDULERS",
    "Noise",
    "Sampler",
    "Schedule",
    "check_name",
    "few_steps",
    "named",
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
    # diffusers' LCM has keys for spacing and for the last alpha, and never reads them: its
    # timesteps are those it was distilled on.
    "lcm": Sampler(
        "LCMScheduler",
        lcm,
        TRAINING | ZERO_SNR | CLIP | {"original_inference_steps", "timestep_scaling"},
        {**_LATENT_BETAS, "beta_schedule": "scaled_linear"},
    ),
}  # fmt: skip
"""Samplers by short name, each of which may be followed by a ramp: `dpm++2m-karras`."""

NAMES = frozenset(SCHEDULERS) | {
    f"{name}-{ramp}" for name, row in SCHEDULERS.items() for ramp, key in RAMPS.items() if key in row.keys
}
"""All that `schedule` takes."""

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
}
"""Classes of diffusers that aren't here, for models that are sampled here, and the sampler nearest to each."""

FEW_STEPS = 8
"""Up to as many, the timestep where sampling begins decides whether a picture comes of it."""

KNOWN_KEYS = frozenset[str]().union(*(sampler.keys for sampler in SCHEDULERS.values()))
"""Keys of a config that at least one of them reads."""


def schedule(
    config: Mapping[str, object], steps: int, name: str | None = None, *, spacing: str | None = None, eta: float = 0.0
) -> Schedule:
    """Return a fresh schedule of `steps` steps for one request.

    `config` is the checkpoint's `scheduler_config.json`. `name` replaces its algorithm by one
    of `SCHEDULERS`, with `-karras`, `-exponential`, `-beta` or `-lu` behind it for a ramp of
    noise levels; what the model was trained on still comes from the config, and keys that only its own
    class reads are dropped. `spacing` replaces the config's `timestep_spacing`. `eta` is DDIM's, between 0 and 1.

    Raises `ProfileError` for a config that can't be honoured, and `RequestError` for a name, a
    number of steps or an `eta` that can't be.
    """
    sampler, checked = _settled(config, name, spacing)
    count = checked.num_train_timesteps
    if not 1 <= steps <= count:
        raise RequestError(f"{steps} steps can't be taken: the model has {count} timesteps. Use 1 to {count}.")
    if sampler.build is ddim:
        if not 0 <= eta <= 1:
            raise RequestError(f"An eta of {eta} can't be: it says how random DDIM is. Use 0 to 1.")
        return ddim(checked, steps, eta)
    if eta != 0:
        raise RequestError(f"{sampler.class_name} has no eta, and {eta} was given. Leave it out, or use 'ddim'.")
    return sampler.build(checked, steps)


def check_name(name: str) -> None:
    """Raise `RequestError` for a name that `schedule` doesn't take, with the one that is meant."""
    _of_name(name)


def understood(name: str) -> str | None:
    """The name of `NAMES` that means what another tool calls so, as `dpmpp_2m_karras`; None where none does."""
    found = spelled(name)
    return found if found in NAMES else None


def named(config: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the config of the scheduler called `name`, on the same training schedule.

    Raises `RequestError` for a name that isn't in `SCHEDULERS`.
    """
    sampler, asks = _of_name(name)
    unclipped = {"clip_sample": False} if "clip_sample" in sampler.keys and not _clips(config, sampler) else {}
    return {**unclipped, **config, **asks, "_class_name": sampler.class_name}


def few_steps(config: Mapping[str, object], steps: int, name: str | None, spacing: str | None) -> str | None:
    """Return a notice where a few steps begin far from the last timestep, at which few-step models were trained."""
    sampler, checked = _settled(config, name, spacing)
    leads = "timestep_spacing" in sampler.keys and checked.ramp is None and checked.timestep_spacing == "leading"
    if steps > FEW_STEPS or not leads:
        return None
    first = float(sampler.build(checked, steps).timesteps[0])
    return (
        f"With timestep_spacing 'leading', {steps} steps begin at timestep {first:g} of {checked.num_train_timesteps}. "
        "Models for few steps (Turbo, Lightning, Hyper) draw noise so: ask for the spacing 'trailing' (run --spacing "
        "trailing, or export --spacing trailing for good)."
    )


def _settled(config: Mapping[str, object], name: str | None, spacing: str | None) -> tuple[Sampler, Settings]:
    sampler, asks = (_of_class(config), {}) if name is None else _of_name(name)
    if spacing is not None and "timestep_spacing" not in sampler.keys:
        raise RequestError(
            f"{sampler.class_name} takes the timesteps that its model was distilled on, and has no timestep_spacing. "
            "Leave it out, or choose another scheduler, such as 'euler'."
        )
    asked = asks if spacing is None else {**asks, "timestep_spacing": spacing}
    clip = {"clip_sample": True} if _clips(config, sampler) else {}
    return sampler, settings(config, replace(sampler, defaults={**sampler.defaults, **clip}), KNOWN_KEYS, asked)


def _clips(config: Mapping[str, object], sampler: Sampler) -> bool:
    """Whether a sampler clips where the config doesn't say `clip_sample`: if its class does, and the config's own.

    diffusers' classes clip in place of any other as well, which spoils the latents of models that never were clipped.
    """
    own = config.get("_class_name")
    return sampler.clips and any(row.clips and row.class_name == own for row in SCHEDULERS.values())


def _of_class(config: Mapping[str, object]) -> Sampler:
    known = {sampler.class_name: sampler for sampler in SCHEDULERS.values()}
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in known:
        raise ProfileError(
            f"The scheduler config is of an unknown class, {name!r}. {suggest(str(name), list(known))} "
            f"Or choose a scheduler by name: {', '.join(SCHEDULERS)}."
        )
    return known[name]


def _of_name(name: str) -> tuple[Sampler, dict[str, object]]:
    base, _, ramp = name.rpartition("-")
    if name in SCHEDULERS:
        plain = {key: False for key in RAMPS.values() if key in SCHEDULERS[name].keys}
        return SCHEDULERS[name], {**SCHEDULERS[name].asks, **plain}
    if base not in SCHEDULERS or ramp not in RAMPS:
        raise RequestError(
            f"There is no scheduler {name!r}. {_hint(name)} Behind some, -{', -'.join(RAMPS)} says how noise levels "
            "are spaced."
        )
    sampler = SCHEDULERS[base]
    if RAMPS[ramp] not in sampler.keys:
        able = ", ".join(other for other, row in SCHEDULERS.items() if RAMPS[ramp] in row.keys)
        raise RequestError(f"{base!r} has no {ramp} noise levels; these have: {able}. Use one, or leave out -{ramp}.")
    only = {key: key == RAMPS[ramp] for key in RAMPS.values() if key in sampler.keys}
    return sampler, {**sampler.asks, **only}


def _hint(name: str) -> str:
    """The name that is meant: by what other tools call it first, then by its letters."""
    if found := understood(name):
        return f"Did you mean {found!r}? Known: {', '.join(sorted(SCHEDULERS))}."
    if elsewhere(name):  # a near name would draw another picture
        return f"Other tools have it, and latentc doesn't yet. Known: {', '.join(sorted(SCHEDULERS))}."
    base, _, ramp = name.rpartition("-")
    return suggest(base if ramp in RAMPS else name, list(SCHEDULERS))
