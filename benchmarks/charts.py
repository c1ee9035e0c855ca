"""Layout of the charts of a page; its template writes them as SVG.

Horizontal positions are percentages and vertical ones are pixels, so that a chart takes any width while its text keeps
its size. Names and values are text of the page above each chart, which wraps; only the plot of seconds against parity
has text inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from .reading import ParityPoint, figure, front, seconds_shown
from .summary import summarize

NARROW = 320
"""Pixels: the narrowest chart. Labels that don't overlap there overlap nowhere."""
LETTER = 6.8
"""Pixels: width of a letter, rounded up."""
TOP, PLOT = 36, 280
"""Pixels from the top: where the plot of seconds against parity begins and ends."""
SHIFTS = (0, -14, 14, -28, 28, -42, 42)
"""Pixels by which a name may be moved up or down from its dot."""
LEFT, RIGHT = 8.0, 94.0
"""Percent: where the horizontal axis of that plot begins and ends."""
BAND = 46
"""Pixels below the plot, for rows with seconds and no parity."""
WIDE_RANGE = 8
"""Ratio of the largest to the smallest time above which the axis is logarithmic."""
BEYOND = 1.0
"""Samples further than this above their median, as a share of it, are shown at the edge."""
CLOSEST = 0.02
"""Half the smallest range of a strip, as a share of the median."""


@dataclass(frozen=True)
class Piece:
    """A segment of a bar, or a line across it."""

    kind: str
    """Class in the style sheet."""
    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Bar:
    """One stacked bar."""

    name: str
    value: str
    """Text at the right end of the line above the bar."""
    pieces: tuple[tuple[str, float, str], ...]
    """Class, length and title of each segment, from left to right."""
    marks: tuple[tuple[float, str], ...] = ()
    """Positions and titles of lines across the bar."""


