"""The scheduler of a bundle: the checkpoint's own or a requested one, refused if latentc doesn't support it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoints.open import Checkpoint
from ..core.errors import CheckpointError, ProfileError, RequestError
from ..core.record import LONGEST, suggest
from ..sampling.schedulers import FLOW_SCHEDULERS, NEAREST, Sampler, named, samplers, schedule

SUFFIX = "Scheduler"
MOST_STEPS = 10
"""Enough steps for every scheduler: PNDM needs the most, as it starts with three Runge-Kutta steps."""


def settle(opened: Checkpoint, name: str | None) -> Checkpoint:
    """The checkpoint with the scheduler of its bundle: the one called `name`, such as `dpm++2m`, or its own.

    Raises CheckpointError naming the class or the config key that isn't supported, for a scheduler of flow matching
    where the family wasn't trained by it, or the reverse, for unresolved doubts about what the model was trained for,
    and for an unknown name.
    """
    if opened.doubts:
        raise CheckpointError(" ".join(opened.doubts))
    config, notices = dict(opened.scheduler), opened.notices
    own = str(config.get("_class_name"))[:LONGEST]
    flow = opened.family.flow_matching
    if (samplers(config) is FLOW_SCHEDULERS) != flow:
        was, is_one = ("by", "not one") if flow else ("without", "one")
        raise CheckpointError(
            f"{opened.family.title} was trained {was} flow matching, but the scheduler of {opened.source.location}, "
            f"{own}, is {is_one} of flow matching. Compare scheduler_config.json with the one that the checkpoint was "
            "published with."
        )
    if name is not None:
        try:
            config = named(config, name)
        except RequestError as exc:
            raise CheckpointError(str(exc)) from exc
        read = next(row.keys for row in samplers(config).values() if row.class_name == config["_class_name"])
        notices = tuple(one for one in notices if one not in opened.about or opened.about[one] in read)
        notices = (*notices, f"The bundle uses {config['_class_name']} ({name}) instead of {own}, as requested.")
    elif own not in {sampler.class_name for sampler in samplers(config).values()}:
        raise CheckpointError(f"{opened.source.location} {_absent(own, samplers(config))}")
    try:
        least_steps(config, spacing=opened.choices.spacing)
    except (ProfileError, RequestError) as exc:
        able = [other for other in samplers(config) if _draws(config, other)]
        advice = f" Or export with --scheduler and one of: {', '.join(able)}." if able else ""
        raise CheckpointError(f"The scheduler of {opened.source.location} is not supported. {exc}{advice}") from exc
    index = dict(opened.model_index) | {"scheduler": ["diffusers", config["_class_name"]]}
    return replace(opened, scheduler=config, model_index=index, notices=notices)


def least_steps(config: Mapping[str, Any], name: str | None = None, *, spacing: str | None = None) -> int:
    """The fewest steps that a scheduler supports; raises what `schedule` raises if it isn't supported at all."""
    for steps in range(1, MOST_STEPS):
        try:
            schedule(config, steps, name, spacing=spacing)
        except RequestError:
            continue
        return steps
    schedule(config, MOST_STEPS, name, spacing=spacing)
    return MOST_STEPS


def _draws(config: Mapping[str, object], name: str) -> bool:
    try:
        least_steps(named(config, name))
    except (ProfileError, RequestError):
        return False
    return True


def _absent(own: str, rows: Mapping[str, Sampler]) -> str:
    if own in NEAREST and NEAREST[own] in rows:
        return (
            f"uses {own} of diffusers, which is not supported. The closest is {NEAREST[own]!r}: export with "
            f"--scheduler {NEAREST[own]} to use it. Supported: {', '.join(rows)}."
        )
    if rows is FLOW_SCHEDULERS:
        return (
            f"names the scheduler {own}, which is not supported for models of flow matching. Export with --scheduler "
            f"and one of: {', '.join(rows)}."
        )
    known = sorted({sampler.class_name.removesuffix(SUFFIX) for sampler in rows.values()})
    return (
        f"names the scheduler {own}, which is not supported. {suggest(own.removesuffix(SUFFIX), known)} "
        "If its model predicts noise, velocity or the original on a discrete schedule, export with --scheduler and one "
        f"of: {', '.join(rows)}."
    )
