"""The results of a tuning run: a sentence, a preset's file, and an HTML page with its plot and the worst image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..core.presets import OwnPreset
from ..core.tensors import PERFECT_DB
from ..core.units import counted
from ..profiles import Profile
from ..runtimes.machine import machine
from .charts import pareto
from .page import template
from .reading import ParityPoint, bytes_shown, figure, machine_title, seconds_shown
from .tune import Tuned
from .tune_plan import MOST_DB
from .tuning import Quality, Tried


def standing(one: Tried, found: Tuned) -> str:
    """What became of a candidate, in a few words."""
    if one.error is not None:
        return "failed"
    if one.quality is None:
        return "not generated"
    sure = "" if one.quality.is_sure(found.floor) else ", within the noise"
    if not one.quality.meets(found.floor):
        return f"below the floor{sure}"
    return ("chosen" if one == found.chosen else "meets the floor") + sure


def quality_shown(quality: Quality) -> str:
    """The figures of a quality: the median and the worst image, and the score if there is one."""
    psnr = quality.psnr_db
    said = f"{figure(psnr.median)} dB (worst {figure(psnr.minimum)}) on {counted(psnr.count, 'image')}"
    if quality.loss is None:
        return said
    noise = "" if quality.noise is None else f", noise {figure(quality.noise, 2)}"
    return f"{said}, scene_score {figure(quality.score)} (the best images {figure(quality.best_score)}{noise})"


def memory_shown(one: Tried, found: Tuned) -> str:
    """Peak resident memory of a candidate's profile; empty if unknown."""
    return bytes_shown(found.peak_bytes(one))


def verdict(found: Tuned) -> str:
    """What was found, in two sentences or three."""
    best, chosen, report = found.best, found.chosen, found.report
    unseen = f" There was no time for {counted(found.left, 'candidate')}: run again to go on." if found.left else ""
    if not found.tried:
        took = seconds_shown(best.predicted.median)
        return f"Nothing is faster than {best.candidate.title} ({took}) beyond the noise."
    if chosen is None or report is None:
        near = found.nearest
        said = f" Closest: {near.candidate.title}, {quality_shown(near.quality)}." if near and near.quality else ""
        if found.left:
            return f"No candidate that was generated meets {found.floor}.{said}{unseen}"
        return f"No candidate meets {found.floor}.{said} Use {best.candidate.title}, or a lower floor."
    ratio = best.predicted.median / chosen.predicted.median
    mine, theirs = (memory_shown(one, found) for one in (chosen, best))
    took = f"{seconds_shown(chosen.predicted.median)} an image{f' with {mine} of memory' if mine else ''}"
    took += f", {figure(ratio, 2)} x as fast as {best.candidate.title}{f' ({theirs})' if theirs else ''}"
    said = f"{chosen.candidate.title}: {took}. On prompts and seeds that it was not chosen by: {quality_shown(report)}"
    if not found.holds:
        return f"{said}, which is below {found.floor}. Use a lower floor, or more --pictures for the choice.{unseen}"
    unsure = "" if report.is_sure(found.floor) else " That is within the noise: more --pictures would tell."
    return f"{said}; the floor is {found.floor}.{unsure}{unseen}"


def preset_of(found: Tuned, chosen: Tried) -> OwnPreset:
    """The chosen candidate as a preset."""
    profile = next(one for one in found.plan.profiles if one.name == chosen.candidate.profile)
    return OwnPreset(
        title=f"Tuned for {found.bundle.folder.name} on {machine_title(machine())}, floor {found.floor}",
        profile=_named(profile),
        scheduler=chosen.candidate.scheduler,
        steps=chosen.candidate.steps,
    )


def _named(profile: Profile) -> str:
    """The name of a shipped profile, or the path of a file of the user's own."""
    return profile.name if profile.argument == profile.name else str(profile.source.resolve())


def preset_text(found: Tuned, chosen: Tried) -> str:
    """The preset's file, TOML, with what was found as a comment."""
    values: Mapping[str, Any] = preset_of(found, chosen).model_dump(exclude_none=True)
    said = " ".join(verdict(found).split())
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([f"# {said}", *lines, ""])


def tuned_page(found: Tuned) -> str:
    """The page as HTML text."""
    points = [
        ParityPoint(
            one.candidate.title.replace(",", "").removesuffix(" steps"),
            one.predicted.median,
            min(one.quality.psnr_db.median, MOST_DB),
            own=True,
            interval=one.predicted.interval,
        )
        for one in found.tried
        if one.quality is not None
    ]
    scored = any(one.quality is not None and one.quality.score is not None for one in found.tried)
    return template("tune.html").render(
        title=f"{found.bundle.folder.name}, tuned for {found.floor}",
        machine=machine_title(machine()),
        verdict=verdict(found),
        notes=found.notes,
        drawn=pareto(points, "median PSNR in dB") if len(points) > 1 else None,
        best=found.best,
        best_seconds=found.best_seconds,
        tried=found.tried,
        chosen=found.chosen,
        report=found.report,
        scored=scored,
        shown=_shown(found),
        figure=figure,
        seconds=seconds_shown,
        memory=partial(memory_shown, found=found),
        standing=partial(standing, found=found),
    )


def _shown(found: Tuned) -> list[dict[str, Any]]:
    """The worst image of the report and one in the middle, beside the best candidate's."""
    if found.chosen is None or found.report is None:
        return []
    mine, best = (found.log.of("report", one.candidate) for one in (found.chosen, found.best))
    order = sorted(mine, key=lambda one: PERFECT_DB if one.psnr_db is None else one.psnr_db)
    shown: list[dict[str, Any]] = []
    for title, one in (("The worst image", order[0]), ("An image in the middle", order[len(order) // 2])):
        request = found.sets["report"][one.number].request
        pair = {"best": best[one.number].png, "mine": one.png, "prompt": request.prompt, "seed": request.seed}
        shown.append({"title": title, "psnr_db": one.psnr_db, **pair})
    return shown
