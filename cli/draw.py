"""`latentc run`: generate images and save them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..benchmarks.memory import peak_bytes
from ..compiler.sized import with_built_sizes
from ..compiler.targets import fixed_sizes
from ..compiler.way import way
from ..core.bundle import open_bundle
from ..core.errors import RequestError
from ..core.request import Request, Result, Step
from ..core.units import counted
from ..export.fused import adapters_of
from ..pipelines.adapters import opened as opened_adapters
from ..pipelines.adapters import with_strengths
from ..pipelines.complete import complete
from ..pipelines.control import digested
from ..pipelines.layout import lay_out
from ..pipelines.picture import load_controls, load_mask, load_picture, load_style, read_mask, read_picture, size_in
from ..pipelines.png import Shown, drawings
from ..pipelines.png import origin as origin_of
from ..pipelines.save import attempt, check_names, encoded, failed, make_place
from ..pipelines.style import read_style
from ..profiles import Profile
from ..sampling.draw import ENCODE_STAGE, IMAGE_STAGE
from ..sampling.host import SCHEDULER
from . import BEFORE
from .ask import check_all, differences
from .text import as_json as json_text
from .text import emit_bytes, say

DEFAULT, DEFAULT_VIDEO = Path("out.png"), Path("out.mp4")
"""Defaults of `--output`: the first of out.png, out-1.png, out-2.png ... that does not exist."""
STREAM = "-"
SHOWN = {"text_encoder": "text", IMAGE_STAGE: "image", ENCODE_STAGE: "image"}
"""Words for the stages before the first denoiser call."""


def draw(
    bundle: Path,
    profile: Profile,
    requests: Sequence[Request],
    output: str | Path | None = None,
    *,
    image: Path | None = None,
    mask: Path | None = None,
    control: Sequence[Path] = (),
    style: Path | None = None,
    adapters: Mapping[str, float] = {},
    embeddings: Sequence[str] = (),
    memory_gb: float | None = None,
    overwrite: bool = False,
    origin: tuple[Path, Shown] | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Open a pipeline, run each request, save its images at once, and print the timings.

    `output` is the first image's file, or `-` for one PNG on standard output; None takes the next free name. `image`,
    `mask`, the images of ControlNets, `control`, the `style` image, `adapters` and `embeddings` are those of all
    requests.
    `origin` is the image that the request comes from, and the request stored in it. File names and requests are
    checked before anything is loaded.
    """
    from .progress import shown

    opened = open_bundle(bundle)
    model = opened.manifest.model
    names = _names(requests, output, overwrite=overwrite, as_json=as_json, videos=model.frames is not None)
    if origin and origin[1].request.strength is not None and image is None:
        raise RequestError(
            f"{origin[0]} was made from an image, with a strength of {origin[1].request.strength:g}, and no image was "
            "given. Pass it with --image. To generate from a prompt alone, give the prompt and options without --from."
        )
    picture = load_picture(image) if image is not None else None
    masked = load_mask(mask) if mask is not None else None
    controls = load_controls(list(control))
    styled = load_style(style) if style is not None else None
    sizes = fixed_sizes(model, with_built_sizes(opened, profile))
    passed: dict[str, Any] = {"mask": mask is not None, "controls": len(controls), "sizes": sizes}
    passed["style"] = style is not None
    named = opened_adapters(adapters)
    how = way(opened, profile, adapters_of(opened, adapters), budget=memory_gb is not None) if adapters else None
    fused = origin_of(opened).adapters
    requests = [with_strengths(request, named, fused, how=how) for request in requests]
    check_all(requests, opened, image=size_in(picture), **passed)
    scheduler = opened.json(SCHEDULER)
    for request in requests:
        read = read_picture(request, opened.manifest, picture)
        asked = complete(request, model, scheduler, image=size_in(read), **passed)
        area = read_mask(asked, model, read, masked)
        read_style(digested(asked, controls), styled)
        if read is not None:
            pixels, about = (None, ()) if area is None else (area.pixels, area.notices)
            lay_out(asked, model, read.pixels, pixels, about)
    stream = not names
    records: list[dict[str, Any]] = []
    streamed: list[bytes] = []
    lost: list[str] = []
    try:
        with shown(quiet or as_json) as tell:
            tell("load", None)
            start = time.perf_counter()
            from ..pipelines.pipeline import Pipeline

            with Pipeline.open(
                opened, profile, tell, memory_gb=memory_gb, adapters=adapters, embeddings=embeddings
            ) as pipeline:
                load = time.perf_counter() - start
                remarks = differences(*origin, pipeline.bundle, named) if origin else []
                if not stream:
                    make_place(names[0])
                for number, request in enumerate(requests, 1):
                    what = "generate" if len(requests) == 1 else f"generate {number} of {len(requests)}"

                    def on_step(step: Step, what: str = what) -> None:
                        tell(what, step.index / step.total)

                    tell(what, 0.0)
                    result = pipeline(request, on_step, image=picture, mask=masked, control=controls, style=styled)
                    files: tuple[Path, ...] = ()
                    if stream:
                        streamed += [encoded(result.images[0], next(drawings(result)))]
                    else:
                        mine, names = names[: request.count], names[request.count :]
                        files, missed = attempt(result, mine, overwrite=overwrite)
                        lost += missed
                    records.append(_record(profile, result, files, load, remarks))
        if lost:
            raise failed(lost, [path for record in records for path in record["files"]])
    except BaseException as exc:  # images saved before the error stay
        if not as_json:
            _say(records, err=stream)
        elif records:
            vars(exc)[BEFORE] = {"drawn": records}
        raise
    for content in streamed:
        emit_bytes(content)
    if as_json:
        say(json_text(records[0] if len(records) == 1 else records, indent=None))
    else:
        _say(records, err=stream)


