"""What `latentc plan` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from ..compiler.plan import Plan
from .show import emit, size, table

LEGEND = (
    "Held: on the device, by the loaded engine, at the model's own size where sizes are free; told: what its builder "
    "says of that. On disk, and found there. Build: to compile it, on two cores; took: when it was built. Compare: to "
    "hold it against the reference, on the CPU where its device isn't here."
)


def show(plans: Sequence[Plan], as_json: bool) -> None:
    """Predictions, beside what was found where engines are there, and what doesn't fit."""
    if as_json:
        emit([_plain(one) for one in plans])
        return
    console = Console(highlight=False)
    figures = ("held", "told", "on disk", "found", "build", "took", "compare")
    for one in plans:
        rows = table(one.profile, "part", "type", *figures, right=figures)
        for engine in one.engines:
            built = engine.built
            rows.add_row(
                engine.part,
                engine.precision,
                size(engine.held_bytes),
                "" if engine.told_bytes is None else size(engine.told_bytes),
                "" if engine.disk_bytes is None else size(engine.disk_bytes),
                "" if built is None else size(built.bytes),
                "" if engine.build_seconds is None else f"{engine.build_seconds:.0f} s",
                "" if built is None else f"{built.seconds:.0f} s",
                "" if engine.compare_seconds is None else f"{engine.compare_seconds:.0f} s",
            )
        console.print(rows)
        console.print(_summary(one), "", markup=False, sep="\n")
    console.print(LEGEND)


def _summary(one: Plan) -> str:
    """What a plan comes to."""
    about = "about" if one.measured else "at least"
    room = "" if one.device_bytes is None else f" of {size(one.device_bytes)}"
    said = [f"Drawing a picture holds {about} {size(one.held_bytes)}{room} on {one.device}."]
    if not one.measured:
        said.append("What building for it takes was never measured.")
    elif one.build_seconds:
        said.append(
            f"Building what isn't there holds {size(one.build_bytes or 0)}, takes about {one.build_seconds:.0f} s, and "
            f"leaves {size(one.disk_bytes or 0)} on disk."
        )
    if one.unbuildable:
        said.append(f"It can't be built here: {one.unbuildable}")
    if one.complaints:
        said.append(f"It won't fit: {'. '.join(one.complaints)}.")
    elif one.measured and not one.unbuildable and one.device_bytes is not None:
        said.append("It fits.")
    return " ".join(said)


def _plain(one: Plan) -> dict[str, Any]:
    """A plan as JSON has it."""
    built = [engine.built and engine.built.model_dump(mode="json") for engine in one.engines]
    plain = asdict(replace(one, engines=tuple(replace(engine, built=None) for engine in one.engines)))
    engines = [{**engine, "built": there} for engine, there in zip(plain["engines"], built, strict=True)]
    return {**plain, "engines": engines, "complaints": one.complaints}
