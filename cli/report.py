"""Telling of reports and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.markup import escape

from ..benchmarks.compare import Comparison, compare_files
from ..benchmarks.report import report as write
from .show import emit, table
from .text import Screen, say

COLOURS = {"worse": "red", "better": "green", "note": "dim"}


def report(results: Sequence[Path], folder: Path, as_json: bool) -> None:
    """Write a report, and say where it is."""
    made = write(results, folder)
    if as_json:
        emit(asdict(made))
        return
    count = f"{made.rows} measurement{'s' if made.rows > 1 else ''}"
    say(f"{count}. Open {made.page}; {made.markdown} is for a README.")


def compare(old: Path, new: Path, effect: float, as_json: bool) -> None:
    """Say what changed; raises `typer.Exit` with code 1 where something got worse."""
    found = compare_files(old, new, effect)
    if as_json:
        emit(asdict(found) | {"worse": len(found.worse)})
    else:
        _print(found)
    if found.worse:
        raise typer.Exit(1)


def _print(found: Comparison) -> None:
    console = Screen(highlight=False)
    for title in dict.fromkeys(change.row for change in found.changes):
        listed = table(None, "verdict", "what", "old to new")
        for change in found.changes:
            if change.row == title:
                verdict = f"[{COLOURS[change.verdict]}]{change.verdict}[/]"
                listed.add_row(verdict, escape(change.what), escape(change.told))
        console.print(title, markup=False, style="bold")
        console.print(listed, "")
    for where, titles in (("old", found.only_old), ("new", found.only_new)):
        for title in titles:
            console.print(f"only in the {where} file: {title}", markup=False)
    rows = f"{found.compared} row{'s' if found.compared > 1 else ''} compared"
    worse = f"{len(found.worse)} worse" if found.worse else "nothing worse beyond the noise"
    console.print(f"{rows}: {worse}.")
