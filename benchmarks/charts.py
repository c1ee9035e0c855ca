"""Pictures of measurements as inline SVG.

Places across are percentages and places down are pixels, so that a drawing takes any width while its letters keep
their size: no drawing is made twice for a phone. Colours are classes of the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from .markup import Html, number, tag
from .reading import Point, figure, front, seconds_shown
from .summary import summarize

NARROW = 330
"""Pixels: the narrowest drawing. Letters that don't meet there meet nowhere."""
LETTER = 6.6
"""Pixels: the width of a letter, on the wide side."""
LINE = 14
TOP = 36
PLOT = 280
"""Pixels from the top: a line of letters, and where the Pareto picture begins and ends."""
SHIFTS = (0, -14, 14, -28, 28, -42, 42)
"""Pixels up and down that a name may be from its dot."""
ROOM = 20
"""Percent from both edges, between which the strips' middle can be named."""
LEFT, RIGHT = 8.0, 94.0
"""Percent: where the Pareto picture's axis begins and ends."""
BAND = 46
"""Pixels below the picture, for what has seconds and no parity."""
WIDE_RANGE = 8
"""Largest over smallest, from which on seconds are drawn on a logarithmic axis."""
BEYOND = 1.0
"""Samples further than this above their median, as a share of it, are drawn at the edge."""
CLOSEST = 0.02
"""Half the least range of the strips, as a share of the median: what is calmer than this looks calm."""


@dataclass(frozen=True)
class Bar:
    """One stacked bar."""

    name: str
    value: str
    """What is written at its end of the line."""
    pieces: tuple[tuple[str, float, str], ...]
    """Class, length and what it is, from left to right."""
    marks: tuple[tuple[float, str], ...] = ()
    """Strokes across the bar, and what they are."""


@dataclass(frozen=True)
class Strip:
    """The samples of one row, by draw."""

    name: str
    draws: tuple[tuple[float, ...], ...]
    """Seconds; one or more of each draw."""

    @property
    def samples(self) -> tuple[float, ...]:
        """All of them."""
        return tuple(sample for draw in self.draws for sample in draw)


def bars(rows: Sequence[Bar], what: str) -> Html:
    """Stacked bars on one scale from zero, each under its name."""
    longest = max(max(sum(length for _, length, _ in row.pieces), *(at for at, _ in row.marks), 0.0) for row in rows)
    drawn: list[Html] = []
    for index, row in enumerate(rows):
        top, left = 42.0 * index, 0.0
        drawn += _heading(row.name, row.value, top)
        for kind, length, title in row.pieces:
            width = 100 * length / (longest or 1)
            place: dict[str, str | float] = {"x": _across(left), "y": top + 19, "width": _across(width), "height": 13}
            drawn.append(tag("rect", tag("title", title), class_=kind, **place))
            left += width
        for at, title in row.marks:
            x = _across(min(100 * at / (longest or 1), 99.7))
            drawn.append(tag("line", tag("title", title), x1=x, x2=x, y1=top + 16, y2=top + 35, class_="mark"))
    return _drawing(42 * len(rows), what, drawn)


def strips(rows: Sequence[Strip], what: str) -> Html:
    """Every sample as a dot: across how far it is from its row's median, down in the order of drawing.

    The line is the median and the band its 95 % interval. What lies beyond the edge is a ring on it. Rows whose
    median is zero can't be drawn and are left out.
    """
    known = [(row, found) for row in rows if (found := summarize(row.samples)).median > 0]
    shares = [sample / found.median - 1 for row, found in known for sample in row.samples]
    low, high = min([-CLOSEST, *shares]), min(BEYOND, max([CLOSEST, *shares]))

    def place(share: float) -> float:
        return 2 + 96 * (min(share, high) - low) / (high - low)

    drawn: list[Html] = []
    top = 0.0
    for row, found in known:
        height = max(18.0, min(7.0 * len(row.draws), 60.0))
        interval = summarize([median(draw) for draw in row.draws if draw]).interval  # calls aren't independent
        start, end = (place(edge / found.median - 1) for edge in interval)
        said = tag("title", f"95 % interval of the median: {' to '.join(map(seconds_shown, interval))}")
        drawn += _heading(row.name, f"median {seconds_shown(found.median)}", top)
        band: dict[str, str | float] = {"x": _across(start), "y": top + 19, "width": _across(end - start)}
        drawn.append(tag("rect", said, height=height + 4, class_="interval", **band))
        drawn.append(_upright(place(0), top + 19, top + 23 + height, "median"))
        for index, draw in enumerate(row.draws):
            y = top + 21 + height * (index + 0.5) / len(row.draws)
            for sample in draw:
                share = sample / found.median - 1
                title = tag("title", f"draw {index + 1}: {seconds_shown(sample)}")
                kind = "dot ring" if share > high else "dot"
                drawn.append(tag("circle", title, cx=_across(place(share)), cy=y, r=2.4, class_=kind))
        top += height + 34
    drawn += [_text(_signed(low), 0, top + 8, kind="soft"), _text(_signed(high), 100, top + 8, "end", "soft")]
    if ROOM < place(0) < 100 - ROOM:
        drawn.append(_text("median", place(0), top + 8, "middle", "soft"))
    return _drawing(top + 14, what, drawn)


def _signed(share: float) -> str:
    return f"{share:+.0%}"


