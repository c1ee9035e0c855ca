"""What a reader wants of measurements: which may be held against each other, in what order, and in what words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.errors import LatentcError
from ..core.request import Request
from ..core.units import counted, sized
from ..runtimes.machine import Machine
from .records import DENOISERS, MeasuredModel, Measurement, read_records

UNSTABLE = "≈"
"""Stands behind the name of a row whose time wasn't stable."""
BUSY = 0.5
"""Processes that want a core when a run starts, beside which its times mean little."""
OTHERS = 0.25
"""Cores that other processes take while it runs, beside which its times mean little."""


@dataclass(frozen=True)
class Section:
    """Rows of one run at one setting: they were called in turn, so they may be compared. Fastest first."""

    rows: tuple[Measurement, ...]
    """What did no work is last; what failed comes before it."""

    @property
    def first(self) -> Measurement:
        """The row to ask for what all of them share: machine, setting, run, time."""
        return self.rows[0]

    @property
    def models(self) -> tuple[MeasuredModel, ...]:
        """The bundles that were drawn with, in the order of the rows."""
        return tuple({row.model.model_dump_json(): row.model for row in self.rows}.values())

    @property
    def measured(self) -> tuple[Measurement, ...]:
        """Those that did not fail, the empty runtime among them."""
        return tuple(row for row in self.rows if failure(row) is None)

    @property
    def engines(self) -> tuple[Measurement, ...]:
        """Those that did not fail and did work."""
        return tuple(row for row in self.measured if not idle(row))


@dataclass(frozen=True)
class Axis:
    """A figure of parity that rows of one section have in common."""

    name: str
    of: Callable[[Measurement], float | None]
    """In dB, higher is nearer; None where a row hasn't one."""


@dataclass(frozen=True)
class ParityPoint:
    """One row in the picture of seconds against parity."""

    name: str
    seconds: float
    """Median of the whole draw."""
    psnr_db: float | None
    """None where it isn't known, or isn't a number."""
    own: bool
    """A profile of latentc's, not a baseline."""
    interval: tuple[float, float] | None = None
    """Where the true median of the seconds lies with 95 % confidence; None: exactly at `seconds`."""


def gather(paths: Sequence[Path]) -> list[Measurement]:
    """The lines of all files, each once, with the places of their pictures made findable from here.

    Raises `LatentcError` for a file that is damaged or empty.
    """
    found: dict[str, Measurement] = {}
    for path in paths:
        rows = read_records(path)
        if not rows:
            raise LatentcError(f"{path} holds no measurement. `latentc bench BUNDLE -o {path}` adds some.")
        for row in rows:
            pictures = tuple(str(path.parent / picture) for picture in row.pictures)
            found.setdefault(row.model_dump_json(), row.model_copy(update={"pictures": pictures}))
    return list(found.values())


def sections(rows: Iterable[Measurement]) -> list[Section]:
    """Rows that may be compared, together; in the order in which they were measured."""
    groups: dict[str, list[Measurement]] = {}
    for row in rows:
        key = (row.run, machine_title(row.machine), row.request.model_dump_json())
        groups.setdefault("\n".join(key), []).append(row)
    ordered = sorted(groups.values(), key=lambda group: group[0].time)
    return [Section(tuple(sorted(group, key=_place))) for group in ordered]


def _place(row: Measurement) -> tuple[int, float]:
    whole = row.summary("total")
    return (2 if idle(row) else 1 if failure(row) else 0, whole.median if whole else 0.0)


def failure(row: Measurement) -> str | None:
    """Why there is no figure to read from a row; None where there are some."""
    if row.error is not None:
        return row.error
    return None if row.draws else "It has no measured draw, and no reason."


def idle(row: Measurement) -> bool:
    """Whether it is the profile that does no work, whose seconds are latentc's own cost."""
    return row.subject.profile is not None and row.subject.profile.runtime == "null"


def title_of(row: Measurement, section: Section) -> str:
    """A subject's name; with its bundle's, where the section has several."""
    return row.subject.name + (f" of {row.model.name}" if len(section.models) > 1 else "")


