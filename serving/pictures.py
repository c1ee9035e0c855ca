"""Results as files: PNG, JPEG and WebP with the request inside, and the route of those that are answered as a URL."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from PIL import Image

from ..core.request import Result
from ..pipelines.png import drawings, read
from ..pipelines.save import encoded
from .errors import ApiError, openai_body, route_class
from .guard import FILES
from .queue import ImageJob
from .service import Service, result_of
from .signing import TYPES, ContentSigner

NAME, PREFIXES = "files", (FILES,)
_NAME = re.compile(r"([0-9]{1,3})\.(png|jpeg|webp)")


async def files(
    service: Service,
    result: Result,
    kind: str,
    quality: int | None = None,
    indices: Sequence[int] | None = None,
) -> list[bytes]:
    """The images of a result, or those of `indices`, as files of a kind of `TYPES`, marked as generated, and signed if
    the server has a certificate.

    `quality` is that of JPEG, and of WebP below 100, which is lossless otherwise.
    """
    return await asyncio.to_thread(_files, service.added.signer, result, kind, quality, indices)


def _files(
    signer: ContentSigner | None, result: Result, kind: str, quality: int | None, indices: Sequence[int] | None
) -> list[bytes]:
    plain = (
        encoded(image, drawing, f".{kind}", quality=quality, marked=True)
        for index, (image, drawing) in enumerate(zip(result.images, drawings(result), strict=True))
        if indices is None or index in indices
    )
    return [one if signer is None else signer.sign(one, kind) for one in plain]


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
        (content,) = await files(service, result, found[2], indices=[int(found[1])])
        return Response(content, media_type=TYPES[found[2]], headers={"cache-control": "private, max-age=600"})

    return routes
