"""Measurements as Markdown: a table for a README, and what must stand beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .headline import headline
from .reading import (
    UNSTABLE,
    Section,
    by_text,
    bytes_shown,
    failure,
    figure,
    idle,
    machine_title,
    models_title,
    picture_psnr,
    ratio_shown,
    rival,
    setting_title,
    shown_name,
    step_psnr,
    title_of,
    vram_shown,
)
from .records import Measurement

ENTITY = re.compile(r"&(?=#?\w+;)")
SPECIAL = re.compile(r"([\\`*_{}\[\]#|~])")


def markdown(sections: Sequence[Section]) -> str:
    """A table for each section, then what failed, what wasn't stable, and where it was measured."""
    return "\n\n".join(block for section in sections for block in _section(section)) + "\n"


def _section(section: Section) -> list[str]:
    first, against = section.first, rival(section)
    columns = ["whole draw, s", "one step, s", "TFLOP/s", "memory", "one step, dB", "worst picture, dB"]
    if against is not None:
        columns.insert(1, f"x {plain(title_of(against, section))}")
    if any(vram_shown("peak_bytes", row) for row in section.rows):
        columns += ["GPU resting", "GPU peak"]
    random = ", random weights" if any(model.random for model in section.models) else ""
    title = f"### {plain(models_title(section))}, {setting_title(first.request)}{random}"
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    lines += [_line(section, row, against, columns) for row in section.rows]
    load = first.load_average
    where = [
        f"On {plain(machine_title(first.machine))}",
        f"{plain(first.machine.system)}",
        f"latentc {plain(first.latentc)}" + (f" at {plain(first.commit[:12])}" if first.commit else ""),
        plain(first.time),
        *([f"load {load:.1f} before"] if load is not None else []),
        *(["one process at a time"] if first.apart else []),
    ]
    gist = [plain(" ".join(said))] if (said := headline(section)) else []
    told = [title, *gist, "\n".join(lines), NOTE, "; ".join(where) + "."]
    failed = [
        f"- {plain(title_of(row, section))} failed: {plain(why)}" for row in section.rows if (why := failure(row))
    ]
    failed += [
        f"- {plain(title_of(row, section))} is below the gate of parity: {plain(text)}"
        for row in section.engines
        if row.parity
        for text in row.parity.failures
    ]
    shaky = [
        f"- {plain(shown_name(row, section))} wasn't stable: {plain(row.stability or 'not judged')}."
        for row in section.measured
        if not row.stable
    ]
    engines = by_text(
        (engine, title_of(row, section)) for row in section.measured for engine in row.subject.engines.values()
    )
    ran = [f"- {plain(', '.join(names))}: {plain(engine)}" for engine, names in engines]
    omitted = by_text((sentence, title_of(row, section)) for row in section.rows for sentence in row.leaves_out)
    everybody = len({title_of(row, section) for row in section.rows})
    out = [f"- {plain(text)}{_whose(names, everybody)}" for text, names in omitted]
    lists = [failed + shaky, ran and ["What ran:", "", *ran], out and ["What the numbers leave out:", "", *out]]
    return told + ["\n".join(items) for items in lists if items]


NOTE = (
    "Medians of the measured draws; one step is one denoiser call. Memory is the most that the process held. dB: how "
    f"near to the reference, higher is nearer. {UNSTABLE} marks times that weren't stable; times whose 95 % intervals "
    "overlap tie."
)


def _line(section: Section, row: Measurement, against: Measurement | None, columns: Sequence[str]) -> str:
    whole, step = row.summary("total"), row.summary("denoiser")
    if failure(row) is not None or whole is None:
        return f"| {plain(title_of(row, section))} | failed |" + " |" * (len(columns) - 1)
    values = [
        f"{figure(whole.median)} ± {whole.spread:.0%}",
        figure(step.median if step else None),
        "" if idle(row) else figure(row.tflops("denoiser")),
        bytes_shown(row.memory.peak_bytes if row.memory else None),
        "" if idle(row) else figure(step_psnr(row)),
        "" if idle(row) else figure(picture_psnr(row)),
    ]
    if against is not None:
        values.insert(1, ratio_shown(row, against))
    if "GPU peak" in columns:
        values += [vram_shown("resting_bytes", row), vram_shown("peak_bytes", row)]
    return f"| {plain(shown_name(row, section))} | {' | '.join(values)} |"


def _whose(names: Sequence[str], everybody: int) -> str:
    return "" if len(names) == everybody else f" ({plain(', '.join(names))})"


def plain(text: str) -> str:
    """Text that Markdown takes as it stands, on one line."""
    return SPECIAL.sub(r"\\\1", ENTITY.sub("&amp;", " ".join(text.split())).replace("<", "&lt;").replace(">", "&gt;"))
