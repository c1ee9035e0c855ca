"""Summary statistics of samples: median, percentiles, and a confidence interval of the median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

DOUBT = 20
"""One of this many intervals misses the true median: 95 % confidence."""


@dataclass(frozen=True)
class Summary:
    """Summary statistics in the unit of the samples."""

    count: int
    median: float
    p90: float
    p95: float
    p99: float
    """Close to the largest for fewer than a hundred samples."""
    minimum: float
    maximum: float
    interval: tuple[float, float]
    """95 % confidence interval of the median; minimum and maximum for fewer than six samples."""

    @property
    def spread(self) -> float:
        """Half the interval divided by the median: 0.02 means ± 2 %."""
        low, high = self.interval
        return (high - low) / 2 / self.median if self.median > 0 else 0.0


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize one or more samples.

    Percentiles are interpolated between neighbours. The interval uses order statistics and assumes no distribution.
    Source: Hoefler and Belli, Scientific Benchmarking of Parallel Computing Systems, SC 2015, 4.2.2.
    """
    ordered = sorted(samples)
    low = _interval_rank(len(ordered))
    return Summary(
        count=len(ordered),
        median=median(ordered),
        p90=_percentile(ordered, 0.90),
        p95=_percentile(ordered, 0.95),
        p99=_percentile(ordered, 0.99),
        minimum=ordered[0],
        maximum=ordered[-1],
        interval=(ordered[low], ordered[-1 - low]),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _interval_rank(count: int) -> int:
    """Number of samples outside the median's interval on each side, from the binomial distribution in integers."""
    outside, term, tail = 0, 1, 1
    while 2 * tail * DOUBT <= 2**count and outside < (count - 1) // 2:
        outside += 1
        term = term * (count - outside + 1) // outside
        tail += term
    return max(0, outside - 1)
