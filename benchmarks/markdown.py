"""Measurements as Markdown: a table for a README, with its headline, failures and conditions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .columns import ON_GPU, SUMMARY, FigureTable, table
from .headline import headline
from .reading import (
    Section,
    by_text,
    failure,
    machine_title,
    models_title,
    setting_title,
    shared,
    shown_name,
    title_of,
)

ENTITY = re.compile(r"&(?=#?\w+;)")
SPECIAL = re.compile(r"([\\`*_{}\[\]#|~])")


def markdown(sections: Sequence[Section]) -> str:
    """For each section: headline, table, machine, failures, unstable times, engines, and what the figures leave out."""
    return "\n\n".join(block for section in sections for block in _section(section)) + "\n"


def markdown_table(found: FigureTable) -> str:
    """A table without heading and legend."""
    lines = [f"| | {' | '.join(map(plain, found.columns))} |", "|---|" + "--:|" * len(found.columns)]
    for line in found.lines:
        cells = line.cells if line.cells is not None else ("failed", *[""] * (len(found.columns) - 1))
        lines.append(f"| {plain(line.name)} | {' | '.join(map(plain, cells))} |")
    return "\n".join(lines)


def _blocks(found: FigureTable | None) -> list[str]:
    return [markdown_table(found), found.note] if found else []


def _section(section: Section) -> list[str]:
    first, found = section.first, table(SUMMARY, section)
    random = ", random weights" if any(model.random for model in section.models) else ""
    title = f"### {plain(models_title(section))}, {setting_title(first)}{random}"
    load = first.load_average
    where = [
        f"On {plain(machine_title(first.machine))}",
        f"{plain(first.machine.system)}",
        f"latentc {plain(first.latentc)}" + (f" at {plain(first.commit[:12])}" if first.commit else ""),
        plain(first.time),
        *([f"load average {load:.1f} at the start"] if load is not None else []),
        *(["one process at a time"] if first.apart else []),
    ]
    gist = [plain(" ".join(said))] if (said := headline(section)) else []
    lines = [title, *gist, *_blocks(found), *_blocks(table(ON_GPU, section)), "; ".join(where) + "."]
    failed = [
        f"- {plain(title_of(row, section))} failed: {plain(why)}" for row in section.rows if (why := failure(row))
    ]
    failed += [
        f"- {plain(title_of(row, section))} is below the parity gate: {plain(text)}"
        for row in section.engines
        if row.parity
        for text in row.parity.failures
    ]
    shaky = [
        f"- {plain(shown_name(row, section))} was not stable: {plain(row.stability or 'not judged')}."
        for row in section.measured
        if not row.stable
    ]
    engines = by_text(
        (engine, title_of(row, section)) for row in section.measured for engine in row.subject.engines.values()
    )
    ran = [f"- {plain(', '.join(names))}: {plain(engine)}" for engine, names in engines]
    omitted = shared(section, [(row, sentence) for row in section.rows for sentence in row.leaves_out])
    out = [f"- {plain(text)}" + (f" ({plain(names)})" if names else "") for text, names in omitted]
    lists = [failed + shaky, ran and ["Engines:", "", *ran], out and ["Not included in the figures:", "", *out]]
    return lines + ["\n".join(items) for items in lists if items]


def plain(text: str) -> str:
    """Text on one line, with Markdown and HTML escaped."""
    return SPECIAL.sub(r"\\\1", ENTITY.sub("&amp;", " ".join(text.split())).replace("<", "&lt;").replace(">", "&gt;"))
