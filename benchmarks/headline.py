"""The headline of a section: which configuration is fastest, by how much, and which reservations apply.

Page, Markdown, terminal and `compare` use the same rule. Two times whose 95 % intervals of the median overlap tie. A
winner is named only if its time is stable and no other interval overlaps its own. A configuration below the parity gate
can't win.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.units import listed
from .reading import (
    Section,
    at_fault,
    disturbance,
    failure,
    figure,
    rival,
    seconds_shown,
    setting_title,
    speedup,
    spread_shown,
    step_psnr,
    tied,
    title_of,
)
from .records import Measurement


def headline(section: Section) -> tuple[str, ...]:
    """Sentences without markup: the winner or the tie, then the reservations. Empty if nothing was measured."""
    if not section.engines:
        return ()
    near = [row for row in section.engines if not at_fault(row)] or list(section.engines)
    leaders = [row for row in near if row is near[0] or tied(row, near[0])]
    said = [*_lead(section, leaders), *_against(section, near, leaders)]
    return (*said, *_reservations(section))


def winner(section: Section) -> Measurement | None:
    """The fastest row; None for a tie, a single row, an unstable time, and rows below the parity gate."""
    near = [row for row in section.engines if not at_fault(row)]
    if not near or len(section.engines) < 2 or not near[0].stable or any(tied(row, near[0]) for row in near[1:]):
        return None
    return near[0]


def _lead(section: Section, leaders: Sequence[Measurement]) -> list[str]:
    first, drawn = leaders[0], setting_title(section.first)
    if len(leaders) > 1:
        names = [f"{title_of(row, section)} ({_seconds(row)})" for row in leaders]
        return [f"{drawn}: no winner, {listed(names)} tie."]
    name, seconds = title_of(first, section), _seconds(first)
    psnr_db = step_psnr(first)
    parity = f"; one step agrees with the reference to {figure(psnr_db)} dB" if psnr_db is not None else ""
    if winner(section) is first:
        gate = "" if section.engines[0] is first else " that reaches the parity gate"
        return [f"{drawn}: {name} is the fastest{gate}: {seconds} per generation{parity}."]
    alone = "" if len(section.engines) == 1 else "no winner, "
    shaky = "" if first.stable else ", and this time is not stable"
    return [f"{drawn}: {alone}{name} takes {seconds} per generation{shaky}{parity}."]


def _against(section: Section, near: Sequence[Measurement], leaders: Sequence[Measurement]) -> list[str]:
    """Compare the fastest profile with the fastest baseline."""
    baseline = rival(section)
    own = next((row for row in near if row.subject.kind == "profile"), None)
    ratio = speedup(own, baseline) if own is not None else None
    if own is None or baseline is None or ratio is None:
        return []
    mine, theirs = title_of(own, section), f"{title_of(baseline, section)}, the fastest baseline"
    if tied(own, baseline):
        return [] if own in leaders and baseline in leaders else [f"{mine} ties with {theirs}."]
    about = "" if own.stable and baseline.stable else "about "
    if ratio >= 1:
        return [f"{mine} is {about}{figure(ratio, 2)} times as fast as {theirs}."]
    return [f"{mine} takes {about}{figure(1 / ratio, 2)} times as long as {theirs}."]


def _reservations(section: Section) -> list[str]:
    shaky = [title_of(row, section) for row in section.engines if not row.stable]
    far = [title_of(row, section) for row in section.engines if at_fault(row)]
    failed = [title_of(row, section) for row in section.rows if failure(row) is not None]
    said = [f"Not stable: {', '.join(shaky)}."] if shaky else []
    said += [f"Below the parity gate: {', '.join(far)}."] if far else []
    said += [f"Failed: {', '.join(failed)}."] if failed else []
    busy = disturbance(section.rows)
    return said + ([f"The machine was busy: {busy}."] if busy else [])


def _seconds(row: Measurement) -> str:
    whole = row.summary("total")
    return f"{seconds_shown(whole.median)} ± {spread_shown(whole)}" if whole else ""