def shown_name(row: Measurement, section: Section | None = None) -> str:
    """A subject's name, marked where its time wasn't stable; with its bundle's, where the section has several."""
    name = title_of(row, section) if section else row.subject.name
    return name + (f" {UNSTABLE}" if row.draws and not row.stable else "")


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals have a point in common: what they stand for is a tie."""
    return one[0] <= other[1] and other[0] <= one[1]


def tied(row: Measurement, other: Measurement) -> bool:
    """Whether the 95 % intervals of two medians of the whole draw overlap; False where either has none."""
    mine, theirs = row.summary("total"), other.summary("total")
    return mine is not None and theirs is not None and overlap(mine.interval, theirs.interval)


def at_fault(row: Measurement) -> bool:
    """Whether it is below the gate of parity, or drew a picture that is at fault."""
    return row.parity is not None and bool(row.parity.failures or row.parity.faults)


def disturbance(rows: Iterable[Measurement]) -> str | None:
    """What else was at work while rows were measured, in words; None where nothing was seen."""
    listed = list(rows)
    load = max((row.load_average for row in listed if row.load_average is not None), default=0.0)
    others = max((row.other_cores for row in listed if row.other_cores is not None), default=0.0)
    said = [f"{load:.1f} processes wanted a core when it began"] if load > BUSY else []
    said += [f"other processes took {others:.1f} cores while it ran"] if others > OTHERS else []
    return ", ".join(said) or None


def machine_title(machine: Machine) -> str:
    """What makes a machine another one to a reader: its CPU, cores and GPUs."""
    gpus = "".join(f", {gpu.name}" for gpu in machine.gpus)
    return f"{machine.cpu}, {counted(machine.cores, 'core')}{gpus}"


def models_title(section: Section) -> str:
    """The checkpoints of a section; by their bundles' names where there are several."""
    models = list(section.models)
    return checkpoint_title(models[0]) if len(models) == 1 else ", ".join(model.name for model in models)


def checkpoint_title(model: MeasuredModel) -> str:
    """A checkpoint's name; its family's where the record is from before it was kept."""
    return model.checkpoint or model.family


def setting_title(request: Request) -> str:
    """Size, batch and steps."""
    batch = f", {request.count} at once" if request.count > 1 else ""
    return f"{request.width}x{request.height}{batch}, {counted(request.steps, 'step')}"


def step_psnr(row: Measurement) -> float | None:
    """One whole step, from the reference's own latents."""
    return row.parity.step_psnr_db if row.parity else None


def forced_psnr(row: Measurement) -> float | None:
    """The worst of the denoiser's teacher-forced calls."""
    calls = (
        [db for part, each in row.parity.forced_psnr_db.items() if part in DENOISERS for db in each]
        if row.parity
        else []
    )
    return min(calls, default=None)


def picture_psnr(row: Measurement) -> float | None:
    """The worst picture of the suite."""
    found = row.parity.pictures.get("psnr_db") if row.parity else None
    return found.worst if found else None


def part_psnr(row: Measurement) -> float | None:
    """The worst part."""
    return min((part.psnr_db for part in row.parity.parts.values()), default=None) if row.parity else None


AXES = (
    Axis("worst picture, PSNR in dB", picture_psnr),
    Axis("one step, PSNR in dB", step_psnr),
    Axis("worst part, PSNR in dB", part_psnr),
)
"""What parity is read by: the nearest to what people see that most rows have."""


def axis_of(rows: Sequence[Measurement]) -> Axis | None:
    """The axis that most rows have, the first of them; None where no row has any."""
    counts = [sum(_finite(axis.of(row)) is not None for row in rows) for axis in AXES]
    return AXES[counts.index(max(counts))] if any(counts) else None


def points(section: Section, axis: Axis | None) -> list[ParityPoint]:
    """A point for each row that did work and has seconds."""
    found: list[ParityPoint] = []
    for row in section.engines:
        if whole := row.summary("total"):
            psnr_db = _finite(axis.of(row)) if axis else None
            own = row.subject.kind == "profile"
            found.append(ParityPoint(shown_name(row, section), whole.median, psnr_db, own, whole.interval))
    return found


