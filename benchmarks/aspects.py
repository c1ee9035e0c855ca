"""What rows of two files must have in common, and in which of these they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .reading import machine_title, setting_title
from .records import THREADS, Measurement


def request_title(row: Measurement) -> str:
    """What was asked for beside the size: prompts, guidance and seed."""
    request = row.request
    prompts = repr(request.prompt) + (f" without {request.negative_prompt!r}" if request.negative_prompt else "")
    return f"{prompts}, guidance {request.guidance:g}, seed {request.seed}"


def threads_title(row: Measurement) -> str:
    """How many threads its process was given to compute in."""
    count = row.environment.get(THREADS)
    return f"{THREADS}={count}" if count else f"no {THREADS}"


ASPECTS: dict[str, tuple[Callable[[Measurement], str], str]] = {
    "machine": (lambda row: machine_title(row.machine), "compare machines side by side with --machines"),
    "checkpoint": (lambda row: row.model.name, "measure the same bundle"),
    "profile or baseline": (lambda row: row.subject.name, "measure the same ones"),
    "setting": (lambda row: setting_title(row.request), "give the same --size, --batch and --steps"),
    "request": (request_title, "give the same prompt, --guidance and seed"),
    "threads": (threads_title, "give the same --threads"),
    "processes": (lambda row: "one at a time" if row.apart else "all in memory", "give --apart to both, or to neither"),
}
"""What rows must have in common to be compared, and what to do where they haven't."""
MOST = 3
"""Names that a line lists."""


def apart(old: Sequence[Measurement], new: Sequence[Measurement]) -> str:
    """What keeps two files from being compared, in a line: the aspect in which they differ, and what to do.

    Where they differ in several, or only in combinations, those of the two rows that have most in common.
    """
    sides = [{name: {of(row) for row in rows} for name, (of, _) in ASPECTS.items()} for rows in (old, new)]
    differ = [name for name in ASPECTS if not sides[0][name] & sides[1][name]]
    if not differ:
        pairs = [[name for name, (of, _) in ASPECTS.items() if of(one) != of(two)] for one in old for two in new]
        differ = min(pairs, key=len)
        return f"no row of one has the {' and '.join(differ)} of a row of the other; {_advice(differ)}"
    said = [f"another {name} ({_some(sides[0][name])} against {_some(sides[1][name])})" for name in differ]
    return f"{', '.join(said)}; {_advice(differ)}"


def _advice(differ: Sequence[str]) -> str:
    return ", and ".join(ASPECTS[name][1] for name in differ)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:MOST]) + (f" and {len(listed) - MOST} more" if len(listed) > MOST else "")
