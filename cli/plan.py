"""What `latentc plan` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..compiler.plan import BuildPlan, EnginePlan
from .show import emit, shape, size, table
from .text import Screen

LEGEND = {
    "held": "held: on the device, by the loaded engine, at the model's own size where sizes are free",
    "reported": "reported: what its builder says of that",
    "on disk": "on disk, by plan",
    "found": "found: what is there",
    "build": "build: to compile it, on two cores",
    "took": "took: when it was built",
    "compare": "compare: to hold it against the reference, on the CPU where its device isn't here",
}
"""By column, what it says."""


def show(plans: Sequence[BuildPlan], as_json: bool) -> None:
    """Predictions, beside what was found where engines are there, and what doesn't fit."""
    if as_json:
        emit([_plain(one) for one in plans])
        return
    console = Screen(highlight=False)
    shown: set[str] = set()
    for one in plans:
        lines = [_figures(engine) for engine in one.engines]
        figures = [name for name in LEGEND if any(line[name] for line in lines)]
        rows = table(one.profile, "part", "type", *figures, right=figures)
        for engine, line in zip(one.engines, lines, strict=True):
            rows.add_row(_name(engine, one.engines), engine.precision, *(line[name] for name in figures))
        console.print(rows)
        console.print(_summary(one), "", markup=False, sep="\n")
        shown.update(figures)
    said = "; ".join(LEGEND[name] for name in LEGEND if name in shown)
    console.print(f"{said[:1].upper()}{said[1:]}.")


def _name(engine: EnginePlan, engines: Sequence[EnginePlan]) -> str:
    """The part, and the shape of its first input where several engines are planned for it."""
    several = sum(other.part == engine.part for other in engines) > 1
    return f"{engine.part} {shape(engine.shape)}" if several else engine.part


def _figures(engine: EnginePlan) -> dict[str, str]:
    """By column, empty where nothing is known."""
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


def _summary(one: BuildPlan) -> str:
    """What a plan comes to."""
    about = "about" if one.measured else "at least"
    room = "" if one.device_bytes is None else f" of {size(one.device_bytes)}"
    said = [f"It can't be built here: {one.unbuildable}"] if one.unbuildable else []
    said.append(f"Drawing a picture holds {about} {size(one.held_bytes)}{room} on {one.device}.")
    if one.device_bytes is None:
        said.append("How much memory that has isn't known; memory_gb in a copy of the profile says it.")
    if not one.measured:
        said.append("What building for it takes was never measured.")
    elif one.build_seconds and not one.unbuildable:
        said.append(
            f"Building what isn't there holds {size(one.build_bytes or 0)}, takes about {one.build_seconds:.0f} s, and "
            f"leaves {size(one.disk_bytes or 0)} on disk."
        )
    if one.complaints:
        said.append(f"It won't fit: {'. '.join(one.complaints)}.")
    elif one.measured and not one.unbuildable and one.device_bytes is not None:
        said.append("It fits.")
    return " ".join(said)


def _plain(one: BuildPlan) -> dict[str, Any]:
    """A plan as JSON has it."""
    built = [engine.built and engine.built.model_dump(mode="json") for engine in one.engines]
    plain = asdict(replace(one, engines=tuple(replace(engine, built=None) for engine in one.engines)))
    engines = [{**engine, "built": there} for engine, there in zip(plain["engines"], built, strict=True)]
    return {**plain, "engines": engines, "complaints": one.complaints}
