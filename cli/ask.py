"""The requests of `latentc run`: from prompts, a file, or an image's stored request, with options overriding them."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..core.bundle import Bundle, verify_files
from ..core.errors import RequestError, ShapeError
from ..core.presets import SETS, own_preset, with_own
from ..core.reading import parse_json, read_small
from ..core.request import Fused, Request
from ..pipelines.a1111 import skips_layers
from ..pipelines.complete import check
from ..pipelines.png import LORA_HASHES, TI_HASHES, Shown, origin, read
from ..sampling.host import SCHEDULER, denoiser_of
from ..sampling.schedulers import check_name
from .text import is_number, plain

MAX_REQUESTS = 10_000
FILE_BYTES = 8 << 20
"""Size limit of a prompt file."""

_IGNORED = frozenset(
    {"version", "model", "model hash", "refiner", "vae hash", "app", "backend", "created date", "user", "time taken"}
)
"""Keys of an image's metadata that need no notice: they do not change the image, or repeat another key."""


def sides(size: str) -> tuple[int, int]:
    """Width and height in pixels from `768x512`, or `512` for a square; raises `RequestError` for anything else."""
    width, separator, height = size.lower().partition("x")
    height = height if separator else width
    if not (is_number(width) and is_number(height)):
        raise RequestError(
            f"{size[:40]!r} is not a valid size: use WIDTHxHEIGHT in pixels, for example 768x512, or one number for a "
            "square, for example 512."
        )
    return int(width), int(height)


def parse_size(size: str | None) -> dict[str, int]:
    """Request fields for `--size`: `width` and `height`, or none if `size` is None. Raises as `sides` does."""
    return {} if size is None else dict(zip(("width", "height"), sides(size), strict=True))


def numbers(text: str | None, option: str, kind: type[int] | type[float]) -> tuple[float, ...] | None:
    """Numbers separated by commas, or None for None; raises `RequestError` for anything else."""
    if text is None:
        return None
    try:
        return tuple(kind(one.strip()) for one in text.split(","))
    except ValueError as exc:
        example = "999,759,499,259" if kind is int else "14.6,3.9,1.4,0.4,0"
        raise RequestError(
            f"{text[:40]!r} is not valid for {option}: use numbers separated by commas, for example {example}."
        ) from exc


STEPS = ("timesteps", "sigmas", "steps")
"""Fields that determine the steps: one of them replaces the others of a file or an image."""


OWN_DECODER = "vae"


