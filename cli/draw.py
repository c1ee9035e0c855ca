"""Drawing from the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..benchmarks.memory import peak_bytes
from ..core.errors import RequestError
from ..core.request import Request, Step
from ..pipelines.png import check_name, make_place, save
from ..profiles import Profile
from .text import as_json as json_text
from .text import say


def parse_size(size: str | None) -> dict[str, int]:
    """`768x512` as width and height; raises `RequestError` for anything else."""
    if size is None:
        return {}
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise RequestError(f"{size!r} is no size. Write WIDTHxHEIGHT in pixels, as 768x512.")
    return {"width": int(width), "height": int(height)}


def draw(
    bundle: Path,
    profile: Profile,
    values: dict[str, Any],
    size: str | None,
    output: Path,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Open a pipeline, draw one request, save the pictures, and say what it took."""
    from .progress import shown

    request = Request.model_validate({**values, **parse_size(size)})
    check_name(output)
    with shown(quiet or as_json) as tell:
        tell("load", None)
        start = time.perf_counter()
        from ..pipelines.pipeline import Pipeline

        with Pipeline.open(bundle, profile, tell) as pipeline:
            seconds = {"load": time.perf_counter() - start}
            make_place(output)

            def on_step(step: Step) -> None:
                tell("draw", step.index / step.total)

            tell("draw", 0.0)
            result = pipeline(request, on_step)
            paths = save(result, pipeline.bundle, output)
    seconds |= result.seconds
    record: dict[str, Any] = {
        "profile": profile.name,
        "files": [str(path) for path in paths],
        "request": result.request.model_dump(),
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "step_seconds": [round(value, 4) for value in result.step_seconds],
        "peak_bytes": peak_bytes(),
        "engines": dict(result.engines),
        "notices": list(result.notices),
    }
    if as_json:
        say(json_text(record, indent=None))
        return
    step = sum(result.step_seconds) / len(result.step_seconds)
    say(
        f"{', '.join(record['files'])}   {profile.name}, seed {result.request.seed}, {seconds['total']:.2f} s "
        f"(text {seconds['text_encoder']:.2f}, {len(result.step_seconds)} calls of {step:.3f}, "
        f"decode {seconds['vae_decoder']:.2f}) after {seconds['load']:.2f} s of loading"
    )
    for notice in result.notices:
        say(f"note: {notice}")
