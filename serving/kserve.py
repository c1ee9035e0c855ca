"""The Open Inference Protocol (KServe v2) over HTTP: health, metadata and `infer`, with JSON or binary tensors.

Inputs are fields of `Request`, a tensor of one element each: `prompt` (BYTES), `steps` (INT64), `guidance` (FP32). The
output is `image`, UINT8 [count, height, width, 3].
Sources: https://github.com/kserve/open-inference-protocol, and of Triton's `docs/protocol` the extensions of binary
tensor data and of the model repository.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from numpy.typing import NDArray

from ..core.request import Request
from ..core.units import listed
from ..core.version import __version__
from .bodies import parsed, truth
from .errors import ApiError, route_class
from .limits import PROMPT
from .loading import load_apart
from .service import Service

NAME, PREFIXES = "kserve", ("/v2/",)
LENGTH = "inference-header-content-length"
"""Header with the number of bytes of JSON, which binary tensors follow."""

TYPES = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Numpy's type of each type of the protocol but BYTES."""

INPUTS = {
    "prompt": "BYTES", "negative_prompt": "BYTES", "width": "INT64", "height": "INT64", "steps": "INT64",
    "guidance": "FP32", "guidance_rescale": "FP32", "seed": "INT64", "count": "INT64", "scheduler": "BYTES",
    "clip_skip": "INT64", "prompt_syntax": "BYTES", "eta": "FP32",
}  # fmt: skip
"""Fields of a request that have inputs, and the types in the metadata; other numeric types are taken too."""

STATES = {
    "open": {"state": "READY", "reason": ""},
    "loading": {"state": "LOADING", "reason": ""},
    "closing": {"state": "UNLOADING", "reason": ""},
    "closed": {"state": "UNAVAILABLE", "reason": "A request loads it."},
}
"""States of the repository's index."""

