"""What `latentc run` is asked to draw: prompts, a file of them, or a picture's own request, and flags over them."""

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
"""Limit of a file of prompts."""

_SAID_ELSEWHERE = frozenset(
    {"version", "model", "model hash", "vae hash", "app", "backend", "created date", "user", "time taken"}
)
"""Keys of a picture's text that no notice names: they change nothing of what is drawn, or another key says the same."""


def parse_size(size: str | None) -> dict[str, int]:
    """`768x512` as width and height; raises `RequestError` for anything else."""
    if size is None:
        return {}
    width, _, height = size.lower().partition("x")
    if not (is_number(width) and is_number(height)):
        raise RequestError(f"{size[:40]!r} is no size. Write WIDTHxHEIGHT in pixels, as 768x512.")
    return {"width": int(width), "height": int(height)}


def ask(prompts: list[str], file: str | None, shown: Shown | None, given: dict[str, Any]) -> list[Request]:
    """One request for each prompt; raises `RequestError` for the first that can't be drawn, before any is.

    `file` has a prompt in each line, or with `.jsonl` a request as a JSON object; `-` is standard input. `given` goes
    over what those say, and that over what the picture says. Empty where nothing says a prompt.
    """
    base: dict[str, Any] = shown.request.model_dump() if shown else {}
    given = {name: value for name, value in given.items() if value is not None}
    if "scheduler" in given:
        check_name(given["scheduler"])
    asked: list[tuple[str, dict[str, Any]]] = [("", {"prompt": prompt}) for prompt in prompts]
    asked += _lines(file) if file else []
    if not asked and shown:
        asked.append(("", {}))
    if len(asked) > MAX_REQUESTS:
        raise RequestError(
            f"{len(asked):,} prompts were given; {MAX_REQUESTS:,} at most are drawn at once. Split them."
        )
    requests: list[Request] = []
    for number, (place, one) in enumerate(asked, 1):
        with _of_many(number, len(asked), place):
            request = Request.model_validate({**base, **one, **given})
            if request.scheduler is not None:
                check_name(request.scheduler)
        requests.append(request)
    return requests


def check_all(requests: Sequence[Request], bundle: Bundle) -> None:
    """Raise `RequestError` for the first that this bundle can't draw, before its engines are loaded."""
    verify_files(bundle, [SCHEDULER])
    scheduler = bundle.json(SCHEDULER)
    for number, request in enumerate(requests, 1):
        with _of_many(number, len(requests)):
            check(request, bundle.manifest.model, scheduler)
            denoiser_of(bundle.variants("denoiser"), request)


@contextmanager
def _of_many(number: int, count: int, place: str = "") -> Generator[None]:
    """What is raised in the block says of which prompt it is, where there are several, or where in a file."""
    try:
        yield
    except RequestError as exc:
        if count == 1 and not place:
            raise
        raise RequestError(f"{place or f'Prompt {number} of {count}'}: {exc}") from exc


def differences(picture: Path, shown: Shown, bundle: Bundle) -> list[str]:
    """What `run --from` can't take over from a picture when this bundle draws, in sentences."""
    here = origin(bundle)
    remarks = [f"{picture}: {notice}" for notice in shown.notices]
    if shown.drawing is None:
        remarks.append(f"{picture} is another tool's, whose seeds give other noise: the picture will be another one.")
    elif shown.drawing.bundle != here.bundle:
        remarks.append(
            f"{picture} was drawn by another bundle, of {shown.drawing.model}; this one is of {here.model}, and its "
            "weights, scheduler config, tokenizer or scaling are others."
        )
    rest: Mapping[str, str] = {} if shown.drawing else shown.rest
    left = {key: value for key, value in rest.items() if key.lower() not in _SAID_ELSEWHERE}
    if left:
        said = ", ".join(f"{key}: {' '.join(value.split())[:40]}" for key, value in list(left.items())[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        remarks.append(f"{picture} also says what isn't drawn here: {plain(said)}{more}.")
    return remarks


def _lines(file: str) -> list[tuple[str, dict[str, Any]]]:
    """What each line of a file says, and its place in the file."""
    advice = "Give a text file with a prompt in each line."
    if file == "-":
        raw = sys.stdin.buffer.read(FILE_BYTES + 1)
        if len(raw) > FILE_BYTES:
            raise RequestError(f"Standard input has more than {FILE_BYTES:,} bytes. {advice}")
    else:
        raw = read_small(file, FILE_BYTES, RequestError, advice)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise RequestError(f"{file} is no UTF-8 text (byte {exc.start}). {advice}") from exc
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{file} has no prompt. {advice}")
    if not file.lower().endswith(".jsonl"):
        name = "standard input" if file == "-" else file
        return [(f"{name}, line {number}", {"prompt": line}) for number, line in lines]
    return [(f"{file}, line {number}", _fields(file, number, line)) for number, line in lines]


def _fields(file: str, number: int, line: str) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as exc:
        raise RequestError(f"{file}, line {number}, is not valid JSON ({exc}). Write a request's fields.") from exc
    if not isinstance(found, dict):
        raise RequestError(f"{file}, line {number}, is {json.dumps(found)[:40]}, and a JSON object was expected.")
    return cast("dict[str, Any]", found)
