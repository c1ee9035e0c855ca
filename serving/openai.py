"""OpenAI's Images API: generations, edits, and the list of models.

Fields, answers and events as in openai-python 3.57.0 (`types/image_generate_params.py`, `types/image_gen_*_event.py`).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from ..core.errors import RequestError
from ..core.request import Request, Result, Step
from ..pipelines.picture import load_clear
from ..pipelines.save import check_jpeg
from .bodies import ALIVE, SSE, form_fields, json_fields, request_fields, truth
from .errors import ApiError, api_error, openai_body, route_class
from .image_job import ImageJob, result_of
from .inputs import CONTROLS, check_files, take_controls
from .pictures import base64_of, files, json_answer, path_of, plain_file
from .service import Service
from .signing import TYPES

NAME, PREFIXES = "openai", ("/v1/images/generations", "/v1/images/edits", "/v1/models")
IGNORED = ("moderation", "user", "safety_identifier", "complexity")
"""Fields that don't say what to draw."""
NO_EFFECT = ("quality", "input_fidelity")
"""Fields of OpenAI's own models: they have no effect here, which a notice says."""
SHARE = 0.9
"""Of the seconds for which a client waits, after which it is answered 504: it would ask again, and twice."""
STYLES = ("vivid", "natural")
"""Styles of OpenAI's own models, without effect too. Any other `style` is an image."""
USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""OpenAI's clients need it; nothing is counted in tokens here."""


@dataclass(frozen=True)
class ImagesAsked:
    """A request, and how its images are to be sent."""

    request: Request
    model: str | None
    as_url: bool
    kind: str
    """Of `pictures.TYPES`."""
    quality: int | None
    stream: bool
    partial_images: int
    store: bool
    """Whether its images enter the history of the server."""
    notices: tuple[str, ...]
    inputs: Mapping[str, Any]
    """The files of `control` and `style`."""


def asked(fields: Mapping[str, Any]) -> ImagesAsked:
    """The request of a body's fields, none of which is null; numbers may be strings, as in forms.

    OpenAI's fields, and those of `Request` under their own names and those of other tools (`steps`,
    `num_inference_steps`). Raises `ApiError` 400 with the field at fault.
    """
    left = dict(fields)
    for name in IGNORED:
        left.pop(name, None)
    without = [name for name in NO_EFFECT if left.pop(name, "auto") not in ("auto", "standard")]
    if left.get("style") in STYLES:
        without.append("style")
        del left["style"]
    notices = tuple(f"{name} has no effect on this model." for name in without)
    inputs = take_controls(left)
    prompt = left.pop("prompt", None)
    if not isinstance(prompt, str):
        raise ApiError(400, "A prompt is needed, which is a text.", param="prompt", code="missing_prompt")
    _choice(left, "background", ("auto", "opaque"), "auto")
    kind = _choice(left, "output_format", tuple(TYPES), "png")
    compression = _whole(left, "output_compression", 0, 100, None)
    if kind == "png" and compression not in (None, 100):
        raise ApiError(400, "A PNG has no output_compression. Use jpeg or webp.", param="output_compression")
    quality = None if compression is None else max(1, compression)
    as_url = _choice(left, "response_format", ("b64_json", "url"), "b64_json") == "url"
    if as_url and compression not in (None, 100):
        raise ApiError(400, "An image as a URL has no output_compression. Leave it out.", param="output_compression")
    stream, partial = truth(left, "stream", False), _whole(left, "partial_images", 0, 3, 0) or 0
    store = truth(left, "store", True)
    model = left.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise ApiError(400, "The model is not a text.", param="model")
    if stream and as_url:
        raise ApiError(400, "A stream has no URLs. Leave response_format out.", param="response_format")
    sides = _size(left.pop("size", "auto"))
    values = request_fields({"prompt": prompt, **left})
    if sides.keys() & values.keys():
        raise ApiError(400, "The size is given twice, also as width or height. Leave one out.", param="size")
    request = Request.model_validate(values | sides)
    if kind == "jpeg":
        check_jpeg(request)
    return ImagesAsked(request, model, as_url, kind, quality, stream, partial, store, notices, inputs)


