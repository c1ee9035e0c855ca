"""`latentc tune`: choose a profile, a scheduler and a number of steps by measurement."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from ..benchmarks.reading import figure, seconds_shown
from ..benchmarks.tune import Tuned, tune
from ..benchmarks.tune_page import memory_shown, preset_of, preset_text, standing, tuned_page, verdict
from ..benchmarks.tune_plan import Tuning
from ..benchmarks.tuning import Floor, Quality, Tried
from ..core.bundle import open_bundle
from ..core.errors import LatentcError, RequestError
from ..core.files import unwritable, write_text
from ..core.presets import SUFFIX
from ..core.progress import quiet as silent
from ..profiles import Profile
from .ask import ask
from .choose import choose
from .progress import on_stderr
from .show import emit, table
from .text import Screen, is_number, say


def parse_floor(text: str) -> Floor:
    """A floor from `35dB` or `score:0.01`; raises `RequestError` for anything else."""
    if found := re.fullmatch(r"(\d{1,4}(?:\.\d{1,6})?) ?dB", text.strip(), re.IGNORECASE):
        return Floor(psnr_db=float(found[1]))
    if found := re.fullmatch(r"score:(\d{1,4}(?:\.\d{1,6})?)", text.strip()):
        return Floor(loss=float(found[1]))
    raise RequestError(
        f"{text[:40]!r} is not a valid floor: use a median PSNR, such as 35dB, or for `scenes` the loss of scene_score "
        "that is accepted, such as score:0.01."
    )


def parse_steps(text: str) -> tuple[int, ...]:
    """Numbers of steps from `20,12,8`; raises `RequestError` for anything else."""
    found = [one.strip() for one in text.split(",")]
    if not all(is_number(one) and int(one) > 0 for one in found):
        raise RequestError(f"{text[:40]!r} is not a valid list of steps: use positive numbers, for example 20,12,8.")
    return tuple(map(int, found))


def read_prompts(file: str | None) -> tuple[tuple[str, str], ...]:
    """Prompts and negative prompts of a file; raises `RequestError` for one that states other settings."""
    asked = ask([], file, None, {}) if file is not None else []
    for one in asked:
        if other := one.model_fields_set - {"prompt", "negative_prompt"}:
            raise RequestError(
                f"{file} states {', '.join(sorted(other))}. Prompts for tuning have nothing but prompt and "
                "negative_prompt."
            )
    return tuple((one.prompt, one.negative_prompt) for one in asked)


def profiles_of(names: list[str] | None, bundle: Path) -> tuple[Profile, ...]:
    """The profiles of options that may be repeated; raises as `choose`."""
    return tuple(choose(",".join(names) if names else None, bundle=bundle))


def run_tune(bundle: Path, plan: Tuning, output: Path, *, quiet: bool, as_json: bool) -> None:
    """Tune, write the preset and the page, and print what was found.

    Raises `typer.Exit` with code 1 if no candidate meets the floor.
    """
    state, page = output.with_suffix(".jsonl"), output.with_suffix(".html")
    if output.suffix != SUFFIX or not output.parent.is_dir():
        raise RequestError(f"{output} must be a name that ends in {SUFFIX}, in a folder that exists.")
    if not state.exists() and (other := next((one for one in (output, page) if one.exists()), None)):
        raise RequestError(
            f"{other} exists, and {state}, the measurements of its run, does not. Choose another name with --output."
        )
    found = tune(open_bundle(bundle), plan, state, silent if quiet or as_json else on_stderr)
    made = found.chosen if found.holds else None
    if made is None and output.exists():
        found = replace(found, notes=(*found.notes, f"{output} is from an earlier run; this run wrote no preset."))
    try:
        write_text(page, tuned_page(found))
        if made is not None:
            write_text(output, preset_text(found, made))
    except OSError as exc:
        raise LatentcError(unwritable(output, exc)) from exc
    if as_json:
        emit(_as_values(found, output if made else None, page))
    else:
        _print(found, output if made else None, page, plan.guidance_of(found.bundle))
    if made is None:
        raise typer.Exit(1)


def _as_values(found: Tuned, output: Path | None, page: Path) -> dict[str, Any]:
    def values(one: Tried | None) -> dict[str, Any] | None:
        if one is None:
            return None
        measured = {"predicted": asdict(one.predicted), "peak_bytes": found.peak_bytes(one)}
        return {**one.candidate.model_dump(), **measured, "quality": figures(one.quality), "error": one.error}

    def figures(one: Quality | None) -> dict[str, Any] | None:
        return None if one is None else {**asdict(one), "loss": one.loss}

    tried = [{**(values(one) or {}), "standing": standing(one, found)} for one in found.tried]
    return {
        "verdict": verdict(found),
        "floor": asdict(found.floor),
        "best": values(found.best),
        "tried": tried,
        "chosen": values(found.chosen),
        "report": figures(found.report),
        "preset": preset_of(found, found.chosen).model_dump() if output and found.chosen else None,
        "not_looked_at": found.left,
        "notes": found.notes,
        "files": {"preset": str(output) if output else None, "page": str(page), "state": str(found.log.path)},
    }


def _print(found: Tuned, output: Path | None, page: Path, guidance: float) -> None:
    console = Screen(highlight=False)
    columns = ("predicted", "memory", "median", "worst", "images", "score")
    listed = table(f"floor: {found.floor}", "candidate", *columns, "", right=columns)
    best = found.best
    took = seconds_shown(best.predicted.median)
    listed.add_row(escape(best.candidate.title), took, memory_shown(best, found), "", "", "", "", "the best images")
    for one in found.tried:
        cells = ["", "", "", ""]
        if one.quality is not None:
            psnr = one.quality.psnr_db
            shown = [f"{figure(each)} dB" for each in (psnr.median, psnr.minimum)]
            cells = [*shown, str(psnr.count), figure(one.quality.score)]
        costs = (seconds_shown(one.predicted.median), memory_shown(one, found))
        listed.add_row(escape(one.candidate.title), *costs, *cells, escape(standing(one, found)))
    console.print(listed)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for one in found.tried:
        if one.error is not None:
            console.print(f"{one.candidate.title} failed: {one.error}", markup=False)
    console.print(verdict(found), markup=False)
    say(f"The page is {page}; the measurements are in {found.log.path}.")
    if output is not None:
        say(f'To use it: latentc run {found.bundle.argument} "PROMPT" --guidance {guidance:g} --preset {output}')
