"""One HTML page of measurements, whole in itself: no script, no network, pictures and drawings inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..core.units import counted
from .charts import Bar, Strip, bars, pareto, strips
from .columns import (
    PARITY_NOTE,
    RATE_NOTE,
    STAGE_NAMES,
    START_NOTE,
    Column,
    parity_columns,
    rate_columns,
    seconds_columns,
    seconds_note,
    stage_seconds,
    start_columns,
)
from .grid import AMPLIFIED, Cell, cells
from .headline import headline
from .markup import Html, join, tag
from .reading import (
    UNSTABLE,
    Section,
    axis_of,
    by_text,
    bytes_shown,
    failure,
    figure,
    idle,
    machine_title,
    models_title,
    points,
    seconds_shown,
    setting_title,
    shown_name,
    step_psnr,
    title_of,
    unbeaten,
)
from .records import STAGES, Measurement, Model
from .style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load: nothing from anywhere."""


def page(sections: Sequence[Section], title: str) -> str:
    """The whole page, as text."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    rows = [row for section in sections for row in section.rows]
    failed = sum(failure(row) is not None for row in rows)
    count = f"{len(rows)} configuration{'s' if len(rows) > 1 else ''}, {failed} failed"
    body = [
        tag("header", tag("h1", title), tag("p", f"{count}. Measured with latentc bench.", class_="soft")),
        _overview(sections) if len(sections) > 1 else Html(),
        *(_section(section, index) for index, section in enumerate(sections, 1)),
    ]
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"


def _overview(sections: Sequence[Section]) -> Html:
    """By machine and profile: everything on one sheet, before the sections tell each."""
    lines: list[Html] = []
    for index, section in enumerate(sections, 1):
        row = section.first
        link = tag("a", f"{models_title(section)}, {setting_title(row.request)}", href=f"#s{index}")
        where = tag("span", f"{machine_title(row.machine)}; {row.time}", class_="soft")
        lines.append(tag("tr", tag("th", link, " ", where, colspan=5, scope="rowgroup", class_="group")))
        lines += [_overview_line(section, row) for row in section.rows]
    names = ("", "whole draw, s", "one step, s", "memory", "one step, dB")
    body = tag("tbody", *lines)
    return tag(
        "section",
        tag("h2", "By machine and profile"),
        tag("p", "Only what stands under one heading was measured in turn and may be compared.", class_="soft"),
        tag("div", tag("table", _head(names), body), class_="scroll"),
    )


def _overview_line(section: Section, row: Measurement) -> Html:
    whole, step = row.summary("total"), row.summary("denoiser")
    if failure(row) is not None or whole is None:
        return tag("tr", _name(section, row), tag("td", "failed", colspan=4, class_="bad"))
    values = (
        figure(whole.median),
        figure(step.median if step else None),
        bytes_shown(row.memory.peak_bytes if row.memory else None),
        "" if idle(row) else figure(step_psnr(row)),
    )
    return tag("tr", _name(section, row), *(tag("td", value) for value in values))


def _section(section: Section, index: int) -> Html:
    first = section.first
    noise = [model.name for model in section.models if model.random]
    random = f" Random weights: {', '.join(noise)}. Their pictures mean nothing, the seconds do." if noise else ""
    told = f"{machine_title(first.machine)}; {first.time}; guidance {first.request.guidance:g}.{random}"
    head = tag(
        "div",
        tag("h2", f"{models_title(section)}, {setting_title(first.request)}"),
        tag("p", told, class_="soft"),
        _gist(section),
    )
    pieces = [head, _failures(section), _gate(section)]
    if section.measured:
        pieces += [_seconds_table(section), _unstable(section), _drawings(section), *_tables(section)]
    pieces += [*_grids(section), _omissions(section), _provenance(section)]
    return tag("section", *pieces, id=f"s{index}")


def _gist(section: Section) -> Html:
    """The headline, for those who read no table."""
    said = headline(section)
    return tag("p", tag("b", said[0]), " ".join(("", *said[1:])), class_="gist") if said else Html()


def _failures(section: Section) -> Html:
    failed = [(title_of(row, section), reason) for row in section.rows if (reason := failure(row)) is not None]
    items = [tag("li", tag("b", name), f": {reason}") for name, reason in failed]
    return tag("div", tag("h3", "Failed"), tag("ul", *items), class_="note bad") if items else Html()


def _gate(section: Section) -> Html:
    """What isn't near enough to the reference, by the bench's own gate."""
    said = [(title_of(row, section), text) for row in section.engines if row.parity for text in row.parity.failures]
    items = [tag("li", tag("b", name), f": {text}") for name, text in said]
    return tag("div", tag("h3", "Below the gate of parity"), tag("ul", *items), class_="note bad") if items else Html()


def _unstable(section: Section) -> Html:
    rows = [row for row in section.measured if not row.stable]
    items = [tag("li", tag("b", title_of(row, section)), f": {row.stability or 'not judged'}") for row in rows]
    told = f"{UNSTABLE} Not stable: don't build on these times"
    return tag("details", tag("summary", told), tag("ul", *items), class_="note") if items else Html()


def _seconds_table(section: Section) -> Html:
    table = _table(section, section.rows, seconds_columns(section))
    return join(tag("h3", "Seconds"), table, tag("p", seconds_note(section), class_="soft small"))


def _tables(section: Section) -> list[Html]:
    """Rate, start and memory, parity."""
    return [
        *_titled("Rate", section, rate_columns(), RATE_NOTE),
        *_titled("Start and memory", section, start_columns(), START_NOTE),
        *_titled("Parity", section, parity_columns(section), PARITY_NOTE),
    ]


def _titled(title: str, section: Section, columns: Sequence[Column], note: str) -> list[Html]:
    """A table under its title; columns and rows that hold nothing are left out, and so is an empty table."""
    rows = [row for row in section.measured if not (idle(row) and title != "Start and memory")]
    told = [(name, read) for name, read in columns if any(read(row) for row in rows)]
    rows = [row for row in rows if any(read(row) for _, read in told)]
    return [tag("h3", title), _table(section, rows, told), tag("p", note, class_="soft small")] if told else []


def _table(section: Section, rows: Sequence[Measurement], columns: Sequence[Column]) -> Html:
    """A line for each row; what failed has no figures."""
    lines: list[Html] = []
    for row in rows:
        if failure(row) is None:
            cells_of = [tag("td", read(row)) for _, read in columns]
        else:
            cells_of = [tag("td", "failed", colspan=len(columns), class_="bad")]
        lines.append(tag("tr", _name(section, row), *cells_of))
    table = tag("table", _head(["", *(name for name, _ in columns)]), tag("tbody", *lines))
    return tag("div", table, class_="scroll")


def _head(names: Sequence[str]) -> Html:
    return tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))


def _name(section: Section, row: Measurement) -> Html:
    kind = "idle" if idle(row) else "own" if row.subject.kind == "profile" else "other"
    return tag("th", tag("span", class_=f"key {kind}"), shown_name(row, section), scope="row")


def _drawings(section: Section) -> Html:
    """Every drawing that the rows have figures for."""
    rows, axis = section.engines, axis_of(section.engines)
    if not rows:
        return Html()
    spots = points(section, axis)
    best = ", ".join(point.name for point in unbeaten(spots))
    said = f" The stair is the front by medians. Nothing here is beyond doubt both faster and nearer than: {best}."
    said = said if best else ""
    shapes = join(_key("own", "profile of latentc"), _key("other", "baseline"))
    picture = pareto(spots, axis.name if axis else "", "Seconds against parity")
    stages = bars([_stage_bar(section, row) for row in rows], "Time by stage")
    drawn = [
        _figure("Seconds against parity", shapes, picture, said, wide=True),
        _figure("Time by stage", _keys(STAGE_KEYS), stages, STAGE_NOTE),
    ]
    held = [bar for row in rows if (bar := _memory_bar(section, row)) is not None]
    if held:
        drawn.append(_figure("Memory", _keys(MEMORY_KEYS), bars(held, "Memory"), MEMORY_NOTE))
    draws = [Strip(shown_name(row, section), tuple((draw.total,) for draw in row.draws)) for row in rows]
    steps = [Strip(shown_name(row, section), tuple(draw.denoiser for draw in row.draws)) for row in rows]
    steps = [strip for strip in steps if strip.samples]
    drawn.append(_figure("Every draw", Html(), strips(draws, "Every draw"), STRIP_NOTE))
    if steps:
        drawn.append(_figure("Every denoiser call", Html(), strips(steps, "Every denoiser call"), STRIP_NOTE))
    return tag("div", *drawn, class_="drawings")


STAGE_KEYS = {"text_encoder": "text encoder", "denoiser": "denoiser", "vae_decoder": "decoder", "host": "host"}
STAGE_NOTE = "Medians of each stage of one draw; they needn't add up to the whole draw's."
MEMORY_KEYS = {"before": "before loading", "load": "after loading", "run": "drawing"}
MEMORY_NOTE = "Each piece is what came on top. The stroke is the peak while loading; the figure, the peak of all."
STRIP_NOTE = (
    "Across: how far from the median; down: in the order of drawing. The band is the median's 95 % interval, a ring "
    "lies further out than is drawn."
)


def _stage_bar(section: Section, row: Measurement) -> Bar:
    pieces: list[tuple[str, float, str]] = []
    for stage in STAGES[:4]:
        seconds = max(stage_seconds(row, stage) or 0.0, 0.0)
        pieces.append((f"s-{stage}", seconds, f"{STAGE_NAMES[stage]}: {seconds_shown(seconds)}"))
    return Bar(shown_name(row, section), seconds_shown(stage_seconds(row, "total") or 0.0), tuple(pieces))


def _memory_bar(section: Section, row: Measurement) -> Bar | None:
    held = row.memory
    if held is None:
        return None
    loaded = max(held.loaded_bytes - held.before_bytes, 0)
    run = max(held.run_peak_bytes - held.before_bytes - loaded, 0)
    pieces = (
        ("s-before", float(held.before_bytes), f"before loading: {bytes_shown(held.before_bytes)}"),
        ("s-load", float(loaded), f"loading added {bytes_shown(loaded)}"),
        ("s-run", float(run), f"drawing added {bytes_shown(run)}"),
    )
    marks = ((float(held.load_peak_bytes), f"peak while loading: {bytes_shown(held.load_peak_bytes)}"),)
    return Bar(title_of(row, section), bytes_shown(held.peak_bytes), pieces, marks)


def _keys(names: Mapping[str, str]) -> Html:
    return join(*(_key(f"s-{kind}", name) for kind, name in names.items()))


def _key(kind: str, name: str) -> Html:
    return tag("span", tag("span", class_=f"key {kind}"), name, class_="pair")


def _figure(title: str, keys: Html, drawing: Html, note: str, wide: bool = False) -> Html:
    told = tag("p", keys, class_="keys") if keys else Html()
    return tag("figure", tag("h3", title), told, drawing, tag("figcaption", note), class_="wide" if wide else None)


def _grids(section: Section) -> list[Html]:
    """One for each checkpoint: pictures of two aren't held against each other."""
    each = [Section(tuple(row for row in section.rows if row.model == model)) for model in section.models]
    several = len(each) > 1
    return [
        _grid(found, f"Pictures, {one.first.model.name}" if several else "Pictures")
        for one in each
        if (found := cells(one))
    ]


