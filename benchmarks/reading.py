"""Measurements prepared for reading: which rows may be compared, in what order, and how values are displayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.errors import LatentcError
from ..core.units import counted, sized
from ..runtimes.machine import Machine
from .records import DENOISERS, MeasuredModel, Measurement, read_records
from .summary import Summary

UNSTABLE = "≈"
"""Follows the name of a row whose time wasn't stable."""
UNKNOWN = "—"
"""In place of an interval or a percentile of a single sample."""
BUSY = 0.5
"""Load average at the start of a run above which its times are unreliable."""
OTHERS = 0.25
"""Cores used by other processes during a run above which its times are unreliable."""


@dataclass(frozen=True)
class Section:
    """Rows of one run at one setting, fastest first. They were measured alternately, so they may be compared."""

    rows: tuple[Measurement, ...]
    """Failed rows come after the measured ones, and the `null` profile is last."""

    @property
    def first(self) -> Measurement:
        """The first row, for what all rows share: machine, setting, run, time."""
        return self.rows[0]

    @property
    def models(self) -> tuple[MeasuredModel, ...]:
        """The bundles that were measured, in the order of the rows."""
        return tuple({row.model.model_dump_json(): row.model for row in self.rows}.values())

    @property
    def measured(self) -> tuple[Measurement, ...]:
        """Rows that did not fail, including the `null` profile."""
        return tuple(row for row in self.rows if failure(row) is None)

    @property
    def engines(self) -> tuple[Measurement, ...]:
        """Rows that did not fail, without the `null` profile."""
        return tuple(row for row in self.measured if not idle(row))


@dataclass(frozen=True)
class Axis:
    """A parity figure by which the rows of a section are compared."""

    name: str
    of: Callable[[Measurement], float | None]
    """In dB, higher is closer to the reference; None if the row has none."""


@dataclass(frozen=True)
class ParityPoint:
    """One row in the plot of seconds against parity."""

    name: str
    seconds: float
    """Median end-to-end time."""
    psnr_db: float | None
    """None if unknown or not finite."""
    own: bool
    """Whether it is a profile of latentc, not a baseline."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the median; None is the point `seconds` itself."""


def gather(paths: Sequence[Path]) -> list[Measurement]:
    """Read the lines of all files, each once, with the paths of images resolved against their file.

    Raises `LatentcError` for a file that is damaged or empty.
    """
    found: dict[str, Measurement] = {}
    for path in paths:
        rows = read_records(path)
        if not rows:
            raise LatentcError(f"{path} has no measurements. Add some with: latentc bench BUNDLE -o {path}")
        for row in rows:
            pictures = tuple(str(path.parent / picture) for picture in row.pictures)
            found.setdefault(row.model_dump_json(), row.model_copy(update={"pictures": pictures}))
    return list(found.values())


def sections(rows: Iterable[Measurement]) -> list[Section]:
    """Group rows that may be compared, in the order in which they were measured."""
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
    """Why a row has no figures; None if it has some."""
    if row.error is not None:
        return row.error
    return None if row.draws else "It has no measured repetition and gives no reason."


def idle(row: Measurement) -> bool:
    """Whether it is the `null` profile, which does no work: its seconds are latentc's own overhead."""
    return row.subject.profile is not None and row.subject.profile.runtime == "null"


def title_of(row: Measurement, section: Section) -> str:
    """The name of a subject, with its bundle's if the section has several."""
    return row.subject.name + (f" of {row.model.name}" if len(section.models) > 1 else "")


