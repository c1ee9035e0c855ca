"""What a request chooses of a sampler, checked: its eta, and timesteps or noise levels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from ...core.errors import RequestError
from .grid import TOP_MARGIN
from .sigmas import training_sigmas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .settings import Sampler, Settings

_WORDS = {"eta": "eta", "timesteps": "custom timesteps", "sigmas": "custom sigmas"}


def check_chosen(
    sampler: Sampler,
    rows: Mapping[str, Sampler],
    settings: Settings,
    steps: int,
    *,
    eta: float | None,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
    spacing: str | None,
    ramp: str | None,
) -> None:
    """Raise `RequestError` for a choice that the sampler doesn't support, or that contradicts itself.

    `rows` are the samplers for the model, among which the message names those that support it; `ramp` is the request's
    scheduler if its name has a ramp or spacing.
    """
    for key, value in {"eta": eta, "timesteps": timesteps, "sigmas": sigmas}.items():
        if value is not None and key not in sampler.chooses:
            able = [name for name, row in rows.items() if key in row.chooses]
            advice = f"Leave it out, or use one of: {', '.join(able)}" if able else "Leave it out"
            raise RequestError(f"{sampler.class_name} has no {_WORDS[key]}, but {_shown(value)} was given. {advice}.")
    if eta is not None and not 0 <= eta <= 1:
        raise RequestError(f"{eta} is not a valid eta, the randomness of {sampler.class_name}. Use 0 to 1.")
    if timesteps is not None and sigmas is not None:
        raise RequestError("Timesteps and sigmas were given, but each determines the other. Leave one of them out.")
    if timesteps is None and sigmas is None:
        return
    word = "timesteps" if sigmas is None else "sigmas"
    if spacing is not None:
        raise RequestError(f"{spacing!r} spacing and {word} were given, but {word} replace it. Leave one of them out.")
    if ramp is not None:
        raise RequestError(f"{ramp!r} and {word} were given, but {word} replace its spacing. Leave one of them out.")
    if timesteps is not None:
        _check_timesteps(settings, steps, timesteps)
    if sigmas is not None:
        _check_sigmas(settings, steps, sigmas, is_flow=settings.prediction_type == "flow_prediction")


def _check_timesteps(settings: Settings, steps: int, timesteps: Sequence[int]) -> None:
    if len(timesteps) != steps:
        raise RequestError(f"{len(timesteps)} timesteps and {steps} steps were given. Leave steps out.")
    if settings.ramp is not None:
        raise RequestError(
            f"Timesteps were given, and the scheduler has a ramp of noise levels, {settings.ramp}, that sets its own. "
            "Leave one of them out, or choose a scheduler without a ramp, such as 'euler'."
        )
    if settings.interpolation_type == "log_linear" or settings.timestep_type == "continuous":
        raise RequestError(
            "Timesteps were given, but the scheduler config sets noise levels by another rule (interpolation_type "
            "'log_linear' or timestep_type 'continuous'). Use sigmas instead."
        )
    last = settings.num_train_timesteps - 1
    if any(before <= after for before, after in pairwise(timesteps)) or timesteps[0] > last or timesteps[-1] < 0:
        raise RequestError(
            f"The timesteps {_shown(timesteps)} are not valid: each must be lower than the one before, from {last} at "
            "most down to 0 at least."
        )


def _check_sigmas(settings: Settings, steps: int, sigmas: Sequence[float], *, is_flow: bool) -> None:
    if len(sigmas) != steps + 1:
        raise RequestError(
            f"{len(sigmas)} sigmas are {len(sigmas) - 1} steps, and {steps} were given. Leave steps out."
        )
    if is_flow and settings.ramp is not None:
        raise RequestError(
            f"Sigmas were given, and the scheduler has a ramp of noise levels, {settings.ramp}, that sets its own. "
            "Leave one of them out, or choose a scheduler without a ramp, such as 'euler'."
        )
    falling = all(before > after for before, after in pairwise(sigmas))
    if not falling or sigmas[-1] != 0:
        raise RequestError(
            f"The sigmas {_shown(sigmas)} are not valid: each must be lower than the one before, and the last 0, where "
            "sampling ends."
        )
    highest = 1.0 if is_flow else float(training_sigmas(settings)[-1])
    if sigmas[0] > highest * (1 if is_flow else TOP_MARGIN) and settings.timestep_type != "continuous":
        raise RequestError(
            f"The sigmas start at {sigmas[0]:g}, but the highest noise level that the model was trained on is "
            f"{highest:g}. Start there or lower."
        )


def _shown(value: float | Sequence[float]) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    return ", ".join(f"{one:g}" for one in value[:12]) + (", ..." if len(value) > 12 else "")
