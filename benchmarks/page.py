"""A self-contained HTML page of measurements: no scripts, no network, images and charts embedded.

`page.html` is its template. All values are escaped, so that no record can inject markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..core.units import counted
from .aspects import request_title
from .charts import Bar, Strip, bars, pareto, strips
from .columns import TABLES, stage_seconds, table
from .grid import AMPLIFIED, PictureCell, cells
from .headline import headline
from .reading import (
    UNSTABLE,
    Section,
    axis_of,
    bytes_shown,
    checkpoint_title,
    failure,
    figure,
    idle,
    machine_title,
    models_title,
    points,
    seconds_shown,
    setting_title,
    shared,
    shown_name,
    title_of,
    unbeaten,
)
from .records import STAGES, Measurement, StageName

STAGE_NAMES: dict[StageName, str] = {
    "text_encoder": "text encoder",
    "image_encoder": "image encoder",
    "denoiser": "denoiser",
    "vae_decoder": "decoder",
    "host": "host",
}
MEMORY_NAMES = {"before": "before loading", "load": "after loading", "run": "generating"}


def page(sections: Sequence[Section], title: str | None = None) -> str:
    """The page as HTML text."""
    named = (
        *(bytes_shown, counted, failure, figure, headline, idle, machine_title, models_title, setting_title),
        *(table, title_of, shown_name, grids, pareto_of, stage_bars, memory_bars, strips_of, facts, libraries, omitted),
    )
    given: dict[str, Any] = {one.__name__: one for one in named} | {"sections": sections}
    given |= {"UNSTABLE": UNSTABLE, "AMPLIFIED": AMPLIFIED, "STAGES": STAGE_NAMES, "MEMORY": MEMORY_NAMES}
    return template("page.html").render(given, OVERVIEW=TABLES["Overview"], title=title or page_title(sections))


def page_title(sections: Sequence[Section]) -> str:
    """The checkpoints that were measured, and the machine."""
    checkpoints = dict.fromkeys(checkpoint_title(model) for section in sections for model in section.models)
    machines = dict.fromkeys(machine_title(section.first.machine) for section in sections)
    where = next(iter(machines)) if len(machines) == 1 else counted(len(machines), "machine")
    return f"{', '.join(checkpoints)} on {where}"


@cache
def template(name: str) -> Template:
    """A template of this folder, which escapes all values."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["failed"] = _failed
    made.filters["number"] = _number
    return made.get_template(name)


def _failed(value: Any) -> bool:
    return failure(value) is not None


def _number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def pareto_of(section: Section) -> object:
    """The plot of seconds against parity with its caption; None for a single subject."""
    axis = axis_of(section.engines)
    spots = points(section, axis)
    if len(spots) < 2:
        return None
    best = ", ".join(point.name for point in unbeaten(spots))
    said = f"The line is the Pareto front of the medians. Nothing is significantly faster and as close as: {best}."
    return pareto(spots, axis.name if axis else ""), said if best else ""


def stage_bars(section: Section) -> object:
    """Stacked bars of the median seconds of each stage."""
    return bars([_stage_bar(section, row) for row in section.engines])


def _stage_bar(section: Section, row: Measurement) -> Bar:
    pieces: list[tuple[str, float, str]] = []
    for stage in STAGES[:-1]:
        if (measured := stage_seconds(row, stage)) is None:
            continue
        seconds = max(measured, 0.0)
        pieces.append((f"s-{stage}", seconds, f"{STAGE_NAMES[stage]}: {seconds_shown(seconds)}"))
    return Bar(shown_name(row, section), seconds_shown(stage_seconds(row, "total") or 0.0), tuple(pieces))


def memory_bars(section: Section) -> object:
    """Stacked bars of memory, for rows that have all figures; None if no row has."""
    found = [bar for row in section.engines if (bar := _memory_bar(section, row)) is not None]
    return bars(found) if found else None


def _memory_bar(section: Section, row: Measurement) -> Bar | None:
    held = row.memory
    if held is None or None in (before := (held.before_bytes, held.loaded_bytes, held.run_peak_bytes)):
        return None
    first, after, highest = (each or 0 for each in before)
    loaded = max(after - first, 0)
    run = max(highest - first - loaded, 0)
    pieces = (
        ("s-before", float(first), f"before loading: {bytes_shown(first)}"),
        ("s-load", float(loaded), f"loading added {bytes_shown(loaded)}"),
        ("s-run", float(run), f"generating added {bytes_shown(run)}"),
    )
    peak = held.load_peak_bytes
    marks = ((float(peak), f"peak while loading: {bytes_shown(peak)}"),) if peak is not None else ()
    return Bar(title_of(row, section), bytes_shown(held.peak_bytes), pieces, marks)


def strips_of(section: Section, what: Literal["total", "denoiser"]) -> object:
    """Every repetition, or every denoiser call; None if there are none."""
    each = [
        Strip(
            shown_name(row, section), tuple((draw.total,) if what == "total" else draw.denoiser for draw in row.draws)
        )
        for row in section.engines
    ]
    found = strips(each)
    return found if found[0] else None


def grids(section: Section) -> list[tuple[str, list[PictureCell]]]:
    """Images by checkpoint: those of different checkpoints aren't compared."""
    each = [Section(tuple(row for row in section.rows if row.model == model)) for model in section.models]
    several = len(each) > 1
    return [
        (f"Images, {one.first.model.name}" if several else "Images", found) for one in each if (found := cells(one))
    ]


def facts(section: Section) -> list[tuple[str, str]]:
    """Names and values that describe the machine, the run and the bundles."""
    first, machine = section.first, section.first.machine
    gpus = ["; ".join(str(value) for value in gpu.model_dump().values() if value is not None) for gpu in machine.gpus]
    found = [
        ("CPU", f"{machine.cpu}, {counted(machine.cores, 'core')}, {machine.architecture}"),
        ("instructions", " ".join(machine.instructions)),
        *(("GPU", gpu) for gpu in gpus),
        ("memory", f"{bytes_shown(machine.memory_bytes)}, {bytes_shown(machine.available_bytes)} of it free"),
        ("system", ", ".join(filter(None, (machine.system, machine.libc, f"Python {machine.python}")))),
        ("load average at the start", figure(first.load_average, 2)),
        ("cores used by others", figure(first.other_cores, 2)),
        ("processes", "one at a time, a new one for each repetition" if first.apart else ""),
        ("environment", " ".join(f"{name}={value}" for name, value in first.environment.items())),
        ("latentc", " ".join(filter(None, (first.latentc, first.commit)))),
        ("run", f"{first.run}, {first.time}"),
    ]
    for model in section.models:
        digests = ", ".join(f"{name} {digest[:12]}" for name, digest in model.digests.items())
        found.append(("bundle", f"{model.name}, {model.family}, exported by latentc {model.latentc}"))
        found.append(("parts", digests))
    found.append(("request", request_title(first)))
    return [(name, value) for name, value in found if value]


def libraries(section: Section) -> list[tuple[str, str]]:
    """Versions of libraries, with the titles of their rows unless all rows share them."""
    return sorted(
        shared(
            section, [(row, f"{name} {said}") for row in section.rows for name, said in row.subject.versions.items()]
        )
    )


def omitted(section: Section) -> list[tuple[str, str]]:
    """What the figures don't include, each sentence once."""
    return shared(section, [(row, sentence) for row in section.rows for sentence in row.leaves_out])