OUTPUT = "image"
MOST_DIGITS = 12
"""Of `LENGTH`."""
MOST_VALUES = 1_000_000
"""Numbers of an output in JSON."""


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v2", route_class=route_class(kserve_body))

    @routes.get("")
    async def server() -> dict[str, Any]:
        return {"name": "latentc", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> Response:
        return _ready(service)

    @routes.get("/models/{name}/versions/1")
    @routes.get("/models/{name}")
    async def metadata(name: str) -> dict[str, Any]:
        return {
            "name": service.model(name).name,
            "versions": ["1"],
            "platform": "latentc",
            "inputs": [{"name": field, "datatype": kind, "shape": [1]} for field, kind in INPUTS.items()],
            "outputs": [{"name": OUTPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        }

    @routes.get("/models/{name}/versions/1/ready")
    @routes.get("/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        service.model(name)
        return _ready(service)

    @routes.post("/models/{name}/versions/1/infer")
    @routes.post("/models/{name}/infer")
    async def infer(name: str, http: HttpRequest) -> Response:
        header, tensors = await _divided(await http.body(), http.headers.get(LENGTH))
        asked = request_of(header, tensors)
        as_bytes = _wants_bytes(header)
        if not as_bytes and (values := _values(service, name, asked)) > MOST_VALUES:
            raise ApiError(
                400,
                f"The image would have {values:,} numbers, and JSON may have {MOST_VALUES:,} here. Ask for the output "
                "with binary_data.",
            )
        store = truth(dict(_parameters(header)), "store", True)
        job = await service.submit(asked, http, model=name, api=NAME, store=store)
        result = await service.result(job, http)
        about = {"seed": result.request.seed, "notices": "\n".join(result.notices)}
        return await asyncio.to_thread(_answer, name, header.get("id"), result.images, about, as_bytes=as_bytes)

    @routes.post("/repository/index")
    async def index(http: HttpRequest) -> list[dict[str, str]]:
        only_ready = truth(await _asked(http), "ready", False)
        found = [{"name": name, "version": "1", **STATES[service.state(name)]} for name in service.models]
        return [one for one in found if one["state"] == "READY" or not only_ready]

    @routes.post("/repository/models/{name}/load")
    async def load_again(name: str, http: HttpRequest) -> Response:
        _check_controlled(service)
        if _parameters(await _asked(http)):
            raise ApiError(400, "A load takes no config and no files: it opens what the model's folder holds.")
        await load_apart(service, name)
        return Response()

    @routes.post("/repository/models/{name}/unload")
    async def free() -> Response:
        raise ApiError(400, "Models are not unloaded by requests. With --memory, those that aren't used are freed.")

    return routes


def _check_controlled(service: Service) -> None:
    if not service.model_control:
        raise ApiError(403, "Clients can't load models here. Start the server with --model-control, or send it SIGHUP.")


async def _asked(http: HttpRequest) -> dict[str, Any]:
    """The JSON of a body, which may be empty."""
    body = await http.body()
    return await parsed(body) if body else {}


def _values(service: Service, name: str, asked: Request) -> int:
    """The number of values of the images of a request."""
    width, height = service.model(name).pipeline.bundle.manifest.model.own_size
    return asked.count * (asked.width or width) * (asked.height or height) * 3


def kserve_body(error: ApiError) -> dict[str, Any]:
    """An error in the protocol's form."""
    return {"error": str(error)}


def _ready(service: Service) -> Response:
    return Response(json.dumps({"ready": service.ready}), 200 if service.ready else 503, media_type="application/json")


async def _divided(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON of a body, and the binary tensors after it."""
    if length is not None and not (length.isdecimal() and len(length) <= MOST_DIGITS and int(length) <= len(body)):
        raise ApiError(400, f"The header {LENGTH} is {length[:20]!a}, but the body has {len(body)} bytes.")
    size = len(body) if length is None else int(length)
    return await parsed(body[:size]), body[size:]


def request_of(header: Mapping[str, Any], tensors: bytes = b"") -> Request:
    """The request of an inference: `header` is its JSON, `tensors` the binary data after it.

    Raises `ApiError` and `RequestError` naming the input at fault.
    """
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ApiError(400, "The inputs are missing. Pass a tensor for the prompt at least.")
    values: dict[str, Any] = {}
    start = 0
    for one in cast("list[Any]", inputs):
        if not isinstance(one, dict):
            raise ApiError(400, "An input must be an object with name, datatype, shape and data.")
        tensor = cast("dict[str, Any]", one)
        name = str(tensor.get("name", "")).lower()
        if name not in INPUTS:
            raise ApiError(400, f"There is no input {name[:80]!a}. Known: {listed(INPUTS)}.")
        if name in values:
            raise ApiError(400, f"The input {name} is given twice.")
        size = _parameters(tensor).get("binary_data_size")
        if size is None:
            values[name] = _single(tensor.get("data"), name)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tensors) - start:
            raise ApiError(400, f"The input {name} has the binary_data_size {str(size)[:20]}, beyond the body's end.")
        values[name] = _unpacked(tensors[start : start + size], str(tensor.get("datatype")), name)
        start += size
    if start < len(tensors):
        raise ApiError(400, f"{len(tensors) - start} bytes follow the last input. Correct binary_data_size.")
    return Request.model_validate(values)


def _parameters(of: Mapping[str, Any]) -> Mapping[str, Any]:
    found = of.get("parameters")
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _single(data: Any, name: str) -> Any:
    """The only element of a tensor in JSON, which may be nested."""
    while isinstance(data, list) and len(cast("list[Any]", data)) == 1:
        data = cast("list[Any]", data)[0]
    if not isinstance(data, str | int | float):
        raise ApiError(400, f"The input {name} must have one element. Pass one tensor of shape [1].")
    return data


def _unpacked(data: bytes, kind: str, name: str) -> Any:
    """The only element of a binary tensor."""
    if len(data) > 4 * PROMPT + 4:
        raise ApiError(400, f"The input {name} has {len(data):,} bytes. A text may have {PROMPT:,} characters.")
    if kind == "BYTES":
        if len(data) < 4 or struct.unpack("<I", data[:4])[0] != len(data) - 4:
            raise ApiError(400, f"The input {name} must have one element: its length in 4 bytes, and its bytes.")
        try:
            return data[4:].decode()
        except UnicodeDecodeError:
            raise ApiError(400, f"The input {name} is not valid UTF-8.") from None
    if kind not in TYPES:
        raise ApiError(400, f"The input {name} has the datatype {kind[:20]!a}. Known: BYTES, {', '.join(TYPES)}.")
    if len(data) != np.dtype(TYPES[kind]).itemsize:
        raise ApiError(400, f"The input {name} must have one element. Pass one tensor of shape [1].")
    value = np.frombuffer(data, TYPES[kind])[0].item()
    return float(f"{value:.7g}") if kind == "FP32" else value


def _wants_bytes(header: Mapping[str, Any]) -> bool:
    """Whether the image is to be sent as binary data; raises `ApiError` for outputs that don't exist."""
    asked = header.get("outputs")
    default = bool(_parameters(header).get("binary_data_output"))
    if not isinstance(asked, list) or not asked:
        return default
    outputs = [cast("dict[str, Any]", one) if isinstance(one, dict) else {} for one in cast("list[Any]", asked)]
    if [one.get("name") for one in outputs] != [OUTPUT]:
        raise ApiError(400, f"The only output is {OUTPUT!r}, an object with that name. Ask for it, or for none.")
    return bool(_parameters(outputs[0]).get("binary_data", default))


def _answer(
    model: str, name: object, images: NDArray[np.uint8], about: Mapping[str, Any], *, as_bytes: bool
) -> Response:
    """The answer with the images; `about` are its parameters."""
    images = np.ascontiguousarray(images)
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "UINT8", "shape": list(images.shape)}
    whole: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": [output], "parameters": dict(about)}
    if isinstance(name, str):
        whole["id"] = name
    if not as_bytes:
        output["data"] = images.ravel().tolist()
        return Response(json.dumps(whole), media_type="application/json")
    output["parameters"] = {"binary_data_size": images.nbytes}
    text = json.dumps(whole).encode()
    return Response(text + images.tobytes(), media_type="application/octet-stream", headers={LENGTH: str(len(text))})