def front(candidates: Iterable[ParityPoint]) -> list[ParityPoint]:
    """Those that nothing else beats in both: no other is as fast and nearer, or as near and faster. Fastest first."""
    known = [(point.seconds, -point.psnr_db, point) for point in candidates if point.psnr_db is not None]
    best, kept = math.inf, list[ParityPoint]()
    for _, distance, point in sorted(known, key=lambda one: one[:2]):
        if distance < best:
            best = distance
            kept.append(point)
    return kept


def unbeaten(candidates: Iterable[ParityPoint]) -> list[ParityPoint]:
    """Those that no other beats in both beyond doubt: intervals of seconds that overlap decide nothing."""
    known = [point for point in candidates if point.psnr_db is not None]

    def beats(one: ParityPoint, other: ParityPoint) -> bool:
        mine, theirs = (each.interval or (each.seconds, each.seconds) for each in (one, other))
        return mine[1] < theirs[0] and (one.psnr_db or 0.0) >= (other.psnr_db or 0.0)

    return [point for point in known if not any(beats(other, point) for other in known)]


def rival(section: Section) -> Measurement | None:
    """The fastest baseline, to hold the others against; of those that tie with it, the first that is stable."""
    baselines = [row for row in section.engines if row.subject.kind == "baseline"]
    even = [row for row in baselines if row is baselines[0] or tied(row, baselines[0])]
    return next((row for row in even if row.stable), baselines[0] if baselines else None)


def speedup(row: Measurement, against: Measurement | None) -> float | None:
    """How many times faster a whole draw is; None where there is nothing to hold it against."""
    mine, theirs = row.summary("total"), against.summary("total") if against else None
    return theirs.median / mine.median if mine and theirs and mine.median > 0 else None


def ratio_shown(row: Measurement, against: Measurement | None) -> str:
    """`speedup`, marked where either time wasn't stable; `tie` where intervals overlap, empty for what does no work."""
    ratio = None if idle(row) or against is None else speedup(row, against)
    if ratio is None or against is None:
        return ""
    if row is not against and tied(row, against):
        return "tie"
    return figure(ratio, 2) + ("" if row.stable and against.stable else f" {UNSTABLE}")


def by_text(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """What several subjects have in common, once: each text with the names that it holds for."""
    found: dict[str, dict[str, None]] = {}
    for text, name in pairs:
        found.setdefault(text, {})[name] = None
    return [(text, tuple(names)) for text, names in found.items()]


def shared(section: Section, pairs: Iterable[tuple[Measurement, str]]) -> list[tuple[str, str]]:
    """Each text once, with the names of those that it holds for; empty where it holds for everybody."""
    everybody = len({title_of(row, section) for row in section.rows})
    found = by_text((text, title_of(row, section)) for row, text in pairs)
    return [(text, "" if len(names) == everybody else ", ".join(names)) for text, names in found]


def figure(value: float | None, digits: int = 3) -> str:
    """A number to so many digits that count; empty where there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "-∞" if value < 0 else "∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 0.996 to two digits is 1.0, not 1.00
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{max(0, decimals)}f}"


def seconds_shown(value: float) -> str:
    """Seconds with their unit."""
    if value < 0.001:
        return f"{figure(1e6 * value)} µs"
    return f"{figure(1e3 * value)} ms" if value < 1 else f"{figure(value)} s"


def bytes_shown(value: float | None) -> str:
    """Bytes with their unit, by thousands; empty where there are none."""
    return "" if value is None else sized(value)


def vram_shown(which: Literal["resting_bytes", "peak_bytes"], row: Measurement) -> str:
    """GPU memory of each device; marked where it is the device's and not the processes'. Empty where none is known."""
    held = row.memory.vram if row.memory else ()
    said: list[str] = []
    for one in held:
        device = f"{one.device}: " if len(held) > 1 else ""
        said.append(f"{device}{bytes_shown(getattr(one, which))}{' (device)' if one.by == 'device' else ''}")
    return "; ".join(said)


def percent(value: float | None) -> str:
    """A share as percent; empty where there is none."""
    return "" if value is None else f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
