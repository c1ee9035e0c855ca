"""Noise schedulers in numpy: from a checkpoint's scheduler config to the steps of a request.

    schedule(config, steps)                       the checkpoint's own
    schedule(config, steps, "dpm++2m-karras")     another, on the same training schedule

Each matches diffusers' class of the same name step by step: for the same denoiser outputs and the same
noise, the samples agree up to float32 rounding.

    rows.py        the samplers, as a table              settings.py   the configuration, checked
    choose.py      what a request chooses, checked       betas.py      the training schedule
    spacing.py     which timesteps the steps use         sigmas.py     noise levels and their ramps
    grid.py        noise levels and timesteps of steps   prediction.py epsilon, velocity, original
    the others     one family of algorithms each
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...core.errors import ProfileError, RequestError
from ...core.record import suggest
from .choose import check_chosen
from .dpm2 import Dpm2
from .dpmsde import DpmSde
from .flow import FLOW, shift_at
from .heun import Heun
from .lcm import lcm
from .names import elsewhere, spelled
from .pndm import RUNGE_KUTTA_STEPS, Pndm
from .protocol import Noise, Schedule
from .rows import FLOW_SCHEDULERS, KNOWN_KEYS, NAMES, NEAREST, SCHEDULERS, parted
from .settings import LEVELS, RAMPS, Sampler, Settings, settings

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
    "hand_over",
    "named",
    "names",
    "replaced",
    "samplers",
    "schedule",
    "skipped_steps",
    "understood",
]

TWO_CALLS = (Heun, DpmSde, Dpm2)
"""Schedules whose steps, but the last, take two calls."""

DISTILLED = ("LCMScheduler", "TCDScheduler")
"""Classes of schedulers of models for few steps."""

FEW_STEPS = 8
"""With at most this many steps, an image depends on the timestep at which sampling starts."""


def schedule(
    config: Mapping[str, object],
    steps: int,
    name: str | None = None,
    *,
    spacing: str | None = None,
    eta: float | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    aligned: Sequence[float] | None = None,
    tokens: int = 4096,
    strength: float = 1.0,
) -> Schedule:
    """Return a fresh schedule of `steps` steps for one request.

    `config` is the checkpoint's `scheduler_config.json`. `name` replaces its algorithm by one
    of `SCHEDULERS`, with the suffix `-karras`, `-exponential`, `-beta` or `-lu` for a ramp of
    noise levels, or `-normal`, `-simple`, `-sgm-uniform` or `-ays` for a spacing of other tools; the
    training schedule still comes from the config, and keys that only its own class reads are dropped.
    `spacing` replaces the config's `timestep_spacing`. `eta` is DDIM's, or TCD's gamma, between 0 and 1; None is 0.
    `timesteps` (one per step), or `sigmas` (noise levels, and 0 at the end), replace any spacing.
    `aligned` are the noise levels of `-ays`: `Model.align_your_steps`.
    `tokens` is the number of the image's tokens, on which the noise levels depend with `use_dynamic_shifting`.
    `strength` shortens LCM's own schedule for image to image, as diffusers' `LCMScheduler` does; others ignore it:
    `first_call` is for them.

    Raises `ProfileError` for a config that isn't supported, and `RequestError` for an invalid name,
    number of steps, or choice.
    """
    sampler, checked = _settled(config, name, spacing)
    count = checked.num_train_timesteps
    if not 1 <= steps <= count:
        raise RequestError(
            f"{steps} is not a valid number of steps: the model has {count} timesteps. Use 1 to {count}."
        )
    rows = samplers(config)
    check_chosen(
        sampler, rows, checked, steps, eta=eta, timesteps=timesteps, sigmas=sigmas, spacing=spacing,
        ramp=name if name is not None and parted(name)[1] else None,
    )  # fmt: skip
    chosen = {
        **({key: shift_at(checked, tokens) for key in ("shift", "flow_shift")} if checked.use_dynamic_shifting else {}),
        "strength": strength if sampler.build is lcm else 1.0,
        "eta": eta or 0.0,
        "timesteps": None if timesteps is None else tuple(timesteps),
        "sigmas": None if sigmas is None else tuple(sigmas),
        "aligned": None if aligned is None else tuple(aligned),
    }
    return sampler.build(checked.model_copy(update=chosen), steps)


def names(config: Mapping[str, object], aligned: Sequence[float] | None = None) -> tuple[str, ...]:
    """The names that `schedule` accepts for the model of a config, sorted; `aligned` as there."""

    def fits(name: str) -> bool:
        try:
            schedule(config, FEW_STEPS, name, aligned=aligned)
        except (ProfileError, RequestError):
            return False
        return True

    return tuple(sorted(filter(fits, NAMES)))


def skipped_steps(config: Mapping[str, object], steps: int, strength: float) -> int:
    """The number of steps that image to image leaves out, from noise on. `config` is the checkpoint's.

    Counted as in diffusers: `steps * strength` is rounded down, in flow matching up. Raises `RequestError` if no step
    is left.
    """
    flow = samplers(config) is FLOW_SCHEDULERS
    skipped = int(steps - min(steps * strength, steps)) if flow else steps - min(int(steps * strength), steps)
    if skipped >= steps:
        raise RequestError(
            f"A strength of {strength:g} of {steps} steps leaves no denoiser call. Use a strength of at least "
            f"{math.ceil(1e4 / steps) / 1e4:g}, or more steps."
        )
    return skipped


def first_call(config: Mapping[str, object], walk: Schedule, steps: int, strength: float) -> int:
    """The call of a walk of `steps` steps at which image to image begins.

    `config` is the checkpoint's, and the steps before are its `skipped_steps`.
    PNDM's Runge-Kutta steps, of four calls each, are skipped as a whole: diffusers would begin inside of one.
    Raises `RequestError` if no call is left.
    """
    skipped = skipped_steps(config, steps, strength)
    if isinstance(walk, TWO_CALLS):
        return 2 * skipped
    if isinstance(walk, Pndm) and not walk.settings.skip_prk_steps:
        return skipped + 3 * min(skipped, RUNGE_KUTTA_STEPS)
    return skipped


def hand_over(config: Mapping[str, object], walk: Schedule, share: float) -> tuple[int, int]:
    """The number of calls of a walk that a model makes before its refiner, and the refiner's first call.

    `config` is the checkpoint's, and `share` that of the training timesteps, from noise on, which are the model's.
    Counted as in diffusers (`denoising_end`, `denoising_start`): where a step takes two calls, the refiner repeats the
    first one of a step that would be divided. Raises `RequestError` if one of the two makes no call.
    """
    trained = config.get("num_train_timesteps", 1000)
    assert isinstance(trained, int)
    cutoff = round(trained - share * trained)
    own = sum(timestep >= cutoff for timestep in walk.timesteps.tolist())
    left = len(walk.timesteps) - own
    if not own or not left:
        what = "none for the refiner. Use a lower refine_from" if own else "none before. Use a higher refine_from"
        raise RequestError(
            f"If the refiner takes over from {share:g}, this request leaves {what}, more steps, or 1 to leave the "
            "refiner out."
        )
    repeats = isinstance(walk, TWO_CALLS) and left % 2 == 0
    return own, own - repeats


def check_name(name: str) -> None:
    """Raise `RequestError` for a name that `schedule` accepts for no model, with a suggestion."""
    base, suffix = parted(name)
    if name in NAMES:
        return
    if base not in SCHEDULERS or not suffix:
        raise RequestError(
            f"{name!r} is not a known scheduler. {_hint(name)} Some accept a suffix for the spacing of noise levels: "
            f"-{', -'.join((*RAMPS, *LEVELS))}."
        )
    able = ", ".join(other for other in SCHEDULERS if f"{other}-{suffix}" in NAMES)
    raise RequestError(f"{base!r} does not support -{suffix}. Leave it out, or use one of: {able}.")


def understood(name: str) -> str | None:
    """The name in `NAMES` for another tool's name, such as `dpmpp_2m_karras`; None if there is none."""
    found = spelled(name)
    return found if found in NAMES else None