@dataclass(frozen=True)
class Dot:
    """One sample."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Strip:
    """The samples of one row in seconds, one or more for each repetition."""

    name: str
    draws: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class DrawnStrip:
    """The dots of a strip, with the median and its interval."""

    name: str
    value: str
    height: float
    median: float
    band: Piece
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Spot:
    """A row in the plot of seconds against parity."""

    point: ParityPoint
    x: float
    y: float
    best: bool
    title: str


@dataclass(frozen=True)
class Label:
    """Text inside a chart."""

    text: str
    x: float
    y: float
    anchor: str = "start"
    kind: str = "soft"
    dx: float = 0


@dataclass(frozen=True)
class Pareto:
    """The plot of seconds (horizontal) against parity (vertical), with the Pareto front."""

    height: float
    lines: tuple[tuple[str, float, float, float, float], ...]
    """Class, and start and end point: x, y, x, y."""
    spots: tuple[Spot, ...]
    labels: tuple[Label, ...]
    legend: tuple[str, ...]
    """Names that have no room beside their dots, each with its number in the plot."""


def bars(rows: Sequence[Bar]) -> list[tuple[Bar, list[Piece], list[Piece]]]:
    """Lay out stacked bars on one scale from zero: their segments and marks."""
    longest = max(max(sum(length for _, length, _ in row.pieces), *(at for at, _ in row.marks), 0.0) for row in rows)
    drawn: list[tuple[Bar, list[Piece], list[Piece]]] = []
    for row in rows:
        left, pieces = 0.0, list[Piece]()
        for kind, length, title in row.pieces:
            width = 100 * length / (longest or 1)
            pieces.append(Piece(kind, left, width, title))
            left += width
        marks = [Piece("mark", min(100 * at / (longest or 1), 99.7), 0.0, title) for at, title in row.marks]
        drawn.append((row, pieces, marks))
    return drawn


def strips(rows: Sequence[Strip]) -> tuple[list[DrawnStrip], tuple[str, str]]:
    """Lay out every sample as a dot; also the deviations at the left and right edge, as text.

    Horizontal: deviation from the row's median; vertical: order of measurement. Samples beyond the right edge are rings
    on it. Rows whose median is zero are left out.
    """
    samples = [(row, [sample for draw in row.draws for sample in draw]) for row in rows]
    known = [(row, each, found) for row, each in samples if each and (found := summarize(each)).median > 0]
    shares = [sample / found.median - 1 for _, each, found in known for sample in each]
    low, high = min([-CLOSEST, *shares]), min(BEYOND, max([CLOSEST, *shares]))

    def place(share: float) -> float:
        return 2 + 96 * (min(share, high) - low) / (high - low)

    drawn: list[DrawnStrip] = []
    for row, _, found in known:
        height = max(18.0, min(7.0 * len(row.draws), 60.0))
        interval = summarize([median(draw) for draw in row.draws if draw]).interval  # calls aren't independent
        start, end = (place(edge / found.median - 1) for edge in interval)
        said = f"95 % interval of the median: {' to '.join(map(seconds_shown, interval))}"
        if len(row.draws) == 1:
            said = "a single repetition has no interval"
        dots = [
            Dot(
                place(sample / found.median - 1),
                2 + height * (index + 0.5) / len(row.draws),
                "dot ring" if sample / found.median - 1 > high else "dot",
                f"repetition {index + 1}: {seconds_shown(sample)}",
            )
            for index, draw in enumerate(row.draws)
            for sample in draw
        ]
        value, band = f"median {seconds_shown(found.median)}", Piece("interval", start, end - start, said)
        drawn.append(DrawnStrip(row.name, value, height + 4, place(0), band, tuple(dots)))
    return drawn, (f"{low:+.0%}", f"{high:+.0%}")


def pareto(points: Sequence[ParityPoint], axis: str) -> Pareto:
    """Lay out the plot of seconds against parity."""
    known = [(point, point.psnr_db) for point in points if point.psnr_db is not None]
    unknown = [point for point in points if point.psnr_db is None]
    bottom = PLOT if known else TOP
    height = bottom + (BAND if unknown else 0)
    across = _seconds_axis([point.seconds for point in points])
    levels = _levels([psnr_db for _, psnr_db in known])

    def up(psnr_db: float) -> float:
        return bottom - (bottom - TOP) * (psnr_db - levels[0]) / (levels[-1] - levels[0])

    lines = [("grid", 0.0, up(level), 100.0, up(level)) for level in levels]
    labels = [Label(f"{level:.0f}", 0, up(level) - 4) for level in levels]
    for tick in _ticks([point.seconds for point in points]):
        lines.append(("grid", across(tick), TOP, across(tick), height))
        labels.append(Label(_tick_name(tick), across(tick), height + 16, "middle"))
    if unknown:
        labels.append(Label("parity not measured:", 0, bottom + 16))
    best = front(points)
    stair = _stair([(across(point.seconds), up(point.psnr_db or 0.0)) for point in best], bottom)
    places = [(point, across(point.seconds), up(psnr_db)) for point, psnr_db in known]
    places += [(point, across(point.seconds), bottom + BAND - 10.0) for point in unknown]
    spots = [Spot(point, x, y, point in best, _point_title(point)) for point, x, y in places]
    names, legend = _names([(point.name, x, y) for point, x, y in places], stair)
    labels += [
        Label(f"↑ closer: {axis}" if known else "", 0, 11),
        Label("← faster: seconds per generation", 0, height + 34),
    ]
    return Pareto(height + 40, tuple(lines + stair), tuple(spots), (*labels, *names), tuple(legend))


def _point_title(point: ParityPoint) -> str:
    parity = f"{figure(point.psnr_db)} dB" if point.psnr_db is not None else "parity not measured"
    return f"{point.name}: {seconds_shown(point.seconds)}, {parity}"


def _stair(corners: Sequence[tuple[float, float]], bottom: float) -> list[tuple[str, float, float, float, float]]:
    """The Pareto front as steps: no row is above or to the left of it."""
    if not corners:
        return []
    upright = [(corners[0][0], corners[0][1], bottom), *((x, before, y) for (_, before), (x, y) in pairwise(corners))]
    ends = [*(x for x, _ in corners[1:]), 100.0]
    level = [("front", x, y, end, y) for (x, y), end in zip(corners, ends, strict=True)]
    return [("front", x, start, x, end) for x, start, end in upright] + level


def _seconds_axis(seconds: Sequence[float]) -> Callable[[float], float]:
    """Map seconds to percent, on a logarithmic scale if they differ much."""
    low, high = min(seconds), max(seconds)
    wide = _is_wide(seconds)
    start, end = (math.log(low), math.log(high)) if wide else (0.0, high or 1.0)

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * ((math.log(value) if wide else value) - start) / (end - start)

    return across


def _is_wide(seconds: Sequence[float]) -> bool:
    return min(seconds) > 0 and max(seconds) / min(seconds) > WIDE_RANGE


def _ticks(seconds: Sequence[float]) -> list[float]:
    """Three to six round numbers of seconds for the axis."""
    low, high = min(seconds), max(seconds) or 1.0
    if not _is_wide(seconds):
        step = _round_step(high / 3)
        return [step * index for index in range(1, int(high / step) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [first * 10.0**power for power in decades for first in (1, 2, 5) if low <= first * 10.0**power <= high]
    coarse = [value for value in fine if f"{value:e}".startswith("1.0")]
    return coarse if len(fine) > 5 and len(coarse) > 1 else fine[:: math.ceil(len(fine) / 5)]


def _tick_name(seconds: float) -> str:
    return f"{1e3 * seconds:g} ms" if seconds < 1 else f"{seconds:g} s"


def _levels(values: Sequence[float]) -> list[float]:
    """Two or more round numbers that enclose all values."""
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    step = _round_step(max(high - low, 4.0) / 4)
    first, last = math.floor(low / step - 0.2), math.ceil(high / step + 0.05)  # names need room below the lowest dot
    return [step * index for index in range(first, last + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that isn't below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(first * power for first in (1, 2, 5, 10) if first * power >= least * (1 - 1e-9))


Box = tuple[float, float, float, float]
"""Left, right, top and bottom in pixels."""


def _names(
    spots: Sequence[tuple[str, float, float]], stair: Sequence[tuple[str, float, float, float, float]]
) -> tuple[list[Label], list[str]]:
    """Place each name beside its dot, so that it covers no dot, line of the front or other name on a narrow screen.

    A name without such a place is in the legend, with a number beside the dot if that fits.
    """
    wide = NARROW / 100
    taken: list[Box] = [(x * wide - 6, x * wide + 6, y - 6, y + 6) for _, x, y in spots]
    taken += [(x * wide - 1, end * wide + 1, min(y, to) - 1, max(y, to) + 1) for _, x, y, end, to in stair]
    labels: list[Label] = []
    legend: list[str] = []
    for name, x, y in sorted(spots, key=lambda spot: spot[2]):
        number = str(len(legend) + 1)
        choices = [
            (text, right, y + shift, _beside(text, x * wide, y + shift, right))
            for text in (name, number)
            for shift in SHIFTS
            for right in (x < 50, x >= 50)
        ]
        fits = (one for one in choices if _inside(one[3]) and not any(_meet(one[3], other) for other in taken))
        found = next(fits, None)
        if found is None or found[0] is not name:
            legend.append(f"{number}: {name}")
        if found is not None:
            text, right, place, box = found
            taken.append(box)
            labels.append(Label(text, x, place + 4, "start" if right else "end", "name", 9 if right else -9))
    return labels, legend


def _beside(text: str, dot: float, y: float, right: bool) -> Box:
    left = dot + 9 if right else dot - 9 - LETTER * len(text)
    return left, left + LETTER * len(text), y - 6, y + 6


def _inside(box: Box) -> bool:
    return box[0] >= 0 and box[1] <= NARROW and box[2] >= 0


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
