"""`latentc score`: how well images match their captions."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from ..benchmarks.meaning import captions, draw_captions, require_scenes
from ..benchmarks.records import Meaning
from ..benchmarks.score import NEGATIVE, Scores, sheet
from ..benchmarks.score import score as run_score
from ..core.bundle import open_bundle
from ..core.errors import RequestError
from ..core.files import write_text
from ..pipelines.pipeline import Pipeline
from ..profiles import Profile
from ..scenes.caption import EACH, WHOLE
from .progress import shown
from .show import table
from .text import Screen, say

NAMES = (*WHOLE, *EACH)
SHEET = 32
FORMATS = (".png", ".jpg", ".webp")


def parse_guidances(guidances: str) -> list[float]:
    """Guidance scales from `2,4.5`; raises `RequestError` for anything else."""
    try:
        return [float(guidance) for guidance in guidances.split(",")]
    except ValueError:
        raise RequestError(
            f"{guidances[:40]!r} is not a valid list of guidance scales: use numbers separated by commas, for example "
            "2,4.5."
        ) from None


def score(
    bundle: Path,
    profile: Profile,
    count: int,
    guidances: list[float],
    nights: int,
    drawn: Path | None,
    output: Path | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score a bundle, write the requested files, and print the scores."""
    for path in filter(None, (drawn, output)):
        if not path.parent.is_dir():
            raise RequestError(f"The folder {path.parent} does not exist. Create it, or choose another path.")
    if drawn and drawn.suffix.lower() not in FORMATS:
        raise RequestError(f"{drawn} must end in one of: {', '.join(FORMATS)}.")
    require_scenes([open_bundle(bundle)])  # before its engines are loaded
    with shown(quiet or as_json) as tell, Pipeline.open(bundle, profile) as pipeline:
        found = run_score(pipeline, count, guidances, nights=nights, on_progress=tell)
        text = json.dumps(TypeAdapter(Scores).dump_python(found, mode="json"), indent=2)
        if output:
            write_text(output, text + "\n")
        if drawn:
            shown_captions = captions(SHEET)
            images = draw_captions(pipeline, shown_captions, guidances[-1], on_progress=tell)
            sheet(images, shown_captions).save(drawn, quality=90)
    if as_json:
        say(text)
        return
    _print(found)


def _print(found: Scores) -> None:
    console = Screen(highlight=False)
    guidances = list(found.drawn)
    last = guidances[-1]
    columns = {"rendered": found.ceiling, **{f"{guidance:g}": found.drawn[guidance] for guidance in guidances}}
    columns["shuffled"] = found.floor[last]
    title = f"{found.captions} unseen captions, {found.steps} steps, by guidance scale"
    made = table(title, "share matched", *columns, right=tuple(columns))
    cells = [_cells(meaning) for meaning in columns.values()]
    for index, name in enumerate(("all", "unseen pairs", *NAMES, "Fréchet distance")):
        made.add_row(name, *(column[index] for column in cells))
    console.print(made)
    console.print(
        f"Rendered: the renderer's own images. Shuffled: the images of guidance scale {last:g}, scored against other "
        "captions."
    )
    if found.nights:
        console.print(
            f"{found.nights.captions} captions without a sky: {found.nights.without:.0%} of the images are at night, "
            f"and {found.nights.unwanted:.0%} with the negative prompt {NEGATIVE!r}."
        )


def _cells(meaning: Meaning) -> list[str]:
    shares = [meaning.scene_score, meaning.held_out_score, *(meaning.by_attribute.get(name) for name in NAMES)]
    distance = meaning.frechet_distance
    return [
        *("" if share is None else f"{share:.3f}" for share in shares),
        "" if distance is None else f"{distance:.2f}",
    ]