def named(config: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the config of the scheduler called `name`, on the same training schedule.

    Raises `RequestError` for a name that isn't one of its `samplers`, and for one that diffusers' configs lack.
    """
    sampler, asks = _of_name(name, config)
    if not sampler.in_diffusers or "levels" in asks:
        raise RequestError(
            f"{name!r} can't be the scheduler of a bundle, because diffusers has no config for it. Leave it out here, "
            "and choose it for each request (run --scheduler)."
        )
    unclipped = {"clip_sample": False} if "clip_sample" in sampler.keys and not _clips(config, sampler) else {}
    return {**unclipped, **config, **asks, "_class_name": sampler.class_name}


def few_steps(config: Mapping[str, object], steps: int, name: str | None, spacing: str | None) -> str | None:
    """Return a notice if a few steps start far from the last timestep, where few-step models were trained to start."""
    sampler, checked = _settled(config, name, spacing)
    own = checked.ramp is None and checked.levels is None
    leads = "timestep_spacing" in sampler.keys and own and checked.timestep_spacing == "leading"
    if steps > FEW_STEPS or not leads:
        return None
    first = float(sampler.build(checked, steps).timesteps[0])
    return (
        f"With timestep_spacing 'leading', {steps} steps start at timestep {first:g} of {checked.num_train_timesteps}. "
        "Models for few steps (Turbo, Lightning, Hyper) then generate noise: use the spacing 'trailing' (run --spacing "
        "trailing, or export --spacing trailing to make it the bundle's default)."
    )


def replaced(config: Mapping[str, object], preset: str | None) -> str | None:
    """Return a notice if a preset replaces the solver and the steps of a checkpoint that seems to be for few steps."""
    sampler, checked = _settled(config, None, None)
    trailing = checked.timestep_spacing == "trailing" and not checked.rescale_betas_zero_snr
    if preset is None or not (sampler.class_name in DISTILLED or trailing):
        return None
    return (
        f"The preset {preset} replaces the checkpoint's own scheduler and steps. If it is a model for few steps "
        "(Turbo, LCM, Lightning), leave the preset out, and set the steps that it was trained for."
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
    if spacing is not None and "levels" in asks:
        raise RequestError(
            f"{spacing!r} spacing was given, but -{asks['levels']} of the scheduler replaces it. Leave one of them out."
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
    known = {sampler.class_name: sampler for sampler in samplers(config).values() if sampler.in_diffusers}
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
    base, suffix = parted(name)
    asked = next((key for word, key in RAMPS.items() if word == suffix), None)
    levels = {"levels": suffix} if suffix in LEVELS else {}
    is_able = base in rows and (asked is None or asked in rows[base].keys)
    if not is_able or (levels and "levels" not in rows[base].chooses):
        able = [f"{row}-{suffix}" for row in rows if asked in rows[row].keys]
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
    shift = config.get("shift", config.get("flow_shift", 1.0))
    shifts = {key: shift for key in ("shift", "flow_shift") if key in sampler.keys}
    return sampler, {**sampler.asks, **ramps, **levels, **shifts}


def _hint(name: str) -> str:
    """A suggestion: the name that another tool's name stands for, else the most similar one."""
    if found := understood(name):
        return f"Did you mean {found!r}? Known: {', '.join(sorted(SCHEDULERS))}."
    if elsewhere(name):  # a similar name would give another image
        return f"Other tools have it, but latentc does not support it yet. Known: {', '.join(sorted(SCHEDULERS))}."
    return suggest(parted(name)[0], list(SCHEDULERS))
