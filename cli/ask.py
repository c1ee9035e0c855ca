"""The requests of `latentc run`: from prompts, a file, or an image's stored request, with options overriding them."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ..core.bundle import Bundle, verify_files
from ..core.errors import RequestError
from ..core.reading import parse_json, read_small
from ..core.request import Request
from ..pipelines.complete import check
from ..pipelines.png import Shown, origin
from ..sampling.draw import SCHEDULER, denoiser_of
from ..sampling.schedulers import check_name
from .text import is_number, plain

MAX_REQUESTS = 10_000
FILE_BYTES = 8 << 20
"""Size limit of a prompt file."""

_IGNORED = frozenset(
    {"version", "model", "model hash", "vae hash", "app", "backend", "created date", "user", "time taken"}
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


def ask(
    prompts: list[str], file: str | None, shown: Shown | None, given: dict[str, Any], *, image: bool = False
) -> list[Request]:
    """Build one request per prompt, or with an `image` and no prompt, one for the image.

    `file` has one prompt per line, or with `.jsonl` one request per line as a JSON object; `-` is standard input.
    Fields in `given` override those of the file, which override those stored in the image. The list is empty if there
    is no prompt. Raises `RequestError` for the first invalid request.
    """
    base: dict[str, Any] = shown.request.model_dump() if shown else {}
    given = {name: value for name, value in given.items() if value is not None}
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
            request = Request.model_validate({**base, **one, **given})
            if request.scheduler is not None:
                check_name(request.scheduler)
        requests.append(request)
    return requests


def check_all(
    requests: Sequence[Request], bundle: Bundle, *, image: bool = False, mask: bool = False, controls: int = 0
) -> None:
    """Raise `RequestError` for the first request that this bundle does not support, before its engines are loaded.

    `image` and `mask` are whether they are passed in, `controls` is the number of images for ControlNets.
    """
    verify_files(bundle, [SCHEDULER])
    scheduler = bundle.json(SCHEDULER)
    for number, request in enumerate(requests, 1):
        with _of_many(number, len(requests)):
            check(request, bundle.manifest.model, scheduler, image=image, mask=mask, controls=controls)
            denoiser_of(bundle.variants("denoiser"), request)


@contextmanager
def _of_many(number: int, count: int, place: str = "") -> Generator[None]:
    """Prefix a `RequestError` raised in the block with the prompt's number, or its place in a file."""
    try:
        yield
    except RequestError as exc:
        if count == 1 and not place:
            raise
        raise RequestError(f"{place or f'Prompt {number} of {count}'}: {exc}") from exc


def differences(picture: Path, shown: Shown, bundle: Bundle) -> list[str]:
    """Sentences about what `run --from` cannot reproduce of an image with this bundle."""
    here = origin(bundle, encodes=shown.request.strength is not None, decoder=shown.request.decoder)
    remarks = [f"{picture}: {notice}" for notice in shown.notices]
    if shown.drawing is None:
        remarks.append(
            f"{picture} was made by another tool. The same seed gives different noise there, so the image will differ."
        )
    elif shown.drawing.bundle != here.bundle:
        remarks.append(
            f"{picture} was generated from another bundle, of {shown.drawing.model}. This bundle is of {here.model}: "
            "its weights, scheduler config, tokenizer or scaling differ, so the image will differ."
        )
    rest: Mapping[str, str] = {} if shown.drawing else shown.rest
    left = {key: value for key, value in rest.items() if key.lower() not in _IGNORED}
    if left:
        listed = ", ".join(f"{key}: {' '.join(value.split())[:40]}" for key, value in list(left.items())[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        remarks.append(f"{picture} has settings that latentc ignores: {plain(listed)}{more}.")
    return remarks


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
