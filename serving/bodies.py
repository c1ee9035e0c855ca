"""Bodies of HTTP requests: JSON objects and multipart forms, read within limits, and their fields of a `Request`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from fastapi import Request as HttpRequest
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ..core.errors import RequestError
from ..core.reading import parse_json
from ..core.record import other_name
from ..core.request import Request
from .errors import ApiError

SSE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of server-sent events."""
ALIVE = ": nothing new\n\n"
"""A comment among server-sent events: the connection is in use."""
NOT_STATED = ("image_sha256", "mask_sha256", "control_sha256", "style_sha256")
"""Fields of a request that results state, and clients don't."""
LARGE, MAX_MARKS = 1 << 16, 200_000
"""Bytes of JSON beyond which it is parsed in another thread; quotes, commas and brackets in a body."""
MAX_FILES, MAX_FIELDS, MAX_FIELD_BYTES = 8, 64, 1 << 20
_NESTED = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")


async def json_fields(http: HttpRequest) -> dict[str, Any]:
    """The fields of a JSON object, without those that are null: for clients, null is an absent field.

    Raises `ApiError`: 415 for another type of content, 400 for anything but a JSON object.
    """
    _check_type(http, "application/json")
    body = await http.body()
    parse = partial(parse_json, body, most_marks=MAX_MARKS)
    try:
        found = await asyncio.to_thread(parse) if len(body) > LARGE else parse()
    except ValueError as exc:
        raise ApiError(400, f"The body is not valid JSON ({exc}).", code="invalid_json") from exc
    if not isinstance(found, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return {name: value for name, value in cast("dict[str, Any]", found).items() if value is not None}


async def form_fields(http: HttpRequest, *, nested: bool = False) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The texts and the files of a multipart form by name; the brackets of `image[]` are left out.

    If `nested`, texts may be lists and maps, as OpenAI's clients send them: `outpaint[]`, `adapters[NAME]`.

    Raises `ApiError`: 415 for another type of content, 400 for a damaged form, or a text that is given twice.
    """
    _check_type(http, "multipart/form-data")
    texts: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    try:
        async with http.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
            for key, value in form.multi_items():
                name = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    files.setdefault(name, []).append(await value.read())
                elif nested and (found := _NESTED.fullmatch(key)):
                    _collect(texts, found[1], found[2], value)
                elif name in texts:
                    raise _twice(name)
                else:
                    texts[name] = value
    except (FormParserError, ValueError, LookupError, HTTPException) as exc:  # the parser raises several kinds
        raise ApiError(
            400, "The body is not a valid multipart form, or has too many parts.", code="invalid_form"
        ) from exc
    return texts, files


def _collect(texts: dict[str, Any], name: str, key: str, value: str) -> None:
    """Add an item to a list, or the value of a key to a map."""
    held: Any = texts.setdefault(name, {} if key else [])
    if key and isinstance(held, dict) and key not in held:
        held[key] = value
    elif not key and isinstance(held, list):
        cast("list[str]", held).append(value)
    else:
        raise _twice(name)


def _twice(name: str) -> ApiError:
    return ApiError(400, f"The field {name[:80]!a} is given twice.", param=name[:80])


def request_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Request` by their names there, from fields that may have the names that other tools use
    (`num_inference_steps`). Raises `ApiError` 400 with the field at fault.
    """
    values: dict[str, Any] = {}
    for name, value in fields.items():
        field = name if name in Request.model_fields else other_name(name, Request)
        if field not in Request.model_fields or field in NOT_STATED:
            hint = f" Hint: {field}." if field and field not in NOT_STATED else ""
            raise ApiError(400, f"Unknown field {name[:80]!a}.{hint}", param=name[:80], code="unknown_parameter")
        if field in values:
            raise ApiError(400, f"{field} is given twice, also as {name[:80]!a}.", param=name[:80])
        try:
            Request.model_validate({field: value})
        except RequestError as exc:
            raise ApiError(400, str(exc), param=name) from exc
        values[field] = value
    return values


def truth(left: dict[str, Any], name: str, default: bool) -> bool:
    """Take a field that is true or false, also as a word of a form; raises `ApiError` 400 for another value."""
    value = left.pop(name, default)
    if value in ("true", "false"):
        value = value == "true"
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false.", param=name)
    return value


def _check_type(http: HttpRequest, wanted: str) -> None:
    found = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != wanted:
        raise ApiError(
            415,
            f"The body's type is {found[:80]!a}; {wanted} was expected. Set the header Content-Type.",
            code="wrong_content_type",
        )