def shown_name(row: Measurement, section: Section | None = None) -> str:
    """As `title_of`, marked where the time wasn't stable."""
    name = title_of(row, section) if section else row.subject.name
    return name + (f" {UNSTABLE}" if row.draws and not row.stable else "")


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals overlap, so that their medians tie."""
    return one[0] <= other[1] and other[0] <= one[1]


def tied(row: Measurement, other: Measurement) -> bool:
    """Whether the 95 % intervals of two median end-to-end times overlap; False if either has none."""
    mine, theirs = row.summary("total"), other.summary("total")
    return mine is not None and theirs is not None and overlap(mine.interval, theirs.interval)


def at_fault(row: Measurement) -> bool:
    """Whether it is below the parity gate, or generated a faulty image."""
    return row.parity is not None and bool(row.parity.failures or row.parity.faults)


def disturbance(rows: Iterable[Measurement]) -> str | None:
    """Describe the load by other processes while rows were measured; None if there was none."""
    listed = list(rows)
    load = max((row.load_average for row in listed if row.load_average is not None), default=0.0)
    others = max((row.other_cores for row in listed if row.other_cores is not None), default=0.0)
    said = [f"load average {load:.1f} when the run started"] if load > BUSY else []
    said += [f"other processes used {others:.1f} cores during the run"] if others > OTHERS else []
    return ", ".join(said) or None


def machine_title(machine: Machine) -> str:
    """CPU, cores and GPUs of a machine."""
    gpus = "".join(f", {gpu.name}" for gpu in machine.gpus)
    return f"{machine.cpu}, {counted(machine.cores, 'core')}{gpus}"


def models_title(section: Section) -> str:
    """The checkpoint of a section, or the names of its bundles if there are several."""
    models = list(section.models)
    names = [checkpoint_title(models[0])] if len(models) == 1 else [model.name for model in models]
    return ", ".join(
        f"{name} ({model.standing})" if model.standing else name for name, model in zip(names, models, strict=True)
    )


def checkpoint_title(model: MeasuredModel) -> str:
    """The name of a checkpoint, or of its family in older records."""
    return model.checkpoint or model.family


def setting_title(row: Measurement) -> str:
    """Size, frames, batch and steps, for example `512x512, 20 steps`."""
    request, frames = row.request, row.model.frames
    film = f", {counted(frames, 'frame')}" if frames is not None else ""
    batch = f", batch {request.count}" if request.count > 1 else ""
    return f"{request.width}x{request.height}{film}{batch}, {counted(request.steps, 'step')}"


def step_psnr(row: Measurement) -> float | None:
    """PSNR in dB of one whole step from the reference's own latents."""
    return row.parity.step_psnr_db if row.parity else None


def forced_psnr(row: Measurement) -> float | None:
    """PSNR in dB of the worst teacher-forced denoiser call."""
    calls = (
        [db for part, each in row.parity.forced_psnr_db.items() if part in DENOISERS for db in each]
        if row.parity
        else []
    )
    return min(calls, default=None)


def picture_psnr(row: Measurement) -> float | None:
    """PSNR in dB of the worst image of the suite."""
    found = row.parity.pictures.get("psnr_db") if row.parity else None
    return found.worst if found else None


def part_psnr(row: Measurement) -> float | None:
    """PSNR in dB of the worst part."""
    return min((part.psnr_db for part in row.parity.parts.values()), default=None) if row.parity else None


AXES = (
    Axis("worst image, PSNR in dB", picture_psnr),
    Axis("one step, PSNR in dB", step_psnr),
    Axis("worst part, PSNR in dB", part_psnr),
)
"""Figures of parity, the closest to what people see first."""


def axis_of(rows: Sequence[Measurement]) -> Axis | None:
    """The first axis that most rows have; None if no row has any."""
    counts = [sum(_finite(axis.of(row)) is not None for row in rows) for axis in AXES]
    return AXES[counts.index(max(counts))] if any(counts) else None


def points(section: Section, axis: Axis | None) -> list[ParityPoint]:
    """A point for each row of `section.engines` that has seconds."""
    found: list[ParityPoint] = []
    for row in section.engines:
        if whole := row.summary("total"):
            psnr_db = _finite(axis.of(row)) if axis else None
            own = row.subject.kind == "profile"
            found.append(ParityPoint(shown_name(row, section), whole.median, psnr_db, own, whole.interval))
    return found