def _names(
    requests: Sequence[Request], output: str | Path | None, *, overwrite: bool, as_json: bool, videos: bool
) -> list[Path]:
    """The file of each image, or of `videos`; empty for standard output."""
    count = sum(request.count for request in requests)
    default = DEFAULT_VIDEO if videos else DEFAULT
    if str(output) == STREAM:
        if videos:
            raise RequestError("Standard output takes one image, and this model generates videos. Use --output FILE.")
        if count > 1:
            raise RequestError(
                f"Standard output takes one image, and {count} were requested. Use --output FILE, or request one image."
            )
        if as_json:
            raise RequestError("The image and --json both go to standard output. Use --output FILE, or omit --json.")
        if sys.stdout.isatty():
            raise RequestError(
                "Standard output is a terminal, which cannot show a PNG. Redirect it, or use --output FILE."
            )
        return []
    if output is None and not overwrite:
        check_names(default, 1, taken=True, videos=videos)
        return [default] * count
    return check_names(default if output is None else output, count, requests, overwrite=overwrite, videos=videos)


def _record(
    profile: Profile, result: Result, files: Sequence[Path], load: float, remarks: Sequence[str]
) -> dict[str, Any]:
    seconds: Mapping[str, float] = {"load": load, **result.seconds}
    return {
        "profile": profile.name,
        "files": [str(path) for path in files],
        "request": result.request.model_dump(),
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
        "step_seconds": [round(value, 6) for value in result.step_seconds],
        "peak_bytes": peak_bytes(),
        "engines": dict(result.engines),
        **({"memory": result.memory.model_dump()} if result.memory else {}),
        **({"adapters_by": result.origin.adapters_by} if result.origin and result.origin.adapters_by else {}),
        "notices": [*remarks, *result.notices],
    }


def _say(records: Sequence[Mapping[str, Any]], *, err: bool) -> None:
    for record in records:
        seconds, steps = record["seconds"], record["step_seconds"]
        files = ", ".join(record["files"]) or ("standard output" if err else "no file")
        stages = [stage for stage in SHOWN if seconds.get(stage)]
        first = ", ".join(f"{SHOWN[stage]} {seconds[stage]:.2f}" for stage in stages)
        say(
            f"{files}   {record['profile']}, seed {record['request']['seed']}, "
            f"{seconds['total']:.2f} s ({first}, {counted(len(steps), 'denoiser call')} of "
            f"{sum(steps) / len(steps):.3f}, decode {seconds['vae_decoder']:.2f}), loaded in {seconds['load']:.2f} s",
            err=err,
        )
        for notice in record["notices"]:
            say(f"note: {notice}", err=err)
