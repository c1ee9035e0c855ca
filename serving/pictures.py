"""Results as files: PNG, JPEG and WebP with the request inside, and the route of those that are answered as a URL."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import CancelledError, RequestError
from ..core.images import pixels_sha256
from ..core.request import Result, Step
from ..pipelines.picture import Decoded
from ..pipelines.png import drawings, origin, read
from ..pipelines.save import encoded
from .errors import ApiError, openai_body, route_class
from .guard import FILES
from .image_job import ImageJob, result_of
from .opened import OpenModel
from .service import Service
from .signing import TYPES, ContentSigner

NAME, PREFIXES = "files", (FILES,)
_NAME = re.compile(r"([0-9]{1,3})\.(png|jpeg|webp)")


async def files(
    service: Service,
    job: ImageJob,
    result: Result,
    kind: str,
    quality: int | None = None,
    indices: Sequence[int] | None = None,
) -> list[bytes]:
    """The images of a job's result, or those of `indices`, as files of a kind of `TYPES`, marked as generated, and
    signed if the server has a certificate.

    `quality` is that of JPEG, and of WebP below 100, which is lossless otherwise.
    """
    return await asyncio.to_thread(_files, service.added.signer, job.source, result, kind, quality, indices)


async def json_answer(build: Callable[[], Any]) -> JSONResponse:
    """The answer in JSON of what `build` returns, both made in another thread: with images, it has megabytes."""
    return await asyncio.to_thread(lambda: JSONResponse(build()))


def base64_of(content: bytes) -> str:
    """A file as a text in base64."""
    return base64.b64encode(content).decode()


def _files(
    signer: ContentSigner | None,
    source: bytes | None,
    result: Result,
    kind: str,
    quality: int | None,
    indices: Sequence[int] | None,
) -> list[bytes]:
    plain = (
        (encoded(image, drawing, f".{kind}", quality=quality, marked=True), drawing.request)
        for index, (image, drawing) in enumerate(zip(result.images, drawings(result), strict=True))
        if indices is None or index in indices
    )
    return [one if signer is None else signer.sign(one, kind, request, source) for one, request in plain]


def unfinished(model: OpenModel, job: ImageJob, step: Step, image: Decoded | None) -> Result:
    """The images of a cancelled job as the denoiser estimates them at a step; `image` is what they are made from, if
    any.

    Raises `CancelledError` where steps can't be decoded.
    """
    asked = job.completed or job.request
    try:
        images = model.decode_step(job.request, step)
    except RequestError as exc:
        raise CancelledError(f"The job was interrupted. {exc}") from exc
    digest = None if image is None else pixels_sha256(image.pixels)
    said = f"The image is unfinished: it was interrupted after step {step.index} of {step.total}."
    return Result(
        images=images,
        latents=step.estimate,
        request=asked.model_copy(update={"count": len(images), "image_sha256": digest}),
        seconds={"total": job.seconds},
        step_seconds=(),
        engines=model.describe(),
        notices=(said,),
        origin=origin(model.bundle, asked),
    )


def plain_file(pixels: NDArray[np.uint8], kind: str) -> bytes:
    """An image, [height, width, 3], without a request: a preview."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def read_file(content: bytes) -> dict[str, Any]:
    """What an image file says of how it was made. Seeds are texts: JavaScript rounds numbers above 2**53.

    Raises `RequestError` for a file without a request.
    """
    found = read(content)
    request = found.request.model_dump(mode="json")
    return {
        "request": {**request, "seed": None if found.request.seed is None else str(found.request.seed)},
        "text": found.text,
        "rest": dict(found.rest),
        "drawing": None if found.drawing is None else found.drawing.model_dump(mode="json", exclude={"request"}),
        "notices": list(found.notices),
    }


def path_of(job: ImageJob, index: int, kind: str) -> str:
    """The path of an image of a job that is kept."""
    return f"{FILES}{job.id}/{index}.{kind}"


def router(service: Service) -> APIRouter:
    """The route of images by job: its id is the secret that lets a client fetch them."""
    routes = APIRouter(route_class=route_class(openai_body))

    @routes.get(FILES + "{job}/{name}")
    async def file(job: str, name: str) -> Response:
        kept, found = service.kept.find(job), _NAME.fullmatch(name)
        result = result_of(kept)
        if found is None or int(found[1]) >= len(result.images) or int(found[1]) in kept.filtered:
            raise ApiError(404, "The job has no such file.", code="file_not_found")
        (content,) = await files(service, kept, result, found[2], indices=[int(found[1])])
        return Response(content, media_type=TYPES[found[2]], headers={"cache-control": "private, max-age=600"})

    return routes
