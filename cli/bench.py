"""Measuring from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import typer

from ..benchmarks.bench import bench
from ..benchmarks.contender import OWN_COST
from ..benchmarks.plan import Plan
from ..benchmarks.reading import idle, step_psnr
from ..benchmarks.records import Measurement
from ..core.bundle import open_bundle
from ..core.errors import RequestError
from ..core.progress import quiet as silent
from .show import size as bytes_shown
from .show import table
from .text import Screen, say

BUSY = 0.5
"""Processes that want a core, beside which times mean little."""

FIGURES = ("load", "step", "vae", "all", "±", "memory", "dB")
PICTURES = ("worst", "score")
"""Figures that are there where pictures were looked at."""


def parse_sizes(sizes: str | None) -> tuple[tuple[int, int], ...]:
    """`512,768x512` as widths and heights; raises `RequestError` for anything else."""
    found: list[tuple[int, int]] = []
    for size in sizes.split(",") if sizes else ():
        width, _, height = size.partition("x")
        height = height or width
        if not (width.isdecimal() and height.isdecimal()) or size.endswith("x"):
            raise RequestError(f"{size!r} is no size. Write a side or WIDTHxHEIGHT in pixels, as 512 or 768x512.")
        found.append((int(width), int(height)))
    return tuple(found)


def parse_batches(batches: str) -> tuple[int, ...]:
    """`1,2` as numbers; raises `RequestError` for anything else."""
    found = batches.split(",")
    if not all(batch.isdecimal() and int(batch) > 0 for batch in found):
        raise RequestError(f"{batches!r} are no batches. Write how many pictures to draw at once, as 1,2.")
    return tuple(map(int, found))


def measure(folder: Path, plan: Plan, output: Path, *, quiet: bool, as_json: bool) -> None:
    """Run a plan, and say what was measured; raises `typer.Exit` with code 1 where nothing could be."""
    if plan.repeat < 1:
        raise RequestError(f"--repeat {plan.repeat}: it must be 1 or more.")
    opened = open_bundle(folder)
    rows = bench(opened, plan, output, silent if quiet or as_json else _say)
    if as_json:
        say(f"[{', '.join(row.model_dump_json(exclude_none=True) for row in rows)}]")
    else:
        print_rows(rows, output)
    asked = [row for row in rows if row.subject.name != OWN_COST] or rows
    if all(row.error for row in asked):
        raise typer.Exit(1)


def _say(what: str, share: float | None) -> None:
    """A line to standard error. No bar: what moves would take its share of the cores that are measured."""
    del share
    say(what, err=True)


def print_rows(rows: Sequence[Measurement], output: Path) -> None:
    """A line for each measurement, then what went wrong."""
    console = Screen(highlight=False)
    seen = tuple(name for index, name in enumerate(PICTURES) if any(_likeness(row)[index] for row in rows))
    figures = (*FIGURES, *seen)
    for setting, same in groupby(rows, key=lambda row: row.setting):
        batch = f", {setting.batch} at once" if setting.batch > 1 else ""
        listed = table(
            f"{setting.width}x{setting.height}{batch}, {setting.steps} steps", "subject", *figures, right=figures
        )
        for row in same:
            likeness: dict[str, str] = dict(zip(PICTURES, _likeness(row), strict=True))
            listed.add_row(row.subject.name, *_figures(row), *(likeness[name] for name in seen))
        console.print(listed)
    console.print(
        "Seconds: to load; then medians of one denoiser call, decoding, the whole draw. ±: half the 95 % interval of "
        "that. Memory: the most that the process held. dB: one denoising step against PyTorch's, from the same "
        "latents; worst: the worst finished picture of the suite (--suite). Score: how much of what captions say the "
        "pictures show (--captions). null does no work: what it takes is latentc's own. `latentc report` has the rest."
    )
    for row in rows:
        if row.error is not None:
            console.print(f"{row.subject.name} failed: {row.error}", markup=False)
            if "signal 9" in row.error and not row.apart:
                console.print("If they don't fit into memory together, measure one at a time: --apart.", markup=False)
        elif not row.stable:
            console.print(f"{row.subject.name} isn't stable: {row.stability}.", markup=False)
        for failure in row.parity.failures if row.parity else ():
            console.print(f"{row.subject.name}: {failure}", markup=False)
    load = rows[0].load_average if rows else None
    if load is not None and load > BUSY:
        console.print(f"{load:.1f} processes wanted a core when it began: something else was at work here.")
    console.print(f"Every sample is in {output}.", markup=False)


def _figures(row: Measurement) -> list[str]:
    seconds = [row.startup.load_seconds]
    for stage in ("denoiser", "vae_decoder", "total"):
        found = row.summary(stage)
        seconds.append(found.median if found else None)
    whole = row.summary("total")
    psnr_db = None if idle(row) else step_psnr(row)
    return [
        *(_seconds(value) for value in seconds),
        f"{whole.spread:.0%}" if whole else "",
        bytes_shown(row.memory.peak_bytes) if row.memory else "",
        "" if psnr_db is None else f"{psnr_db:.0f}",
    ]


def _likeness(row: Measurement) -> tuple[str, str]:
    worst = row.parity.pictures.get("psnr_db") if row.parity else None
    meaning = row.parity.meaning if row.parity else None
    return ("" if worst is None else f"{worst.worst:.0f}", "" if meaning is None else f"{meaning.scene_score:.3f}")


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
