"""Measuring from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from ..benchmarks.bench import bench
from ..benchmarks.headline import headline
from ..benchmarks.plan import Plan
from ..benchmarks.reading import (
    Section,
    at_fault,
    figure,
    idle,
    sections,
    setting_title,
    shown_name,
    step_psnr,
    title_of,
    vram_shown,
)
from ..benchmarks.records import Measurement, Parity
from ..core.bundle import open_bundle
from ..core.errors import RequestError
from ..core.progress import quiet as silent
from .show import size as bytes_shown
from .show import table
from .text import Screen, is_number, say
from .text import as_json as json_text

FIGURES = ("load", "step", "vae", "all", "±", "memory", "dB")
PICTURES = ("worst, dB", "scene score", "CLIP score", "LPIPS", "FID")
"""Figures that are there where pictures were looked at."""


def parse_sizes(sizes: str | None) -> tuple[tuple[int, int], ...]:
    """`512,768x512` as widths and heights; raises `RequestError` for anything else."""
    found: list[tuple[int, int]] = []
    for size in sizes.split(",") if sizes else ():
        width, _, height = size.partition("x")
        height = height or width
        if not (is_number(width) and is_number(height)) or size.endswith("x"):
            raise RequestError(f"{size[:40]!r} is no size. Write a side or WIDTHxHEIGHT in pixels, as 512 or 768x512.")
        found.append((int(width), int(height)))
    return tuple(found)


def parse_batches(batches: str) -> tuple[int, ...]:
    """`1,2` as numbers; raises `RequestError` for anything else."""
    found = batches.split(",")
    if not all(is_number(batch) and int(batch) > 0 for batch in found):
        raise RequestError(f"{batches[:40]!r} are no batches. Write how many pictures to draw at once, as 1,2.")
    return tuple(map(int, found))


def measure(folders: Sequence[Path], plan: Plan, output: Path, *, quiet: bool, as_json: bool) -> None:
    """Run a plan, and say what was measured.

    Raises `typer.Exit` with code 1 where a row failed, or is below the gate of parity.
    """
    if plan.repeat < 1:
        raise RequestError(f"--repeat {plan.repeat}: it must be 1 or more.")
    opened = [open_bundle(folder) for folder in folders]
    rows = bench(opened, plan, output, silent if quiet or as_json else _say)
    if as_json:
        say(json_text([json.loads(row.model_dump_json(exclude_none=True)) for row in rows], indent=None))
    else:
        print_rows(rows, output)
    if any(row.error or at_fault(row) for row in rows):
        raise typer.Exit(1)


def _say(what: str, share: float | None) -> None:
    """A line to standard error. No bar: what moves would take its share of the cores that are measured."""
    del share
    say(what, err=True)


def print_rows(rows: Sequence[Measurement], output: Path) -> None:
    """A headline and a line for each measurement, then what went wrong."""
    console = Screen(highlight=False)
    for section in sections(rows):
        for sentence in headline(section):
            console.print(sentence, markup=False)
        console.print(_listed(section, setting_title(section.first.request), FIGURES, _figures))
        if any(_vram(row) for row in section.rows):
            console.print(_listed(section, "GPU memory", ("resting", "peak"), _vram))
        if seen := [name for name in PICTURES if any(_likeness(row)[name] for row in section.rows)]:
            console.print(_listed(section, "pictures", seen, partial(_chosen, seen)))
    console.print(NOTE)
    for section in sections(rows):
        for row in section.rows:
            _print_doubts(console, title_of(row, section), row)
    console.print(f"Every sample is in {output}.", markup=False)


NOTE = (
    "Seconds: to load; then medians of one denoiser call, decoding, the whole draw. ±: half the 95 % interval of that; "
    "intervals that overlap tie. Memory: the most that the process held. dB: one denoising step against PyTorch's, "
    "from the same latents; worst: the worst finished picture of the suite (--suite). Scene score: how much of what "
    "captions say the pictures show (--captions). null does no work: what it takes is latentc's own. `latentc report` "
    "has the rest."
)


def _print_doubts(console: Screen, name: str, row: Measurement) -> None:
    if row.error is not None:
        console.print(f"{name} failed: {row.error}", markup=False)
        if "signal 9" in row.error and not row.apart:
            console.print("If they don't fit into memory together, measure one at a time: --apart.", markup=False)
    elif not row.stable:
        console.print(f"{name} isn't stable: {row.stability}.", markup=False)
    for failure in row.parity.failures if row.parity else ():
        console.print(f"{name}: {failure}", markup=False)


def _listed(
    section: Section, title: str, names: Sequence[str], figures: Callable[[Measurement], Sequence[str]]
) -> Table:
    """A table of rows under their bundle, where there are several; rows without any figure are left out."""
    listed = table(title, "subject", *names, right=names)
    for model in section.models:
        if len(section.models) > 1:
            listed.add_row(f"[bold]{escape(model.name)}[/]")
        for row in section.rows:
            if row.model == model and any(shown := figures(row)):
                listed.add_row(escape(shown_name(row)), *shown)
            elif row.model == model and names is FIGURES:
                listed.add_row(escape(shown_name(row)), "failed")
    return listed


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


def _likeness(row: Measurement) -> dict[str, str]:
    """By name of `PICTURES`; empty where it isn't known."""
    parity = row.parity or Parity(reference="")
    worst, meaning = parity.pictures.get("psnr_db"), parity.meaning
    clip, lpips, fid = (None,) * 3 if row.model.random else (parity.clip, parity.lpips, parity.fid)
    figures = (
        worst and f"{worst.worst:.0f}",
        meaning and f"{meaning.scene_score:.3f}",
        clip and figure(clip.median if clip.mean is None else clip.mean),
        lpips and figure(lpips.mean),
        fid and figure(fid.distance),
    )
    return dict(zip(PICTURES, (shown or "" for shown in figures), strict=True))


def _vram(row: Measurement) -> list[str]:
    shown = [vram_shown("resting_bytes", row), vram_shown("peak_bytes", row)]
    return shown if any(shown) else []


def _chosen(names: Sequence[str], row: Measurement) -> list[str]:
    known = _likeness(row)
    return [known[name] for name in names]


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
