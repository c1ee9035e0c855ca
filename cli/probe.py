"""`latentc probe`: try what this machine's devices can do, into one archive."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import typer
from rich.markup import escape

from ..benchmarks.probe import chosen_trials, shipped_profiles
from ..benchmarks.probe import probe as run
from ..core.errors import RequestError, RuntimeMissing
from ..core.units import counted
from ..profiles import Profile
from .progress import shown
from .show import emit, table
from .text import Screen, say

NOTHING = 3
"""Exit code where no trial ran to its end, and none failed."""


def place(output: Path | None, *, overwrite: bool) -> Path:
    """The file to write; raises `RequestError` for an existing file, and for one that is not a ZIP file by its name."""
    if output is None:
        names = (Path(f"probe-{index}.zip" if index else "probe.zip") for index in count())
        return next(path for path in names if not os.path.lexists(path))
    if output.suffix.lower() != ".zip":
        raise RequestError(f"{output}: the output is a ZIP file. Give it a name that ends in .zip.")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(f"{output} already exists. Choose another name, or add --overwrite.")
    return output


def probe(
    profiles: Sequence[Profile] | None,
    output: Path | None,
    minutes: float,
    only: Sequence[str],
    scratch: Path | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the trials and show what they found; without `output`, list them.

    Raises `typer.Exit` with code 1 where a trial failed, and 3 where none was done.
    """
    chosen, left_out = shipped_profiles() if profiles is None else (list(profiles), {})
    if not chosen:
        raise RuntimeMissing("No profile works on this machine yet. `latentc doctor` says what to install.")
    if output is None:
        names = chosen_trials(chosen, only)
        emit(names) if as_json else say("\n".join(names))
        return
    try:
        with shown(quiet or as_json) as tell:
            found = run(
                chosen, output, minutes=minutes, on_progress=tell, only=only, scratch=scratch, left_out=left_out
            )
    except KeyboardInterrupt:
        if output.exists():
            say(f"{output} has the results so far.", err=True)
        raise
    counts = Counter(one.outcome for one in found)
    if as_json:
        emit({"archive": str(output), "trials": [one.model_dump() for one in found], "left_out": left_out})
    else:
        listed = table(None, "trial", "outcome", "seconds", "result", right=("seconds",))
        for one in found:
            listed.add_row(one.name, one.outcome, f"{one.seconds:.0f}", escape(one.found))
        Screen(highlight=False).print(listed)
        if left_out:
            say(f"{counted(len(left_out), 'profile')} for other devices were not tried; summary.md lists the reasons.")
        say(f"Results: {output}. Nothing was sent. Read its summary.md, then attach it to an issue of latentc.")
    if counts["failed"] or not counts["done"]:
        raise typer.Exit(1 if counts["failed"] else NOTHING)
