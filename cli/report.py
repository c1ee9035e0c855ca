"""`latentc report` and `latentc compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase

import typer
from rich.markup import escape

from ..benchmarks.compare import Comparison, compare_files
from ..benchmarks.machines import MachineCell, SideBySide, compare_machines
from ..benchmarks.reading import UNKNOWN, UNSTABLE, figure
from ..benchmarks.report import report as write
from ..core.units import counted
from .show import emit, table
from .text import Screen, say

COLOURS = {"worse": "red", "better": "green", "note": "dim"}


def report(results: Sequence[Path], folder: Path, as_json: bool) -> None:
    """Write a report, and print where it is."""
    made = write(results, folder)
    if as_json:
        emit(asdict(made))
        return
    say(f"Wrote {counted(made.rows, 'measurement')} to {made.page}, and as Markdown for a README to {made.markdown}.")


def compare(old: Path, new: Path, effect: float, as_json: bool) -> None:
    """Print what changed; raises `typer.Exit` with code 1 if anything got worse."""
    found = compare_files(old, new, effect)
    if as_json:
        emit(asdict(found) | {"worse": len(found.worse), "not_judged": len(found.not_judged)})
    else:
        _print(found)
    if found.worse:
        raise typer.Exit(1)


def machines(files: list[Path], as_json: bool) -> None:
    """Show files side by side, one column per machine. Differences are not failures: the exit code is 0."""
    found = compare_machines(files)
    if as_json:
        emit([asdict(one) for one in found])
        return
    console = Screen(highlight=False)
    letters = {
        name: _letter(index) for index, name in enumerate(dict.fromkeys(m for one in found for m in one.machines))
    }
    titles = [one.title for one in found]
    for one in found:
        title = one.title if titles.count(one.title) == 1 else f"{one.title}, {one.request}"
        _print_machines(console, one, title, letters)
    console.print(
        f"Seconds per request: median ± half the 95 % interval. *: fastest on its machine, beyond the noise. "
        f"{UNSTABLE}: not stable. busy: other processes were running."
    )


def _letter(index: int) -> str:
    return ascii_uppercase[index] if index < len(ascii_uppercase) else f"{index + 1}"


def _print_machines(console: Screen, one: SideBySide, title: str, letters: dict[str, str]) -> None:
    columns = [letters[name] for name in one.machines]
    listed = table(escape(title), "subject", *columns, right=columns)
    for subject, cells in one.rows.items():
        listed.add_row(escape(subject), *(_cell(cell) for cell in cells))
    console.print(listed)
    for name in one.machines:
        console.print(f"{letters[name]}: {name}", markup=False)
    for note in one.notes:
        console.print(note, markup=False)
    console.print("")


def _cell(cell: MachineCell | None) -> str:
    if cell is None:
        return ""
    if cell.error is not None or cell.seconds is None or cell.interval is None:
        return "failed"
    low, high = cell.interval
    spread = f"{(high - low) / 2 / cell.seconds:.0%}" if cell.seconds > 0 and low < high else UNKNOWN
    marks = ("*" if cell.winner else "", "" if cell.stable else UNSTABLE, "busy" if cell.busy else "")
    return " ".join(filter(None, (f"{figure(cell.seconds)} ± {spread}", *marks)))


def _print(found: Comparison) -> None:
    console = Screen(highlight=False)
    for title in dict.fromkeys(change.row for change in found.changes):
        listed = table(None, "verdict", "measurement", "old to new")
        for change in found.changes:
            if change.row == title:
                verdict = f"[{COLOURS[change.verdict]}]{change.verdict}[/]"
                listed.add_row(verdict, escape(change.what), escape(change.message))
        console.print(title, markup=False, style="bold")
        console.print(listed, "")
    for where, titles in (("old", found.only_old), ("new", found.only_new)):
        for title in titles:
            console.print(f"only in the {where} file: {title}", markup=False)
    rows = f"{counted(found.compared, 'row')} compared"
    worse = f"{len(found.worse)} worse" if found.worse else "nothing worse beyond the noise"
    doubtful = len(found.not_judged)
    note = f"; {counted(doubtful, 'time')} not judged: measure again on a quiet machine" if doubtful else ""
    console.print(f"{rows}: {worse}{note}.")
