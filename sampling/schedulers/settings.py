"""A checkpoint's `scheduler_config.json`, checked: every key is followed or refused, never silently ignored.

Names and defaults are those of diffusers' schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, ValidationError

from ...core.errors import ProfileError
from ...core.model import Finite
from ...core.record import Record, complaints, shown, suggest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import Schedule

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
MAX_TIMESTEPS = 100_000
"""Limit of a model's training timesteps, which are all held in memory; published models have 1000."""

Ramp = Literal["karras", "exponential", "beta", "lu"]

RAMPS: dict[Ramp, str] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "lu": "use_lu_lambdas",
}


Levels = Literal["normal", "simple", "sgm-uniform", "ays"]
LEVELS: tuple[Levels, ...] = get_args(Levels)
"""Spacings of noise levels that k-diffusion, the web UI and ComfyUI have, and diffusers' configs don't."""


class Settings(Record, strict=True):
    """One scheduler's configuration; a key that its class doesn't know keeps a default without effect."""

    # What the denoiser was trained on.
    num_train_timesteps: Annotated[int, Field(ge=2, le=MAX_TIMESTEPS)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0001
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: Annotated[list[Finite], Field(max_length=MAX_TIMESTEPS)] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Prediction = "epsilon"
    timestep_type: Literal["discrete", "continuous"] = "discrete"

    # Where on that training schedule the steps fall.
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace"
    steps_offset: Annotated[int, Field(ge=0, le=MAX_TIMESTEPS)] = 0
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    sigma_min: Annotated[Finite, Field(gt=0)] | None = None
    sigma_max: Annotated[Finite, Field(gt=0)] | None = None
    lambda_min_clipped: float = float("-inf")
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    set_alpha_to_one: bool = True
    original_inference_steps: Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)] = 50
    shift: Annotated[Finite, Field(gt=0, le=1000)] = 1.0
    flow_shift: Annotated[Finite, Field(gt=0, le=1000)] = 1.0
    use_flow_sigmas: bool = False
    use_dynamic_shifting: bool = False
    base_shift: Annotated[Finite, Field(gt=0, le=10)] = 0.5
    max_shift: Annotated[Finite, Field(gt=0, le=10)] = 1.15
    base_image_seq_len: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    max_image_seq_len: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"

    # How a step is taken.
    clip_sample: bool = False
    clip_sample_range: Annotated[Finite, Field(gt=0)] = 1.0
    # Without `learned` ones, which no denoiser of latents predicts, and `fixed_large_log`, which is
    # the logarithm of a variance where diffusers takes its root.
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] | None = None
    skip_prk_steps: bool = False
    solver_order: Annotated[int, Field(ge=1, le=10)] = 2
    algorithm_type: Literal[
        "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis", "data_prediction", "noise_prediction"
    ] = "dpmsolver++"
    predictor_order: Annotated[int, Field(ge=1, le=10)] = 2
    corrector_order: Annotated[int, Field(ge=1, le=10)] = 2
    solver_type: Literal["midpoint", "heun", "bh1", "bh2", "logrho"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    disable_corrector: list[int] = Field(default_factory=list[int])
    timestep_scaling: Finite = 10.0

    # What the request chooses; no config has these.
    eta: float = 0.0
    strength: float = 1.0
    levels: Levels | None = None
    aligned: tuple[float, ...] | None = None
    """Noise levels that were optimized for the model, falling, with one for the end."""
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    """Noise levels, falling, and zero at the end."""

    @property
    def ramp(self) -> Ramp | None:
        """The spacing of noise levels that replaces that of the timesteps, if any."""
        chosen: list[Ramp] = [ramp for ramp, key in RAMPS.items() if getattr(self, key)]
        if len(chosen) > 1:
            keys = ", ".join(RAMPS[ramp] for ramp in chosen)
            raise ProfileError(f"The scheduler config sets {keys}, but only one of them is possible. Set one.")
        return chosen[0] if chosen else None

    @property
    def clip(self) -> float | None:
        """The bound to which a predicted original is clipped; None for no clipping."""
        return self.clip_sample_range if self.clip_sample else None


TRAINING = frozenset({
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
})  # fmt: skip
SPACING = frozenset({"timestep_spacing", "steps_offset"})
# diffusers reads `sigma_min` and `sigma_max` in every class that has these ramps, also in those
# whose constructor doesn't name them.
SIGMAS = frozenset({
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "sigma_min", "sigma_max",
})  # fmt: skip
CLIP = frozenset({"clip_sample", "clip_sample_range"})
ZERO_SNR = frozenset({"rescale_betas_zero_snr"})

REFUSED = {
    "thresholding": "dynamic thresholding is for pixels in [-1, 1], and latents have no such bounds",
    "use_flow_sigmas": "it is for flow-matching models, whose prediction_type is 'flow_prediction'",
    "use_dynamic_shifting": "it is for models that were trained by flow matching",
    "shift_terminal": "no image model that latentc knows ends at a given noise level",
    "invert_sigmas": "no image model that latentc knows counts noise levels up",
    "stochastic_sampling": "flow-matching models are sampled deterministically",
    "solver_p": "UniPC is only supported with its own predictor",
    "tau_func": "SA-Solver is only supported with diffusers' default, noise at timesteps 200 to 800",
}
"""Keys that are refused unless null, false or empty, or the sampler reads them, and why."""

INERT = frozenset({
    # They qualify keys that are refused above.
    "dynamic_thresholding_ratio", "sample_max_value",
    # The noise belongs to the request, which passes it to each step.
    "noise_sampler_seed",
    # Of diffusers 0.1 to 0.2: the tensor library, and timesteps instead of their number.
    "tensor_format", "timestep_values",
})  # fmt: skip

SHIFTS = frozenset({
    "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "time_shift_type",
})  # fmt: skip

FACTS: dict[str, object] = {"rescale_betas_zero_snr": False, "timestep_type": "discrete"}
"""Facts about the trained model, with the value that every class supports."""


@dataclass(frozen=True)
class Sampler:
    """A sampler: its class in diffusers, the keys that it reads, and the function that builds its schedule."""

    class_name: str
    """The class of diffusers, or where it has none, the function of k-diffusion or ComfyUI."""
    build: Callable[[Settings, int], Schedule]
    keys: frozenset[str]
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """Defaults of the class that differ from those of `Settings`."""
    asks: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keys that choosing it by its short name sets, regardless of the checkpoint's config."""
    predictions: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
    clips: bool = False
    """Whether the class clips if its config has no `clip_sample`."""
    chooses: frozenset[str] = frozenset()
    """What a request may choose: `eta`, `timesteps`, `sigmas`, and `levels` (one of `LEVELS`)."""
    in_diffusers: bool = True
    """Whether diffusers has the class, so that a checkpoint's config can name it."""


def settings(
    config: Mapping[str, object], sampler: Sampler, known: frozenset[str], asks: Mapping[str, object]
) -> Settings:
    """Return the config's settings for this sampler, with `asks` overriding them.

    Keys of other schedulers are dropped, as in diffusers: configs are full of them, since each was
    once converted from another class (SDXL's Euler config has `skip_prk_steps`). Keys that no
    scheduler knows (`known`), and facts about the model that this sampler doesn't support, raise
    `ProfileError`.
    """
    unset = config.get("_use_default_values", [])  # diffusers lists keys here that were not set explicitly
    given = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and not (isinstance(unset, list) and key in unset)
    }
    for key, value in given.items():
        if key in REFUSED and value and key not in sampler.keys:
            raise ProfileError(
                f"The scheduler config has {key} = {shown(value)}, which is not supported: {REFUSED[key]}. "
                "Use a checkpoint without it."
            )
        if key not in known and key not in REFUSED and key not in INERT:
            raise ProfileError(
                f"The scheduler config has an unknown key, {key!r}. {suggest(key, list(known))} Rename or remove it."
            )
        if key in FACTS and key not in sampler.keys and value != FACTS[key]:
            spaced = next(
                (f"-{ramp}" for ramp, name in RAMPS.items() if given.get(name) and key == "timestep_type"), ""
            )
            raise ProfileError(
                f"The model was trained with {key} = {shown(value)}, which {sampler.class_name} does not support. "
                f"Choose another scheduler, such as 'euler{spaced}'."
            )
    values = {**sampler.defaults, **{key: given[key] for key in given if key in sampler.keys}, **asks}
    try:
        checked = Settings.model_validate(values)
    except ValidationError as exc:
        raise ProfileError(f"The scheduler config is not valid: {complaints(exc, Settings)}. Correct it.") from exc
    if checked.prediction_type not in sampler.predictions:
        raise ProfileError(
            f"{sampler.class_name} does not support models of prediction_type {checked.prediction_type!r}, "
            f"only {' or '.join(sampler.predictions)}. Choose another scheduler, such as 'ddim'."
        )
    return checked


def refuse_karras_bounds(settings: Settings) -> None:
    """Raise `ProfileError` if the config bounds Karras levels, which diffusers' class of this scheduler ignores."""
    if settings.ramp == "karras" and (settings.sigma_min is not None or settings.sigma_max is not None):
        raise ProfileError(
            "The scheduler config bounds Karras noise levels by sigma_min or sigma_max, which this scheduler "
            "does not support. Choose another, such as 'euler' or 'dpm++2m'."
        )
