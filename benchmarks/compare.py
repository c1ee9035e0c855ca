"""Find what got worse between two files of results, by a rule that is strict enough for CI.

Two rows match if machine (CPU, cores, GPUs), model, subject, setting and threads are equal. Matching rows of several
runs are pooled.

*Seconds.* One sample per repetition: for the denoiser, the median of its calls, which aren't independent. A stage is
slower if the 95 % intervals of the two medians, which assume no distribution, don't overlap (Hoefler and Belli,
Scientific Benchmarking of Parallel Computing Systems, SC 2015, 4.2), and the medians differ by at least `EFFECT` of
the old one, 1 % of the end-to-end time and 1 ms. Intervals that don't overlap are a stricter test than 5 % (Schenker
and Gentleman, On Judging the Significance of Differences by Examining the Overlap Between Confidence Intervals, 2001),
which leaves room for the many comparisons in one file. The minimum effect covers what repetitions don't show: a
restarted process has slightly different times (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM
2013). With fewer than 6 samples on either side there is no 95 % interval, so times aren't judged.

If the machine was busy or a time wasn't stable, the machine may have caused the difference: two files of the same
configuration may differ by half. Such a difference is a note, neither worse nor better. `reading.disturbance` defines
busy.

*Memory.* One sample: the peak, worse if it grew by 5 % and 8 MB; GPUs are compared one by one. A figure of a whole
device isn't compared with a figure of a process: that is a note.

*Parity.* The same engine gives the same figures, except for the order in which threads add. Worse means 1 dB (12 %
more error), or the limit in `LIMITS`, in the median or the worst. Differences above `ROUNDING_DB` are f32 rounding, and
those within the reference's own floor are noise. A figure that became NaN or is no longer measured is worse. If the
old file has the suite, so is a new fault or a newly failed gate. Figures of another version of the suite, another
number of captions or another CLIP model aren't compared.

*Failures.* A row that newly failed is worse. Loading, building and the first run are single samples of unknown noise:
they are notes if they changed by a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ..core.errors import LatentcError
from .aspects import apart, request_title, threads_title
from .plan import REPEAT
from .reading import (
    bytes_shown,
    disturbance,
    failure,
    figure,
    gather,
    machine_title,
    overlap,
    seconds_shown,
    setting_title,
)
from .records import STAGES, Likeness, Measurement, Memory, Metric, StageName
from .summary import Summary, summarize

EFFECT = 0.05
"""Minimum relative change of seconds that counts: the spread that a stable median may have."""
SHARE_OF_DRAW = 0.01
LEAST_SECONDS = 0.001
MEMORY_SHARE, MEMORY_BYTES = 0.05, 8_000_000
ROUNDING_DB = 100.0
LEAST_DB = 1.0
SINGLE_SHARE, SINGLE_SECONDS = 0.25, 0.1

Verdict = Literal["worse", "better", "note"]


@dataclass(frozen=True)
class Limit:
    """How much a metric of images must change to count."""

    higher_is_nearer: bool
    least: float
    share: float = 0.0
    """Of the old figure; the larger of the two limits applies."""


LIMITS: dict[Metric, Limit] = {
    "psnr_db": Limit(True, LEAST_DB),
    "ssim": Limit(True, 0.005),
    "flip": Limit(False, 0.005),
    "mean_absolute_difference": Limit(False, 0.25),
}
SCORE, DISTANCE, CLIP, LPIPS = Limit(True, 0.02), Limit(False, 0.0, 0.05), Limit(True, 0.5), Limit(False, 0.005)
"""Limits of the judge's scores, of Fréchet distances, of the CLIP score and of LPIPS."""

BASES: dict[str, tuple[Callable[[Likeness], str | None], dict[str, Any]]] = {
    "suite": (
        lambda parity: parity.suite.partition(",")[0] if parity.suite else None,  # whichever library made the reference
        {"suite": None, "forced_psnr_db": {}, "host_psnr_db": None, "pictures": {}, "faults": (), "clip": None}
        | {"lpips": None, "fid": None},
    ),
    "captions": (lambda parity: str(parity.meaning.captions) if parity.meaning else None, {"meaning": None}),
    "CLIP model": (lambda parity: parity.clip.model if parity.clip else None, {"clip": None}),
    "LPIPS network": (lambda parity: parity.lpips.network if parity.lpips else None, {"lpips": None}),
    "FID": (lambda parity: f"{parity.fid.pictures} images" if parity.fid else None, {"fid": None}),
}
"""What groups of parity figures depend on, and the fields to clear if that differs."""


