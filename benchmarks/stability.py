"""When a time is stable."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .plan import REPEAT
from .records import Draw
from .summary import summarize

SPREAD = 0.05
DRIFT = 0.05


def stability_of(draws: Sequence[Draw]) -> tuple[bool, str]:
    """Whether the time of whole draws is stable, and why: the rule of `Measurement.stability`.

    It is where there are `REPEAT` draws or more, the 95 % interval of their median is within `SPREAD` of it on
    average, and the medians of the first and second half differ by no more than `DRIFT`.
    """
    if len(draws) < REPEAT:
        return False, f"{len(draws)} draws; {REPEAT} are needed to tell"
    totals = [draw.total for draw in draws]
    found = summarize(totals)
    half = len(totals) // 2
    drift = abs(median(totals[-half:]) - median(totals[:half])) / found.median if found.median > 0 else 0.0
    stable = found.spread <= SPREAD and drift <= DRIFT
    return stable, (
        f"{len(draws)} draws; median within {found.spread:.1%} with 95 % confidence (at most {SPREAD:.0%}), halves "
        f"differ by {drift:.1%} (at most {DRIFT:.0%})"
    )