def pareto(points: Sequence[Point], axis: str, what: str) -> Html:
    """Seconds across, parity up, and the front that nothing beats in both."""
    known = [(point, point.psnr_db) for point in points if point.psnr_db is not None]
    unknown = [point for point in points if point.psnr_db is None]
    bottom = PLOT if known else TOP
    height = bottom + (BAND if unknown else 0)
    across = _seconds_axis([point.seconds for point in points])
    levels = _levels([psnr_db for _, psnr_db in known])
    drawn: list[Html] = []

    def up(psnr_db: float) -> float:
        return bottom - (bottom - TOP) * (psnr_db - levels[0]) / (levels[-1] - levels[0])

    for level in levels:
        drawn.append(tag("line", x1="0", x2="100%", y1=up(level), y2=up(level), class_="grid"))
        drawn.append(_text(f"{level:.0f}", 0, up(level) - 4, kind="soft"))
    for tick in _ticks([point.seconds for point in points]):
        drawn.append(_upright(across(tick), TOP, height, "grid"))
        drawn.append(_text(_tick_name(tick), across(tick), height + 16, "middle", "soft"))
    if unknown:
        drawn.append(_text("parity not measured:", 0, bottom + LINE + 2, kind="soft"))
    spots = [(point, across(point.seconds), up(psnr_db)) for point, psnr_db in known]
    best = front(points)
    drawn += _steps([(across(point.seconds), up(point.psnr_db or 0.0)) for point in best], bottom)
    spots += [(point, across(point.seconds), bottom + BAND - 10.0) for point in unknown]
    for point, x, y in spots:
        drawn.append(_dot(point, x, y, point in best))
    drawn += _names([(point.name, x, y) for point, x, y in spots])
    drawn.append(_text(f"↑ nearer: {axis}" if known else "", 0, LINE - 3, kind="soft"))
    drawn.append(_text("← faster: seconds of a draw", 0, height + 34, kind="soft"))
    return _drawing(height + 40, what, drawn)


def _dot(point: Point, x: float, y: float, best: bool) -> Html:
    likeness = f"{figure(point.psnr_db)} dB" if point.psnr_db is not None else "parity not measured"
    said = tag("title", f"{point.name}: {seconds_shown(point.seconds)}, {likeness}")
    kind = ("own" if point.own else "other") + (" best" if best else "")
    if point.own:
        return tag("circle", said, cx=_across(x), cy=y, r=5.5, class_=kind)
    shape: dict[str, str | float] = {"width": 10, "height": 10, "transform": "translate(-5 -5)"}
    return tag("rect", said, x=_across(x), y=y, class_=kind, **shape)


def _steps(corners: Sequence[tuple[float, float]], bottom: float) -> list[Html]:
    """The front as a stair: what lies above it or to the left of it was reached by nobody."""
    if not corners:
        return []
    drawn = [_upright(corners[0][0], corners[0][1], bottom, "front")]
    ends = [*(x for x, _ in corners[1:]), 100.0]
    for (x, y), end in zip(corners, ends, strict=True):
        drawn.append(tag("line", x1=_across(x), x2=_across(end), y1=y, y2=y, class_="front"))
    drawn += [_upright(x, before, y, "front") for (_, before), (x, y) in pairwise(corners)]
    return drawn


def _seconds_axis(seconds: Sequence[float]) -> Callable[[float], float]:
    """From seconds to percent: logarithmic where they lie far apart."""
    low, high = min(seconds), max(seconds)
    wide = _is_wide(seconds)
    start, end = (math.log(low), math.log(high)) if wide else (0.0, high or 1.0)

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * ((math.log(value) if wide else value) - start) / (end - start)

    return across


def _is_wide(seconds: Sequence[float]) -> bool:
    return min(seconds) > 0 and max(seconds) / min(seconds) > WIDE_RANGE


def _ticks(seconds: Sequence[float]) -> list[float]:
    """Round numbers of seconds on the axis: three to six."""
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
    """Round numbers that enclose all values, two or more."""
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


def _names(spots: Sequence[tuple[str, float, float]]) -> list[Html]:
    """Each name beside its dot, where it covers no dot and no other name even on the narrowest screen."""
    taken = [(x / 100 * NARROW - 6, x / 100 * NARROW + 6, y - 6, y + 6) for _, x, y in spots]
    drawn: list[Html] = []
    for name, x, y in sorted(spots, key=lambda spot: spot[2]):
        choices = [_beside(name, x, y + shift, right) for shift in SHIFTS for right in (x < 50, x >= 50)]
        fits = (one for one in choices if one.inside and not any(_meet(one.box, other) for other in taken))
        chosen = next(fits, choices[0])
        taken.append(chosen.box)
        drawn.append(_text(name, x, chosen.y, "start" if chosen.right else "end", dx=9 if chosen.right else -9))
    return drawn


@dataclass(frozen=True)
class _Spot:
    """Where a name may stand."""

    box: tuple[float, float, float, float]
    """Left, right, top and bottom in pixels."""
    right: bool
    y: float

    @property
    def inside(self) -> bool:
        return self.box[0] >= 0 and self.box[1] <= NARROW and self.box[2] >= 0


def _beside(name: str, x: float, y: float, right: bool) -> _Spot:
    length, dot = LETTER * len(name), x / 100 * NARROW
    left = dot + 9 if right else dot - 9 - length
    return _Spot((left, left + length, y - 6, y + 6), right, y + 4)


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _heading(name: str, value: str, top: float) -> list[Html]:
    return [_text(name, 0, top + 13), _text(value, 100, top + 13, "end", "soft")]


def _text(text: str, x: float, y: float, anchor: str = "start", kind: str = "name", dx: float | None = None) -> Html:
    return tag("text", text, x=_across(x), y=y, dx=dx, text_anchor=anchor, class_=kind)


def _upright(x: float, start: float, end: float, kind: str) -> Html:
    return tag("line", x1=_across(x), x2=_across(x), y1=start, y2=end, class_=kind)


def _across(percent: float) -> str:
    return f"{number(percent)}%"


def _drawing(height: float, what: str, drawn: Sequence[Html]) -> Html:
    return tag("svg", tag("title", what), *drawn, width="100%", height=height, role="img")
