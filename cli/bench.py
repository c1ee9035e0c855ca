"""Measuring from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from ..benchmarks import columns
from ..benchmarks.bench import bench
from ..benchmarks.headline import headline
from ..benchmarks.plan import Plan
from ..benchmarks.reading import Section, at_fault, sections, setting_title, title_of
from ..benchmarks.records import Measurement
from ..core.bundle import open_bundle
from ..core.errors import RequestError
from ..core.progress import quiet as silent
from .show import table
from .text import Screen, is_number, say
from .text import as_json as json_text

if TYPE_CHECKING:
    from ..benchmarks.demo import Demo


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
        title: str | None = setting_title(section.first.request)
        for name in ("Terminal", "GPU memory", "Pictures"):
            if found := columns.table(name, section):
                console.print(print_table(found, title or name))
            title = None
    console.print(columns.NOTES["Terminal"], markup=False)
    for section in sections(rows):
        for row in section.rows:
            _print_doubts(console, title_of(row, section), row)
    console.print(f"Every sample is in {output}.", markup=False)


def print_table(found: columns.FigureTable, title: str | None) -> Table:
    """For a terminal."""
    listed = table(title, "subject", *found.columns, right=found.columns)
    for line in found.lines:
        listed.add_row(escape(line.name), *(map(escape, line.cells) if line.cells is not None else ["failed"]))
    return listed


def show_demo(outcome: Demo, as_json: bool) -> None:
    """The demo's table, and where its pictures are."""
    if as_json:
        rows = [json.loads(row.model_dump_json(exclude_none=True)) for row in outcome.rows]
        places = {"bundle": outcome.bundle, "sheet": outcome.sheet, "results": outcome.results}
        say(json_text({**places, "rows": rows, "skipped": outcome.skipped}))
        return
    console = Screen(highlight=False)
    if found := columns.table("Demo", Section(outcome.rows)):
        console.print(print_table(found, None))
    console.print(columns.NOTES["Demo"], markup=False)
    for name, reason in outcome.skipped.items():
        console.print(f"{name} was left out: {reason}", markup=False)
    console.print(f"Look at {outcome.sheet}; the bundle is {outcome.bundle}.", markup=False)
    console.print(f"For a page: latentc report {outcome.results} -o report", markup=False)


def _print_doubts(console: Screen, name: str, row: Measurement) -> None:
    if row.error is not None:
        console.print(f"{name} failed: {row.error}", markup=False)
        if "signal 9" in row.error and not row.apart:
            console.print("If they don't fit into memory together, measure one at a time: --apart.", markup=False)
    elif not row.stable:
        console.print(f"{name} isn't stable: {row.stability}.", markup=False)
    for failure in row.parity.failures if row.parity else ():
        console.print(f"{name}: {failure}", markup=False)
