"""`latentc probe`: try what this machine's devices can do, into one archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from ..benchmarks.probe import probe as run
from ..benchmarks.probe import usable_profiles
from ..benchmarks.trials import trials
from ..core.errors import RequestError, RuntimeMissing
from ..profiles import Profile
from .progress import shown
from .show import emit, table
from .text import Screen, say

NOTHING = 3
"""Exit code where no trial ran to its end, and none failed."""


def probe(
    profiles: Sequence[Profile] | None,
    output: Path,
    minutes: float,
    only: Sequence[str],
    scratch: Path | None,
    *,
    listing: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the trials and show what they found.

    Raises `typer.Exit` with code 1 where a trial failed, and 3 where none was done.
    """
    chosen = usable_profiles() if profiles is None else list(profiles)
    if not chosen:
        raise RuntimeMissing("No profile works on this machine yet. `latentc doctor` says what to install.")
    if listing:
        names = list(trials(chosen))
        emit(names) if as_json else say("\n".join(names))
        return
    if output.suffix != ".zip":
        raise RequestError(f"{output}: the output is a ZIP file. Give it a name that ends in .zip.")
    with shown(quiet or as_json) as tell:
        found = run(chosen, output, minutes=minutes, on_progress=tell, only=only, scratch=scratch)
    counts = Counter(one.outcome for one in found)
    if as_json:
        emit({"archive": str(output), "trials": [one.model_dump() for one in found]})
    else:
        listed = table(None, "trial", "outcome", "seconds", "result", right=("seconds",))
        for one in found:
            listed.add_row(one.name, one.outcome, f"{one.seconds:.0f}", one.found)
        Screen(highlight=False).print(listed, markup=False)
        say(f"{output} has everything. Read summary.md in it. Nothing was sent.")
    if counts["failed"] or not counts["done"]:
        raise typer.Exit(1 if counts["failed"] else NOTHING)