def _size(value: Any) -> dict[str, int]:
    """Width and height of `WxH`; none for `auto`, the model's own."""
    if value == "auto":
        return {}
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value) if isinstance(value, str) else None
    sides: dict[str, int] = {"width": int(found[1]), "height": int(found[2])} if found else {}
    try:
        if not sides:
            raise RequestError("It is not WIDTHxHEIGHT, such as 512x512, or auto.")
        Request.model_validate(sides)
    except RequestError as exc:
        raise ApiError(400, f"The size {str(value)[:40]!a} is not valid. {exc}", param="size") from exc
    return sides


def _choice(left: dict[str, Any], name: str, known: tuple[str, ...], default: str) -> str:
    value = left.pop(name, default)
    if value not in known:
        raise ApiError(400, f"{name} must be one of: {', '.join(known)}.", param=name)
    return value


def _whole(left: dict[str, Any], name: str, least: int, most: int, default: int | None) -> int | None:
    value = left.pop(name, default)
    if isinstance(value, str) and value.isdecimal() and len(value) <= 9:
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
        raise ApiError(400, f"{name} must be a whole number from {least} to {most}.", param=name)
    return value


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=route_class(openai_body))

    @routes.post("/v1/images/generations")
    async def generations(http: HttpRequest) -> Response:
        wanted = await _understood(await json_fields(http))
        return await _answer(service, http, wanted, "image_generation", wanted.inputs)

    @routes.post("/v1/images/edits")
    async def edits(http: HttpRequest) -> Response:
        texts, sent = await form_fields(http, nested=True)
        wanted = await _understood(texts)
        chosen = service.check_first(wanted.request, wanted.model)
        files = edited(wanted, sent, styled=chosen.pipeline.bundle.manifest.model.takes_style)
        return await _answer(service, http, wanted, "image_edit", await _decoded(service, files))

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, name) for name in service.models]}

    @routes.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return _model(service, service.model(name).name)

    return routes


async def _understood(fields: Mapping[str, Any]) -> ImagesAsked:
    """`asked`, in another thread where images are decoded from base64."""
    return await asyncio.to_thread(asked, fields) if fields.keys() & {*CONTROLS} else asked(fields)


def edited(wanted: ImagesAsked, sent: Mapping[str, list[bytes]], *, styled: bool) -> dict[str, Any]:
    """The files that accompany the request of an edit: `image`, and `mask`, `control` and `style` if its form has
    them, also as base64. If the model is `styled`, by an IP-Adapter, a second `image` is the style. Raises `ApiError`
    400.
    """
    check_files(sent, ("image", "mask", *CONTROLS))
    images, masks = sent.get("image", []), sent.get("mask", [])
    if not images:
        raise ApiError(400, "An image is needed: that which is changed.", param="image")
    if len(images) > 1 + styled:
        reads = "reads a second image as the style, and no third" if styled else "has no IP-Adapter for a second image"
        raise ApiError(400, f"{len(images)} images were sent, but this model {reads}. Send fewer.", param="image")
    if len(masks) > 1:
        raise ApiError(400, f"{len(masks)} masks were sent. Send one.", param="mask")
    if twice := next((name for name in CONTROLS if name in sent and name in wanted.inputs), None):
        raise ApiError(400, f"{twice} is given twice, as a file and as base64. Leave one out.", param=twice)
    styles = [*images[1:], *sent.get("style", [])]
    if len(styles) > 1 or (styles and "style" in wanted.inputs):
        raise ApiError(400, "Several style images were sent. Send one, as style or as the second image.", param="style")
    files: dict[str, Any] = {"image": images[0], **({"mask": masks[0]} if masks else {})}
    files |= {"control": sent["control"]} if "control" in sent else {}
    return files | ({"style": styles[0]} if styles else {}) | dict(wanted.inputs)


