"""The same configurations on several machines, one column per machine. Nothing is judged."""

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
    """The latest measurement of a subject on one machine."""

    seconds: float | None
    """Median end-to-end time; None if it failed."""
    interval: tuple[float, float] | None
    """95 % confidence interval of the median."""
    stable: bool
    busy: bool
    """Whether other processes loaded the machine."""
    winner: bool
    """Whether it is the fastest of its run: its time is stable and its interval overlaps with no other."""
    peak_bytes: int | None
    error: str | None


@dataclass(frozen=True)
class SideBySide:
    """Cells of one checkpoint and setting."""

    title: str
    request: str
    machines: tuple[str, ...]
    rows: dict[str, tuple[MachineCell | None, ...]]
    """Cells by subject, one per machine; None if it wasn't measured there."""
    notes: tuple[str, ...] = ()
    """Sentences on what else differs between the columns."""


def compare_machines(paths: list[Path]) -> list[SideBySide]:
    """Arrange files of results by machine. Raises `LatentcError` for a damaged or empty file, and for one machine."""
    rows = gather(paths)
    machines = {machine_title(row.machine) for row in rows}
    if len(machines) < 2:
        raise LatentcError(
            f"All rows are from one machine, {machines.pop()}. Add a file from another machine, or omit --machines to "
            "compare an old file with a new one."
        )
    return side_by_side(rows)


def side_by_side(rows: Iterable[Measurement]) -> list[SideBySide]:
    """One table per checkpoint and setting; machines and subjects in the order of measurement."""
    groups: dict[tuple[str, str], list[tuple[Measurement, bool]]] = {}
    for section in sections(rows):
        first = winner(section)
        for row in section.rows:
            title = f"{row.model.name}, {setting_title(row)}" + (", one process at a time" if row.apart else "")
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
        yield "The bundles differ: the digests of their parts are not equal."
    versions = {" at ".join(filter(None, (row.latentc, row.commit and row.commit[:12]))) for row in rows}
    if len(versions) > 1:
        yield f"The versions of latentc differ: {', '.join(sorted(versions))}."
