"""Bodies of HTTP requests: JSON objects and multipart forms, read within limits, and their fields of a `Request`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
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
from .limits import PROMPT

SSE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of server-sent events."""
ALIVE = ": nothing new\n\n"
"""A comment among server-sent events: the connection is in use."""
NOT_STATED = ("image_sha256", "mask_sha256", "control_sha256", "style_sha256")
"""Fields of a request that results state, and clients don't."""
LARGE, MAX_MARKS = 1 << 16, 200_000
"""Bytes of JSON beyond which it is parsed in another thread; quotes, commas and brackets in a body."""
MAX_VALUES, MAX_TEXTS = 4096, 4 * PROMPT
"""Values in a body, those in lists and maps included, and characters of all its texts, without those of images."""
IMAGES = ("image", "mask", "init_images", "latent_mask", "firstpass_image", "alwayson_scripts", "control", "style")
"""Fields whose texts may be images in base64, as long as a body may be."""
MAX_FILES, MAX_FIELDS, MAX_FIELD_BYTES = 12, 64, 1 << 20
_NESTED = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")


async def json_fields(http: HttpRequest) -> dict[str, Any]:
    """The fields of a JSON object, without those that are null: for clients, null is an absent field.

    Raises `ApiError`: 415 for another type of content, 400 for anything but a JSON object, and as `check_values`.
    """
    _check_type(http, "application/json")
    found = await parsed(await http.body())
    return {name: value for name, value in found.items() if value is not None}


async def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object whose values are within the limits: a large one is parsed in another thread.

    Raises `ApiError` 400 for anything but a JSON object, and as `check_values`.
    """
    return await asyncio.to_thread(_parsed, body) if len(body) > LARGE else _parsed(body)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = parse_json(body, most_marks=MAX_MARKS)
    except ValueError as exc:
        raise ApiError(400, f"The body is not valid JSON ({exc}).", code="invalid_json") from exc
    if not isinstance(found, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    fields = cast("dict[str, Any]", found)
    check_values(fields)
    return fields


def check_values(fields: Mapping[str, Any]) -> None:
    """Raise `ApiError` 400, naming the field, for too many values, a text that is too long, or too much text.

    Routes translate bodies in the thread that serves every client, so what they are given is small. Texts of `IMAGES`
    have the limit of the body.
    """
    values, characters = 0, 0
    for field, value in fields.items():
        waiting: list[Any] = [field, value]
        while waiting:
            one = waiting.pop()
            values += 1
            if isinstance(one, list):
                waiting.extend(cast("list[Any]", one))
            elif isinstance(one, dict):
                waiting.extend(cast("dict[str, Any]", one))
                waiting.extend(cast("dict[str, Any]", one).values())
            elif isinstance(one, str) and field not in IMAGES:
                characters += len(one)
                if len(one) > PROMPT:
                    raise _beyond(field, f"a text of {len(one):,} characters", f"{PROMPT:,}")
        if values > MAX_VALUES:
            raise _beyond(field, f"{values:,} values, with those before it", f"{MAX_VALUES:,}")
        if characters > MAX_TEXTS:
            raise _beyond(field, f"{characters:,} characters, with those before it", f"{MAX_TEXTS:,}")


def _beyond(field: str, found: str, limit: str) -> ApiError:
    name = field[:80]
    message = f"The field {name!a} has {found}, but this server's limit is {limit}. Send less."
    return ApiError(400, message, param=name, code="limit_exceeded")


async def form_fields(http: HttpRequest, *, nested: bool = False) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The texts and the files of a multipart form by name; the brackets of `image[]` are left out.

    If `nested`, texts may be lists and maps, as OpenAI's clients send them: `outpaint[]`, `adapters[NAME]`.

    Raises `ApiError`: 415 for another type of content, 400 for a damaged form, or a text that is given twice, and as
    `check_values`.
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
    check_values(texts)
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
