"""The rule that decides whether a time is stable."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..core.units import counted
from .plan import REPEAT
from .records import Draw
from .summary import summarize

SPREAD = 0.05
DRIFT = 0.05


def stability_of(draws: Sequence[Draw]) -> tuple[bool, str]:
    """Whether the end-to-end time is stable, and why, as a sentence for `Measurement.stability`.

    It is stable if there are at least `REPEAT` repetitions, half the 95 % interval of the median is at most `SPREAD` of
    the median, and the medians of the first and second half differ by at most `DRIFT`.
    """
    if len(draws) < REPEAT:
        return False, f"{counted(len(draws), 'repetition')}; at least {REPEAT} are needed"
    totals = [draw.total for draw in draws]
    found = summarize(totals)
    half = len(totals) // 2
    drift = abs(median(totals[-half:]) - median(totals[:half])) / found.median if found.median > 0 else 0.0
    stable = found.spread <= SPREAD and drift <= DRIFT
    return stable, (
        f"{len(draws)} repetitions; 95 % interval of the median ± {found.spread:.1%} (limit {SPREAD:.0%}), medians of "
        f"the two halves differ by {drift:.1%} (limit {DRIFT:.0%})"
    )