def _grid(found: Sequence[Cell], title: str) -> Html:
    shown = [_cell(cell, index == 0) for index, cell in enumerate(found)]
    name = found[0].name
    stands = f"{name} is nearest to the reference and stands for it. " if found[0].nearest else ""
    note = f"The first picture of each. {stands}Differences from {name} are shown {AMPLIFIED} times larger."
    return join(tag("h3", title), tag("p", note, class_="soft small"), tag("div", *shown, class_="grid"))


def _cell(cell: Cell, reference: bool) -> Html:
    images = [_image(cell.picture, cell.name)]
    told = ("reference" if cell.nearest else "the others are held against it") if reference else "another size"
    if cell.difference is not None:
        images.append(_image(cell.difference, f"{cell.name}, difference x {AMPLIFIED}"))
        told = f"differs by {figure(cell.mean_absolute_difference, 2)} of 255 on average"
    return tag("figure", tag("div", *images, class_="pair-of"), tag("figcaption", tag("b", cell.name), f": {told}"))


def _image(picture: str, alt: str) -> Html:
    return tag("img", src=f"data:image/png;base64,{picture}", alt=alt)


def _omissions(section: Section) -> Html:
    """What the figures don't hold, each sentence once."""
    told = by_text((sentence, title_of(row, section)) for row in section.rows for sentence in row.leaves_out)
    items = [tag("li", text, _whose(names, section)) for text, names in told]
    return join(tag("h3", "What the numbers leave out"), tag("ul", *items, class_="small")) if items else Html()


