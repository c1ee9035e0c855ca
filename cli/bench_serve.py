"""`latentc bench-serve`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.markup import escape

from ..benchmarks.plan import REPEAT
from ..benchmarks.served import ServePlan, bench_serve
from ..benchmarks.served_records import ServedMeasurement
from ..benchmarks.summary import Summary, summarize
from ..core.bundle import open_bundle
from ..core.progress import quiet as silent
from ..profiles import Profile
from .progress import on_stderr
from .show import table
from .text import Screen, say
from .text import as_json as json_text


def measure(folder: Path, profile: Profile, plan: ServePlan, output: Path, *, quiet: bool, as_json: bool) -> None:
    """Run a plan and print the measurement."""
    row = bench_serve(open_bundle(folder), profile, plan, output, silent if quiet or as_json else on_stderr)
    if as_json:
        say(json_text(json.loads(row.model_dump_json(exclude_none=True)), indent=None))
        return
    console = Screen(highlight=False)
    for sentence in sentences(row):
        console.print(sentence, markup=False)
    listed = table("Latency in seconds", "load", *LEVELS, right=LEVELS)
    for cells in levels(row):
        listed.add_row(*map(escape, cells))
    console.print(listed)
    console.print(f"Every sample is in {output}.", markup=False)


LEVELS = ("requests/s", "p50", "p90", "p99", "answered", "refused", "batches (size: number)")


def levels(row: ServedMeasurement) -> list[tuple[str, ...]]:
    """The lines of the table of latencies."""
    lines: list[tuple[str, ...]] = []
    for level in row.levels:
        found = summarize(level.seconds) if level.seconds else None
        times = ("-",) * 3 if found is None else tuple(f"{one:.2f}" for one in (found.median, found.p90, found.p99))
        refused = sum(level.refused.values())
        lines.append(
            (
                f"{level.share:.0%}",
                f"{level.rate:.2f}",
                *times,
                str(len(level.seconds)),
                str(refused),
                sizes(level.batches),
            )
        )
    return lines


def sizes(batches: dict[str, int]) -> str:
    """Batches by their size."""
    return ", ".join(f"{size}: {number}" for size, number in batches.items()) or "-"


def shown_ratio(ratio: Summary) -> str:
    """A ratio with its interval."""
    low, high = ratio.interval
    known = "95 % interval" if ratio.count >= REPEAT else "lowest and highest"
    return f"{ratio.median:.3f} ({known} {low:.3f} to {high:.3f}, {ratio.count} rounds)"


def sentences(row: ServedMeasurement) -> list[str]:
    """What a row says beside its latencies."""
    found: list[str] = []
    if (ratio := row.ratio) is not None:
        bare, served = (summarize([getattr(one, name) for one in row.rounds]).median for name in ("bare", "served"))
        found.append(
            f"{row.model.name} with {row.profile}, {row.request.steps} steps: {served:.2f} images per second at "
            f"saturation, {bare:.2f} without a server; ratio {shown_ratio(ratio)}. Batches: {sizes(row.batches)}."
        )
    if (cpu := row.cpu_ratio) is not None:
        found.append(f"CPU time of an image, with a server over without: {shown_ratio(cpu)}.")
    if row.memory:
        held = ", ".join(f"{one.pss_bytes / 1e6:.0f} MB after {one.requests}" for one in row.memory)
        growth = row.growth_kb
        found.append(f"Memory (PSS): {held} requests" + ("." if growth is None else f"; {growth:+.1f} kB per request."))
    if row.disconnected is not None:
        left = row.disconnected
        found.append(
            f"The engine was free {left.seconds * 1e3:.0f} ms ({left.steps:.1f} steps) after a client had left."
        )
    if row.load_average is not None and row.load_average > 0.5:
        found.append(f"The machine was busy: its load average was {row.load_average:.1f} when the run started.")
    return found