@dataclass(frozen=True)
class Change:
    """One difference."""

    row: str
    what: str
    verdict: Verdict
    message: str
    """The old and the new value, as text."""


@dataclass(frozen=True)
class Comparison:
    """The differences between two files."""

    compared: int
    """Rows in both."""
    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    @property
    def not_judged(self) -> tuple[Change, ...]:
        """Changes of seconds that the machine may have caused."""
        return tuple(change for change in self.changes if change.what in STAGES and change.verdict == "note")

    @property
    def worse(self) -> tuple[Change, ...]:
        """Changes for which CI should fail."""
        return tuple(change for change in self.changes if change.verdict == "worse")


def compare_files(old: Path, new: Path, effect: float = EFFECT) -> Comparison:
    """Compare two files of results.

    Raises `LatentcError` for a file that is damaged or empty, and if the two have no row in common.
    """
    before, after = gather([old]), gather([new])
    found = compare(before, after, effect)
    if not found.compared:
        raise LatentcError(f"{old} and {new} cannot be compared: {apart(before, after)}.")
    return found


def compare(old: Iterable[Measurement], new: Iterable[Measurement], effect: float = EFFECT) -> Comparison:
    """Compare rows by the rule that this module's docstring describes."""
    before, after = _by_key(old), _by_key(new)
    both = [key for key in before if key in after]
    changes = chain.from_iterable(_changes(_label(key, both), before[key], after[key], effect) for key in both)
    return Comparison(
        compared=len(both),
        changes=tuple(changes),
        only_old=tuple(", ".join(key) for key in before if key not in after),
        only_new=tuple(", ".join(key) for key in after if key not in before),
    )


Key = tuple[str, str, str]
"""The identity of a row: title, rest of the setting, threads."""


def _label(key: Key, keys: Sequence[Key]) -> str:
    """The title, with the rest of the key as far as it distinguishes rows of the same title."""
    alike = [other for other in keys if other[0] == key[0]]
    return ", ".join([key[0], *(key[place] for place in (1, 2) if len({other[place] for other in alike}) > 1)])


def _by_key(rows: Iterable[Measurement]) -> dict[Key, list[Measurement]]:
    """Group rows that measured the same configuration."""
    found: dict[Key, list[Measurement]] = {}
    for row in rows:
        title = f"{row.subject.name}, {row.model.name}, {setting_title(row)}, {machine_title(row.machine)}"
        title += ", one process at a time" if row.apart else ""
        found.setdefault((title, request_title(row), threads_title(row)), []).append(row)
    return found


def _changes(title: str, old: Sequence[Measurement], new: Sequence[Measurement], effect: float) -> list[Change]:
    """All differences of one configuration."""
    reasons = [reason for row in new if (reason := failure(row)) is not None]
    old, was_sound = [row for row in old if failure(row) is None], all(failure(row) is None for row in old)
    new = [row for row in new if failure(row) is None]
    changes: list[Change] = []
    if reasons:
        verdict: Verdict = "worse" if was_sound else "note"
        changes.append(Change(title, "failed", verdict, ("" if was_sound else "as before: ") + reasons[0]))
    elif not old:
        changes.append(Change(title, "failed", "better", "it works now"))
    if old and new:
        found = [*_seconds(old, new, effect), *_memory(old, new), *_parity(old, new), *_asides(old, new)]
        changes += [Change(title, what, verdict, text) for what, verdict, text in found]
    return changes


Difference = tuple[str, Verdict, str]
"""What changed, the verdict, and the text."""


def _samples(rows: Sequence[Measurement], stage: StageName) -> list[float]:
    """One sample per repetition, in seconds."""
    if stage == "denoiser":
        return [median(draw.denoiser) for row in rows for draw in row.draws if draw.denoiser]
    return [seconds for row in rows for seconds in row.samples(stage)]