def over(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `base` overridden by those of `more`; `vae` as the decoder stands for the VAE's own."""
    replaced = STEPS if any(more.get(name) is not None for name in STEPS) else ()
    if more.get("timesteps") is not None or more.get("sigmas") is not None:
        replaced = (*replaced, "timestep_spacing")
    if more.get("preset") is not None:
        replaced = (*replaced, *SETS)
    if more.get("prompt_syntax") not in (None, "compel"):
        replaced = (*replaced, "downweight")
    if more.get("decoder") == OWN_DECODER:
        more = {**more, "decoder": None}  # stated, so that a memory budget keeps it
    return {**{name: value for name, value in base.items() if name not in replaced}, **more}


def parse_sides(text: str | None) -> list[int] | None:
    """Pixels on the left, the top, the right and the bottom from `64,0,64,0`; raises `RequestError` for others."""
    if text is None:
        return None
    found = [one.strip() for one in text.split(",")]
    if len(found) != 4 or not all(map(is_number, found)):
        raise RequestError(
            f"{text[:40]!r} is not a valid extension: use LEFT,TOP,RIGHT,BOTTOM in pixels, for example 128,0,128,0."
        )
    return [int(one) for one in found]


def ask(
    prompts: list[str], file: str | None, shown: Shown | None, given: dict[str, Any], *, image: bool = False
) -> list[Request]:
    """Build one request per prompt, or with an `image` and no prompt, one for the image.

    `file` has one prompt per line, or with `.jsonl` one request per line as a JSON object; `-` is standard input.
    Fields in `given` override those of the file, which override those stored in the image. A preset in a file of its
    own replaces what it stands for in both. The list is empty if there is no prompt. Raises `RequestError` for the
    first invalid request.
    """
    base: dict[str, Any] = shown.request.model_dump() if shown else {}
    if shown and shown.request.refine_from is None:  # it was made without a refiner
        base["refine_from"] = 1.0
    given = {name: value for name, value in given.items() if value is not None}
    if (own := own_preset(given.get("preset"))) is not None:
        given = with_own(own.fields, {name: value for name, value in given.items() if name != "preset"})
    if "scheduler" in given:
        check_name(given["scheduler"])
    asked: list[tuple[str, dict[str, Any]]] = [("", {"prompt": prompt}) for prompt in prompts]
    asked += _lines(file) if file else []
    if not asked and (shown or image):
        asked.append(("", {}))
    if len(asked) > MAX_REQUESTS:
        raise RequestError(
            f"{len(asked):,} prompts were given, and one run takes at most {MAX_REQUESTS:,}. Use several runs."
        )
    requests: list[Request] = []
    for number, (place, one) in enumerate(asked, 1):
        with _of_many(number, len(asked), place):
            if "prompt" not in {**base, **one} and not image:
                raise RequestError("Invalid request: prompt: field required.")
            fields = over(base, one)
            if own is not None:
                fields = {name: value for name, value in fields.items() if name not in (*SETS, "preset")}
            request = Request.model_validate(over(fields, given))
            if request.scheduler is not None:
                check_name(request.scheduler)
        requests.append(request)
    return requests


def stated(picture: Path | None, without: Sequence[str], *, adapters: bool) -> Shown | None:
    """What the image of --from states, without these options, and without its adapters if others were given.

    Raises `RequestError` as `read` does, and for options that can't be left out.
    """
    if without and picture is None:
        raise RequestError("--without leaves out what the image of --from states. Pass one, or leave it out.")
    shown = read(picture) if picture else None
    if shown is None or not (without or adapters):
        return shown
    return _stripped(shown, [*without, *(["adapters"] if adapters else [])])


def _stripped(shown: Shown, names: Sequence[str]) -> Shown:
    """What an image states, without these fields of its request, and those that begin with their names."""
    fields = {name.replace("-", "_"): name for name in names}
    able = [name for name, one in Request.model_fields.items() if one.default is None]
    if unknown := [name for field, name in fields.items() if field not in able]:
        raise RequestError(
            f"{unknown[0][:40]!r} can't be left out with --without. Options that can: "
            f"{', '.join(name.replace('_', '-') for name in able)}."
        )
    kept = shown.request.model_dump(exclude_unset=True)
    kept = {name: one for name, one in kept.items() if not any(name == f or name.startswith(f"{f}_") for f in fields)}
    if fields.keys() & SETS:
        kept.pop("preset", None)  # which would fill it again
    return replace(shown, request=Request.model_validate(kept))


def check_all(
    requests: Sequence[Request],
    bundle: Bundle,
    *,
    image: tuple[int, int] | None = None,
    mask: bool = False,
    controls: int = 0,
    style: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
) -> None:
    """Raise `RequestError` for the first request that this bundle does not support, before its engines are loaded.

    The other arguments are those of `complete`.
    """
    verify_files(bundle, [SCHEDULER])
    scheduler = bundle.json(SCHEDULER)
    for number, request in enumerate(requests, 1):
        with _of_many(number, len(requests)):
            passed: dict[str, Any] = {"mask": mask, "controls": controls, "style": style, "sizes": sizes}
            check(request, bundle.manifest.model, scheduler, image=image, **passed)
            denoiser_of(bundle.variants("denoiser"), request)


@contextmanager
def _of_many(number: int, count: int, place: str = "") -> Generator[None]:
    """Prefix an error of a request raised in the block with the prompt's number, or its place in a file."""
    try:
        yield
    except (RequestError, ShapeError) as exc:
        if count == 1 and not place:
            raise
        raise type(exc)(f"{place or f'Prompt {number} of {count}'}: {exc}") from exc


def differences(picture: Path, shown: Shown, bundle: Bundle, adapters: Sequence[Fused] = ()) -> list[str]:
    """Sentences about what `run --from` cannot reproduce of an image with this bundle, and the adapters of a pipeline,
    which are either swapped in, or fused with the bundle.
    """
    here = origin(bundle, shown.request)
    own = {one.sha256 for one in here.adapters}
    swapped = (one for one in adapters if one.strength and one.sha256 not in own)
    here = replace(here, adapters=(*here.adapters, *swapped))
    remarks = [f"{picture}: {notice}" for notice in shown.notices]
    if shown.drawing is None:
        remarks.append(
            f"{picture} was made by another tool. The same seed gives different noise there, so the image will differ."
        )
    elif shown.drawing.model == here.model and _combined(shown.drawing.adapters) != _combined(here.adapters):
        made, own = (
            ", ".join(f"{one.name}:{one.strength:g}" for one in adapters) or "none"
            for adapters in (shown.drawing.adapters, here.adapters)
        )
        remarks.append(
            f"{picture} was generated with other adapters ({made}) than those here ({own}), so the image will differ. "
            "--lora adds adapters to a bundle."
        )
    elif shown.drawing.bundle != here.bundle:
        remarks.append(
            f"{picture} was generated from another bundle, of {shown.drawing.model}. This bundle is of {here.model}: "
            "its weights, scheduler config, tokenizer or scaling differ, so the image will differ."
        )
    if shown.drawing is None and shown.request.clip_skip:
        skips = f"{picture} has the clip skip {shown.request.clip_skip + 1}, which the web UI"
        remarks.append(
            f"{skips} applies to the negative prompt too. latentc, as diffusers, applies it to the prompt alone."
            if skips_layers(bundle)
            else f"{skips} ignores for models such as {here.model}, and latentc does not. Pass --clip-skip 0 for what "
            "the web UI does."
        )
    rest: Mapping[str, str] = {} if shown.drawing else shown.rest
    left = {key: value for key, value in rest.items() if key.lower() not in _IGNORED}
    digests = [pair.rpartition(":")[2].strip() for pair in left.get(TI_HASHES, "").split(",")]
    if all(one and any(own.startswith(one) for own in here.embeddings.values()) for one in digests):
        left.pop(TI_HASHES, None)
    for name, digest in (pair.split(":", 1) for pair in left.pop(LORA_HASHES, "").split(",") if ":" in pair):
        files = [one for one in here.adapters if one.name == name.strip()]
        if any(one.weights_sha256 and not one.weights_sha256.startswith(digest.strip()) for one in files):
            remarks.append(f"{picture} was generated with another file than the {name.strip()} here.")
    if left:
        listed = ", ".join(f"{key}: {' '.join(value.split())[:40]}" for key, value in list(left.items())[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        remarks.append(f"{picture} has settings that latentc ignores: {plain(listed)}{more}.")
    return remarks


def _combined(adapters: Sequence[Fused]) -> list[tuple[str, float]]:
    """What adapters change: their order, and the names of their files, have no effect."""
    return sorted((one.sha256, one.strength) for one in adapters)


def _lines(file: str) -> list[tuple[str, dict[str, Any]]]:
    """The request fields of each line of a file, with the line's place for messages."""
    advice = "Use a text file with one prompt per line."
    if file == "-":
        raw = sys.stdin.buffer.read(FILE_BYTES + 1)
        if len(raw) > FILE_BYTES:
            raise RequestError(f"Standard input is larger than {FILE_BYTES:,} bytes. {advice}")
    else:
        raw = read_small(file, FILE_BYTES, RequestError, advice)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise RequestError(f"{file} is not UTF-8 text (see byte {exc.start}). {advice}") from exc
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{file} contains no prompt. {advice}")
    if not file.lower().endswith(".jsonl"):
        name = "standard input" if file == "-" else file
        return [(f"{name}, line {number}", {"prompt": line}) for number, line in lines]
    return [(f"{file}, line {number}", _fields(file, number, line)) for number, line in lines]


def _fields(file: str, number: int, line: str) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as exc:
        raise RequestError(
            f'{file}, line {number}, is not valid JSON ({exc}). Write a request, for example {{"prompt": "a cat"}}.'
        ) from exc
    if not isinstance(found, dict):
        raise RequestError(f"{file}, line {number}, is {json.dumps(found)[:40]}; a JSON object was expected.")
    return cast("dict[str, Any]", found)
