"""The same configurations on several machines, a column for each: what each takes, not what got worse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import LatentcError
from .aspects import request_title
from .headline import winner
from .reading import disturbance, failure, gather, idle, machine_title, sections, setting_title
from .records import Measurement


@dataclass(frozen=True)
class MachineCell:
    """A subject on one machine: its latest measurement there."""

    seconds: float | None
    """Median of the whole draw; None where it failed."""
    interval: tuple[float, float] | None
    """Of the median, with 95 % confidence."""
    stable: bool
    busy: bool
    """Something else was at work."""
    winner: bool
    """The fastest of its run beyond doubt: its interval overlaps with no other, and its time is stable."""
    peak_bytes: int | None
    error: str | None


@dataclass(frozen=True)
class SideBySide:
    """One checkpoint and setting."""

    title: str
    request: str
    machines: tuple[str, ...]
    rows: dict[str, tuple[MachineCell | None, ...]]
    """By subject: a cell for each machine, None where it wasn't measured there."""
    notes: tuple[str, ...] = ()
    """What makes columns differ beside the machine, in sentences."""


def compare_machines(paths: list[Path]) -> list[SideBySide]:
    """Files of results side by side. Raises `LatentcError` for a damaged or empty one, and for a single machine."""
    rows = gather(paths)
    machines = {machine_title(row.machine) for row in rows}
    if len(machines) < 2:
        raise LatentcError(
            f"All rows are of one machine, {machines.pop()}. Name a file of another one, or leave --machines out to "
            "compare an old file with a new one."
        )
    return side_by_side(rows)


def side_by_side(rows: Iterable[Measurement]) -> list[SideBySide]:
    """One for each checkpoint and setting; machines and subjects in the order in which they were measured."""
    groups: dict[tuple[str, str], list[tuple[Measurement, bool]]] = {}
    for section in sections(rows):
        first = winner(section)
        for row in section.rows:
            title = f"{row.model.name}, {setting_title(row.request)}" + (", one process at a time" if row.apart else "")
            groups.setdefault((title, request_title(row)), []).append((row, row is first))
    return [_side_by_side(title, request, found) for (title, request), found in groups.items()]


def _side_by_side(title: str, request: str, found: list[tuple[Measurement, bool]]) -> SideBySide:
    machines = list(dict.fromkeys(machine_title(row.machine) for row, _ in found))
    latest = {(row.subject.name, machine_title(row.machine)): (row, first) for row, first in found}
    subjects = dict.fromkeys(row.subject.name for row, _ in sorted(found, key=lambda one: idle(one[0])))
    cells = {
        subject: tuple(_cell(*one) if (one := latest.get((subject, machine))) else None for machine in machines)
        for subject in subjects
    }
    return SideBySide(title, request, tuple(machines), cells, tuple(_notes([row for row, _ in latest.values()])))


def _cell(row: Measurement, first: bool) -> MachineCell:
    whole = row.summary("total")
    return MachineCell(
        seconds=whole.median if whole else None,
        interval=whole.interval if whole else None,
        stable=bool(row.stable),
        busy=disturbance([row]) is not None,
        winner=first,
        peak_bytes=row.memory.peak_bytes if row.memory else None,
        error=failure(row),
    )


def _notes(rows: list[Measurement]) -> Iterable[str]:
    if len({str(row.model.digests) for row in rows}) > 1:
        yield "The bundles aren't the same: digests of their parts differ."
    versions = {" at ".join(filter(None, (row.latentc, row.commit and row.commit[:12]))) for row in rows}
    if len(versions) > 1:
        yield f"latentc isn't the same: {', '.join(sorted(versions))}."