def _seconds(old: Sequence[Measurement], new: Sequence[Measurement], effect: float) -> Iterable[Difference]:
    whole, doubt = median(_samples(old, "total")), _doubt(old, new)
    for stage in STAGES:
        mine, theirs = _samples(old, stage), _samples(new, stage)
        if min(len(mine), len(theirs)) < REPEAT:
            if stage == "total":
                yield (
                    stage,
                    "note",
                    f"{len(mine)} and {len(theirs)} repetitions: not judged, at least {REPEAT} are needed",
                )
            continue
        before, after = summarize(mine), summarize(theirs)
        least = max(effect * before.median, SHARE_OF_DRAW * whole, LEAST_SECONDS)
        text = f"{seconds_shown(before.median)} to {seconds_shown(after.median)}{_ratio(before, after)}"
        if overlap(before.interval, after.interval) or abs(after.median - before.median) < least:
            continue
        if doubt:
            yield stage, "note", f"{text}: not judged, {doubt}"
        else:
            yield stage, "worse" if after.median > before.median else "better", text


def _doubt(old: Sequence[Measurement], new: Sequence[Measurement]) -> str | None:
    """Why the machine may have caused a difference of seconds; None without such a reason."""
    for where, rows in (("new", new), ("old", old)):
        if busy := disturbance(rows):
            return f"the machine was busy ({where} file: {busy})"
        if any(row.stable is False for row in rows):
            return f"not stable ({where} file)"
    return None


def _ratio(before: Summary, after: Summary) -> str:
    return f", {after.median / before.median - 1:+.1%}" if before.median > 0 else ""


def _memory(old: Sequence[Measurement], new: Sequence[Measurement]) -> Iterable[Difference]:
    sides = [[row.memory for row in rows if row.memory is not None] for rows in (old, new)]
    devices = dict.fromkeys(one.device for side in sides for held in side for one in held.vram)
    figures: dict[str, Callable[[Memory], tuple[int, str] | None]] = {
        "peak memory": lambda held: (held.peak_bytes, "process")
    }
    figures |= {f"peak memory of {device}": partial(_vram_peak, device) for device in devices}
    for what, of in figures.items():
        before, after = ([value for held in side if (value := of(held)) is not None] for side in sides)
        if before and not after:
            yield what, "note", "no longer measured"
        if before and after:
            was, now = (median(value for value, _ in side) for side in (before, after))
            ways = ["/".join(sorted({by for _, by in side})) for side in (before, after)]
            if ways[0] != ways[1]:
                yield what, "note", f"by {ways[0]} to by {ways[1]}: not comparable"
            elif abs(now - was) >= max(MEMORY_SHARE * was, MEMORY_BYTES):
                yield what, "worse" if now > was else "better", f"{bytes_shown(was)} to {bytes_shown(now)}"


def _vram_peak(device: str, held: Memory) -> tuple[int, str] | None:
    """Bytes, and whether they belong to the process or to the whole device."""
    return next(((one.peak_bytes, one.by) for one in held.vram if one.device == device), None)


def _parity(old: Sequence[Measurement], new: Sequence[Measurement]) -> Iterable[Difference]:
    sides = [[row.parity for row in rows if row.parity is not None] for rows in (old, new)]
    for what, (basis, without) in BASES.items():
        found = [{message for one in side if (message := basis(one)) is not None} for side in sides]
        if all(found) and found[0] != found[1]:
            message = " to ".join(", ".join(sorted(each)) for each in found)
            yield what, "note", f"{message}: not comparable"
            sides = [[one.model_copy(update=without) for one in side] for side in sides]
    before, after = map(_figures, sides)
    for name, (was, limit, _) in before.items():
        if name not in after:
            yield name, "worse", f"{figure(was)}, no longer measured"
            continue
        now, _, floor = after[name]
        verdict = _judge(was, now, limit, floor)
        if verdict is not None:
            yield name, verdict, f"{figure(was, 4)} to {figure(now, 4)}"
    judged = any(one.suite is not None for one in sides[0])
    faults = [{fault for one in side for fault in one.faults} for side in sides]
    for fault in sorted(faults[1] - faults[0]) if judged else ():
        yield "fault", "worse", fault
    gates = [[said for one in side for said in one.failures] for side in sides]
    if gates[1]:  # their sentences contain figures, so they can't be compared as text
        yield "gate", "worse" if judged and not gates[0] else "note", gates[1][0]


