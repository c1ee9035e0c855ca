"""The output of `latentc plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import typer

from ..compiler.budget import budget_bytes, plan_budget, typical_request
from ..compiler.plan import BuildPlan
from ..compiler.priced import EnginePlan
from ..compiler.sized import for_size
from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.request import Fitted
from ..core.shapes import size_complaint
from ..pipelines.complete import about_memory
from ..profiles import Profile
from .ask import parse_size
from .show import emit, shape, size, table
from .text import Screen

LEGEND = {
    "held": "held: device memory of the loaded engine, at the model's own size if the engine accepts any size",
    "reported": "reported: device memory as the builder reports it",
    "on disk": "on disk: predicted size of the engine's files",
    "found": "found: size of the existing engine",
    "build": "build: predicted compile time, on two cores",
    "took": "took: measured compile time of the existing engine",
    "compare": "compare: predicted time to compare it with the reference, on the CPU if its device is not available",
}
"""Explanations of the columns, keyed by name."""


def budget_answer(bundle: Bundle, profile: Profile, memory_gb: float | None, size: str | None) -> Fitted | str | None:
    """How an image of this size is fitted into a budget in GB, or why it isn't; None without a budget.

    Raises `RequestError` for a budget or a size that is not valid, and for a size without a budget.
    """
    if memory_gb is None:
        if size is not None:
            raise RequestError("--size is the size that is fitted into --memory. Pass --memory, or leave --size out.")
        return None
    budget, sides = budget_bytes(memory_gb), parse_size(size)
    given = (sides.get("width", 0), sides.get("height", 0)) if sides else bundle.manifest.model.own_size
    if wrong := size_complaint(bundle.manifest.model, *given):
        raise RequestError(wrong)
    try:
        fitting = for_size(bundle.manifest.model, profile, *given)
        found = plan_budget(bundle, fitting, budget, typical_request(bundle.manifest.model, *given))
    except RequestError as exc:
        return str(exc)
    return found or f"Profile {profile.name} builds no engine for {given[0]}x{given[1]} pixels."


def show(plans: Sequence[BuildPlan], as_json: bool, fitted: Sequence[Fitted | str | None]) -> None:
    """Print predictions, figures of existing engines, what does not fit, and how an image fits into a budget.

    Raises `typer.Exit` with code 1 where an image does not fit into a budget.
    """
    _show(plans, as_json, fitted)
    if any(isinstance(memory, str) for memory in fitted):
        raise typer.Exit(1)


def _show(plans: Sequence[BuildPlan], as_json: bool, fitted: Sequence[Fitted | str | None]) -> None:
    if as_json:
        emit([_plain(one) | _plain_budget(memory) for one, memory in zip(plans, fitted, strict=True)])
        return
    console = Screen(highlight=False)
    shown: set[str] = set()
    for one, memory in zip(plans, fitted, strict=True):
        lines = [_figures(engine) for engine in one.engines]
        figures = [name for name in LEGEND if any(line[name] for line in lines)]
        rows = table(one.profile, "part", "type", *figures, right=figures)
        for engine, line in zip(one.engines, lines, strict=True):
            rows.add_row(_name(engine, one.engines), engine.precision, *(line[name] for name in figures))
        console.print(rows)
        said = [memory] if isinstance(memory, str) else about_memory(memory) if memory else []
        console.print(_summary(one, verdict=memory is None), *said, "", markup=False, sep="\n")
        shown.update(figures)
    legend = "; ".join(LEGEND[name] for name in LEGEND if name in shown)
    console.print(f"{legend[:1].upper()}{legend[1:]}.")


def _name(engine: EnginePlan, engines: Sequence[EnginePlan]) -> str:
    """The part's name, with the shape of its first input if several engines are planned for it."""
    several = sum(other.part == engine.part for other in engines) > 1
    return f"{engine.part} {shape(engine.shape)}" if several else engine.part


def _figures(engine: EnginePlan) -> dict[str, str]:
    """Table cells keyed by column; empty if unknown."""
    built = engine.built
    held: dict[str, int | None] = {
        "held": engine.held_bytes,
        "reported": engine.reported_bytes,
        "on disk": engine.disk_bytes,
        "found": built and built.bytes,
    }
    took = {"build": engine.build_seconds, "took": built and built.seconds, "compare": engine.compare_seconds}
    return {
        **{name: "" if count is None else size(count) for name, count in held.items()},
        **{name: "" if seconds is None else f"{seconds:.0f} s" for name, seconds in took.items()},
    }


def _summary(one: BuildPlan, *, verdict: bool) -> str:
    """The plan's totals in sentences, and a verdict unless it fits and a budget decides."""
    about = "about" if one.measured else "at least"
    total = "" if one.device_bytes is None else f" of the {size(one.device_bytes)}"
    summary = [f"It cannot be built on this machine: {one.unbuildable}"] if one.unbuildable else []
    summary.append(f"Generating an image needs {about} {size(one.held_bytes)}{total} of memory on {one.device}.")
    if one.device_bytes is None:
        summary.append("The device's memory size is unknown; set memory_gb in a copy of the profile.")
    if not one.measured:
        summary.append("The cost of building for this device has not been measured.")
    elif one.build_seconds and not one.unbuildable:
        summary.append(
            f"Building the missing engines needs {size(one.build_bytes or 0)} of memory, about "
            f"{one.build_seconds:.0f} s, and {size(one.disk_bytes or 0)} of disk space."
        )
    if one.complaints:
        summary.append(f"It does not fit: {'. '.join(one.complaints)}.")
    elif verdict and one.measured and not one.unbuildable and one.device_bytes is not None:
        summary.append("It fits.")
    if one.statement:
        summary.append(one.statement)
    return " ".join(summary)


def _plain_budget(memory: Fitted | str | None) -> dict[str, Any]:
    """The answer to a budget as a field of a JSON object."""
    if memory is None:
        return {}
    return {"memory": None, "refused": memory} if isinstance(memory, str) else {"memory": memory.model_dump()}


def _plain(one: BuildPlan) -> dict[str, Any]:
    """A plan as a JSON object."""
    built = [engine.built and engine.built.model_dump(mode="json") for engine in one.engines]
    plain = asdict(replace(one, engines=tuple(replace(engine, built=None) for engine in one.engines)))
    engines = [{**engine, "built": there} for engine, there in zip(plain["engines"], built, strict=True)]
    if one.statement is None:
        plain.pop("statement")
    return {**plain, "engines": engines, "complaints": one.complaints}