async def _decoded(service: Service, files: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of an edit from its files: the transparent area of the mask is generated."""
    if (mask := files.get("mask")) is None:
        return dict(files)
    return {**files, "mask": await service.decode(partial(load_clear, mask), {"mask": mask})}


def _model(service: Service, name: str) -> dict[str, Any]:
    about = {"created": service.models[name].created, "owned_by": "latentc", "state": service.state(name)}
    return {"id": name, "object": "model", **about}


async def _answer(
    service: Service, http: HttpRequest, wanted: ImagesAsked, event: str, inputs: Mapping[str, Any]
) -> Response:
    """Queue a request, and answer with its images, or with a stream of events."""
    previews: list[str] = []
    partial = wanted.stream and wanted.partial_images and service.added.check is None
    if partial:
        await asyncio.to_thread(service.model(wanted.model).pipeline.check_decoding)
    job = await service.submit(
        wanted.request,
        http,
        model=wanted.model,
        inputs=inputs,
        api=NAME,
        keep=wanted.as_url,
        on_step=_previewing(service, wanted, previews) if partial else None,
        store=wanted.store,
        seconds=math.inf if wanted.stream else SHARE * _patience(http),
    )
    if wanted.stream:
        events = _events(service, job, wanted, event, previews)
        left = BackgroundTask(service.cancel, job, "disconnect")  # runs when the answer has ended, or its client left
        return StreamingResponse(events, headers=SSE, media_type="text/event-stream", background=left)
    result = await service.result(job, http)
    if wanted.as_url:
        base = str(http.base_url).rstrip("/")
        data = [{"url": base + path_of(job, index, wanted.kind)} for index in _returned(job, result)]
    else:
        contents = await files(service, job, result, wanted.kind, wanted.quality, _returned(job, result))
        data = await asyncio.to_thread(lambda: [{"b64_json": base64_of(one)} for one in contents])
    more = {"seed": result.request.seed, "engines": dict(result.engines), "notices": [*wanted.notices, *result.notices]}
    about = {"created": int(job.created), "data": data, **_about(job, wanted), **more}
    return await json_answer(lambda: about)


def _about(job: ImageJob, wanted: ImagesAsked) -> dict[str, Any]:
    """What answers and events say of their images."""
    size = f"{job.request.width}x{job.request.height}"
    return {"size": size, "quality": "auto", "background": "opaque", "output_format": wanted.kind}


def _patience(http: HttpRequest) -> float:
    """Seconds after which an OpenAI client (Python, npm) asks again, as its headers state."""
    for name in ("x-stainless-read-timeout", "x-stainless-timeout"):
        with suppress(ValueError):
            if (found := float(http.headers.get(name, ""))) > 0:
                return found
    return math.inf


def _previewing(service: Service, wanted: ImagesAsked, previews: list[str]) -> Callable[[ImageJob, Step], bool]:
    """What adds the first image to `previews` at some of the steps before the last, evenly spaced, as `b64_json`, and
    returns whether it did.
    """
    count = wanted.partial_images

    def stepped(job: ImageJob, step: Step) -> bool:
        marks = {round(step.total * (index + 1) / (count + 1)) for index in range(count)} - {step.total}
        if step.index not in marks or len(previews) >= count:
            return False
        pipeline = service.of(job).pipeline  # which may have replaced the one that the client found
        pixels = pipeline.decode_step(job.request, replace(step, estimate=step.estimate[:1]))[0]
        previews.append(base64_of(plain_file(pixels, wanted.kind)))
        return True

    return stepped


async def _events(
    service: Service, job: ImageJob, wanted: ImagesAsked, event: str, previews: list[str]
) -> AsyncGenerator[str]:
    """Server-sent events: partial images, then the images or an error."""
    sent = 0
    try:
        async for _ in service.changes(job):
            yield ALIVE
            while sent < len(previews):
                more = {"b64_json": previews[sent], "partial_image_index": sent}
                yield _event(f"{event}.partial_image", job, wanted, more)
                sent += 1
        result = result_of(job)
        for content in await files(service, job, result, wanted.kind, wanted.quality, _returned(job, result)):
            yield _event(f"{event}.completed", job, wanted, {"b64_json": base64_of(content), "usage": USAGE})
    except Exception as exc:
        yield f"data: {json.dumps(openai_body(api_error(exc)))}\n\n"


def _returned(job: ImageJob, result: Result) -> list[int]:
    """Indices of the images that are not withheld."""
    return [index for index in range(len(result.images)) if index not in job.filtered]


def _event(name: str, job: ImageJob, wanted: ImagesAsked, more: Mapping[str, Any]) -> str:
    fields = {"type": name, "created_at": int(time.time()), **_about(job, wanted), **more}
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n"