def _figures(rows: Sequence[Likeness]) -> dict[str, tuple[float, Limit, float | None]]:
    """Every parity figure with its limit and floor; the worst value if there are several rows."""
    found: dict[str, tuple[float, Limit, float | None]] = {}

    def add(name: str, value: float | None, limit: Limit, floor: float | None = None) -> None:
        if value is None:
            return
        if name in found:
            values = (value, found[name][0])
            value = math.nan if any(map(math.isnan, values)) else (min if limit.higher_is_nearer else max)(values)
        found[name] = (value, limit, floor)

    decibels = LIMITS["psnr_db"]
    for row in rows:
        for part, likeness in row.parts.items():
            add(f"{part}, PSNR dB", likeness.psnr_db, decibels, ROUNDING_DB)
        add("one step, PSNR dB", row.step_psnr_db, decibels, ROUNDING_DB)
        for part, calls in row.forced_psnr_db.items():
            add(f"{part} teacher-forced, PSNR dB", min(calls, default=None), decibels, ROUNDING_DB)
        add("host code, PSNR dB", row.host_psnr_db, decibels, ROUNDING_DB)
        for metric, over in row.pictures.items():
            floor = over.floor if metric != "psnr_db" else min(over.floor or ROUNDING_DB, ROUNDING_DB)
            add(f"median image, {metric}", over.median, LIMITS[metric], floor)
            add(f"worst image, {metric}", over.worst, LIMITS[metric], floor)
        if row.meaning is not None:
            add("scene score", row.meaning.scene_score, SCORE)
            add("Fréchet distance", row.meaning.frechet_distance, DISTANCE)
        if row.clip is not None:
            add("CLIP score", row.clip.median, CLIP)
        if row.lpips is not None:
            add("LPIPS", row.lpips.mean, LPIPS)
        if row.fid is not None:
            add("FID", row.fid.distance, DISTANCE)
    return found


def _judge(was: float, now: float, limit: Limit, floor: float | None) -> Verdict | None:
    if math.isnan(was) or math.isnan(now):
        return None if math.isnan(was) and math.isnan(now) else "worse" if math.isnan(now) else "better"
    if was == now:
        return None
    sign = 1 if limit.higher_is_nearer else -1
    if floor is not None and min(sign * was, sign * now) >= sign * floor:
        return None
    least = max(limit.least, limit.share * abs(was)) if math.isfinite(was) else 0.0
    change = sign * (now - was)
    return None if abs(change) < least else "better" if change > 0 else "worse"


def _asides(old: Sequence[Measurement], new: Sequence[Measurement]) -> Iterable[Difference]:
    """Changes that aren't judged and may explain the others."""
    if any(row.stable is False for row in new):
        yield (
            "stability",
            "note",
            "not stable" + (", as in the old file" if any(row.stable is False for row in old) else ""),
        )
    for what, field in (("build", "build_seconds"), ("import", "import_seconds"), ("load", "load_seconds")):
        yield from _single(what, *([getattr(row.startup, field) for row in rows] for rows in (old, new)))
    yield from _single("first run", *([row.first.total if row.first else None for row in rows] for rows in (old, new)))
    before, after = ({name: v for row in rows for name, v in row.subject.versions.items()} for rows in (old, new))
    moved = [
        f"{name} {before.get(name, 'none')} to {version}"
        for name, version in after.items()
        if before.get(name) != version
    ]
    if moved:
        yield "versions", "note", ", ".join(moved)
    if old[-1].subject.profile != new[-1].subject.profile:
        yield "profile", "note", "its settings changed"
    if old[-1].model.digests != new[-1].model.digests:
        yield "bundle", "note", "its parts changed"


def _single(what: str, old: Sequence[float | None], new: Sequence[float | None]) -> Iterable[Difference]:
    before, after = ([value for value in values if value is not None] for values in (old, new))
    if before and after:
        was, now = median(before), median(after)
        if abs(now - was) >= max(SINGLE_SHARE * was, SINGLE_SECONDS):
            yield what, "note", f"{seconds_shown(was)} to {seconds_shown(now)}, one sample"