def front(candidates: Iterable[ParityPoint]) -> list[ParityPoint]:
    """The Pareto front of seconds and parity, fastest first."""
    known = [(point.seconds, -point.psnr_db, point) for point in candidates if point.psnr_db is not None]
    best, kept = math.inf, list[ParityPoint]()
    for _, distance, point in sorted(known, key=lambda one: one[:2]):
        if distance < best:
            best = distance
            kept.append(point)
    return kept


def unbeaten(candidates: Iterable[ParityPoint]) -> list[ParityPoint]:
    """Points that no other point beats in both. A faster time counts only if its interval does not overlap."""
    known = [point for point in candidates if point.psnr_db is not None]

    def beats(one: ParityPoint, other: ParityPoint) -> bool:
        mine, theirs = (each.interval or (each.seconds, each.seconds) for each in (one, other))
        return mine[1] < theirs[0] and (one.psnr_db or 0.0) >= (other.psnr_db or 0.0)

    return [point for point in known if not any(beats(other, point) for other in known)]


def rival(section: Section) -> Measurement | None:
    """The fastest baseline; of those that tie with it, the first that is stable."""
    baselines = [row for row in section.engines if row.subject.kind == "baseline"]
    even = [row for row in baselines if row is baselines[0] or tied(row, baselines[0])]
    return next((row for row in even if row.stable), baselines[0] if baselines else None)


def speedup(row: Measurement, against: Measurement | None) -> float | None:
    """Ratio of the median end-to-end times; None without a baseline."""
    mine, theirs = row.summary("total"), against.summary("total") if against else None
    return theirs.median / mine.median if mine and theirs and mine.median > 0 else None


def ratio_shown(row: Measurement, against: Measurement | None) -> str:
    """`speedup`, marked where either time wasn't stable; `tie` if intervals overlap; empty for the `null` profile."""
    ratio = None if idle(row) or against is None else speedup(row, against)
    if ratio is None or against is None:
        return ""
    if row is not against and tied(row, against):
        return "tie"
    return figure(ratio, 2) + ("" if row.stable and against.stable else f" {UNSTABLE}")


def by_text(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Group pairs of text and name by text: each text once, with its names."""
    found: dict[str, dict[str, None]] = {}
    for text, name in pairs:
        found.setdefault(text, {})[name] = None
    return [(text, tuple(names)) for text, names in found.items()]


def shared(section: Section, pairs: Iterable[tuple[Measurement, str]]) -> list[tuple[str, str]]:
    """Each text once, with the titles of its rows; empty if it applies to all rows."""
    total = len({title_of(row, section) for row in section.rows})
    found = by_text((text, title_of(row, section)) for row, text in pairs)
    return [(text, "" if len(names) == total else ", ".join(names)) for text, names in found]


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; empty for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "-∞" if value < 0 else "∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 0.996 to two digits is 1.0, not 1.00
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{max(0, decimals)}f}"


def spread_shown(summary: Summary) -> str:
    """Half the interval as a percentage of the median; `UNKNOWN` for a single sample."""
    return f"{summary.spread:.0%}" if summary.count > 1 else UNKNOWN


def seconds_shown(value: float) -> str:
    """Seconds with a unit: s, ms or µs."""
    if value < 0.001:
        return f"{figure(1e6 * value)} µs"
    return f"{figure(1e3 * value)} ms" if value < 1 else f"{figure(value)} s"


def bytes_shown(value: float | None) -> str:
    """Bytes with a decimal unit; empty for None."""
    return "" if value is None else sized(value)


def vram_shown(which: Literal["resting_bytes", "peak_bytes"], row: Measurement) -> str:
    """GPU memory of each device, marked if it is the whole device's, not the processes'. Empty if unknown."""
    held = row.memory.vram if row.memory else ()
    said: list[str] = []
    for one in held:
        device = f"{one.device}: " if len(held) > 1 else ""
        said.append(f"{device}{bytes_shown(getattr(one, which))}{' (device)' if one.by == 'device' else ''}")
    return "; ".join(said)


def percent(value: float | None) -> str:
    """A share as a percentage; empty for None."""
    return "" if value is None else f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
