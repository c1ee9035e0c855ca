"""`latentc bench` and the output of `latentc demo`."""

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
from .ask import sides
from .progress import on_stderr
from .show import table
from .text import Screen, is_number, say
from .text import as_json as json_text

if TYPE_CHECKING:
    from ..benchmarks.demo import Demo


def parse_sizes(sizes: str | None) -> tuple[tuple[int, int], ...]:
    """Widths and heights in pixels from `512,768x512`; raises `RequestError` for anything else."""
    return tuple(sides(size) for size in sizes.split(",")) if sizes else ()


def parse_batches(batches: str) -> tuple[int, ...]:
    """Batch sizes from `1,2`; raises `RequestError` for anything else."""
    found = batches.split(",")
    if not all(is_number(batch) and int(batch) > 0 for batch in found):
        raise RequestError(
            f"{batches[:40]!r} is not a valid list of batch sizes: use positive numbers, for example 1,2."
        )
    return tuple(map(int, found))


def measure(folders: Sequence[Path], plan: Plan, output: Path, *, quiet: bool, as_json: bool) -> None:
    """Run a plan and print the measurements.

    Raises `typer.Exit` with code 1 if a row failed or is below the parity gate.
    """
    if plan.repeat < 1:
        raise RequestError(f"--repeat is {plan.repeat}; it must be 1 or more.")
    opened = [open_bundle(folder) for folder in folders]
    rows = bench(opened, plan, output, silent if quiet or as_json else on_stderr)
    if as_json:
        say(json_text([json.loads(row.model_dump_json(exclude_none=True)) for row in rows], indent=None))
    else:
        print_rows(rows, output)
    if any(row.error or at_fault(row) for row in rows):
        raise typer.Exit(1)


def print_rows(rows: Sequence[Measurement], output: Path) -> None:
    """Print a headline, a line for each measurement, and then failures and doubts."""
    console, notes = Screen(highlight=False), dict[str, None]()
    for section in sections(rows):
        for sentence in headline(section):
            console.print(sentence, markup=False)
        title: str | None = setting_title(section.first)
        for name in ("Terminal", "GPU memory", "Images"):
            if found := columns.table(name, section):
                console.print(print_table(found, title or name))
                notes |= dict.fromkeys(filter(None, [found.note]))
            title = None
    for note in notes:
        console.print(note, markup=False)
    for section in sections(rows):
        for row in section.rows:
            _print_doubts(console, title_of(row, section), row)
    console.print(f"Every sample is in {output}.", markup=False)


def print_table(found: columns.FigureTable, title: str | None) -> Table:
    """A table of figures for the terminal."""
    listed = table(title, "subject", *found.columns, right=found.columns)
    for line in found.lines:
        listed.add_row(escape(line.name), *(map(escape, line.cells) if line.cells is not None else ["failed"]))
    return listed


def show_demo(outcome: Demo, as_json: bool) -> None:
    """Print the demo's table, and where its images are."""
    if as_json:
        rows = [json.loads(row.model_dump_json(exclude_none=True)) for row in outcome.rows]
        facts = {"bundle": outcome.bundle, "sheet": outcome.sheet, "results": outcome.results}
        facts |= {"standing": outcome.standing.word}
        say(json_text({**facts, "rows": rows, "skipped": outcome.skipped}))
        return
    console = Screen(highlight=False)
    if found := columns.table("Demo", Section(outcome.rows)):
        console.print(print_table(found, None))
    console.print(columns.NOTES["Demo"], markup=False)
    for name, reason in outcome.skipped.items():
        console.print(f"{name} was skipped: {reason}", markup=False)
    console.print(f"Engines of this bundle are {outcome.standing.word}.", markup=False)
    if outcome.standing.statement:
        console.print(outcome.standing.statement, markup=False)
    console.print(f"The images are in {outcome.sheet}; the bundle is {outcome.bundle}.", markup=False)
    console.print(f"To write an HTML report: latentc report {outcome.results} -o report", markup=False)
    served = outcome.rows[-1].subject.name  # the first row is PyTorch, which the others are compared with
    console.print(f"To generate images in a browser: latentc serve {outcome.bundle} --profile {served}", markup=False)


def _print_doubts(console: Screen, name: str, row: Measurement) -> None:
    if row.error is not None:
        console.print(f"{name} failed: {row.error}", markup=False)
        if "signal 9" in row.error and not row.apart:
            console.print(
                "If the subjects do not fit in memory together, measure them one at a time with --apart.", markup=False
            )
    elif not row.stable:
        console.print(f"{name} is not stable: {row.stability}.", markup=False)
    for failure in row.parity.failures if row.parity else ():
        console.print(f"{name}: {failure}", markup=False)