def _whose(names: Sequence[str], section: Section) -> Html:
    everybody = len(names) == len({title_of(row, section) for row in section.rows})
    return Html() if everybody else tag("span", f" {', '.join(names)}", class_="soft")


def _provenance(section: Section) -> Html:
    """The machine, and every version."""
    first, machine = section.first, section.first.machine
    gpus = ["; ".join(str(value) for value in gpu.model_dump().values() if value is not None) for gpu in machine.gpus]
    facts = [
        ("CPU", f"{machine.cpu}, {counted(machine.cores, 'core')}, {machine.architecture}"),
        ("instructions", " ".join(machine.instructions)),
        *(("GPU", gpu) for gpu in gpus),
        ("memory", f"{bytes_shown(machine.memory_bytes)}, {bytes_shown(machine.available_bytes)} of it free"),
        ("system", ", ".join(filter(None, (machine.system, machine.libc, f"Python {machine.python}")))),
        ("load before", figure(first.load_average, 2)),
        ("others' cores", figure(first.other_cores, 2)),
        ("in memory", "one process at a time, a new one for each draw" if first.apart else ""),
        ("environment", " ".join(f"{name}={value}" for name, value in first.environment.items())),
        ("latentc", " ".join(filter(None, (first.latentc, first.commit)))),
        ("run", f"{first.run}, {first.time}"),
        *(fact for model in section.models for fact in _model_facts(model)),
        ("prompt", f"{first.request.prompt!r}, seed {first.request.seed}"),
    ]
    pairs = [piece for name, value in facts if value for piece in (tag("dt", name), tag("dd", value))]
    libraries = by_text(
        (f"{name} {version}", title_of(row, section))
        for row in section.rows
        for name, version in row.subject.versions.items()
    )
    versions = [tag("li", text, _whose(names, section)) for text, names in sorted(libraries)]
    subjects = [_subject(section, row) for row in section.rows]
    return tag(
        "details",
        tag("summary", "Machine and versions"),
        tag("dl", *pairs),
        tag("h3", "Libraries"),
        tag("ul", *versions, class_="small columns"),
        tag("h3", "Subjects"),
        *subjects,
    )


def _model_facts(model: Model) -> list[tuple[str, str]]:
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in model.digests.items())
    return [("model", f"{model.name}, {model.family}, exported by latentc {model.latentc}"), ("parts", digests)]


def _subject(section: Section, row: Measurement) -> Html:
    """What ran each part, and the whole profile."""
    engines = [tag("li", f"{part}: {engine}") for part, engine in row.subject.engines.items()]
    scheduler = [tag("li", f"scheduler: {row.subject.scheduler}")] if row.subject.scheduler else []
    kept = row.subject.profile.model_dump(mode="json", exclude_none=True) if row.subject.profile else None
    profile = [tag("pre", json.dumps(kept, indent=1, ensure_ascii=False))] if kept else []
    return join(tag("h4", title_of(row, section)), tag("ul", *engines, *scheduler, class_="small"), *profile)
