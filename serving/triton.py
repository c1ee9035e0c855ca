"""NVIDIA Triton's Python backend: a model that generates images with a pipeline (`latentc package --for triton`).

Inputs are those of KServe's protocol (`kserve`), each with Triton's axis of the batch before its one element: a row is
a request. Outputs are `image`, uint8 [rows, count, height, width, 3], and `seed`, int64 [rows, 1]. Requests that Triton
passes together are generated together (`Pipeline.draw_many`).
Source: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CancelledError, LatentcError, RequestError, ShapeError
from ..core.request import Request, Result, Step
from ..pipelines.pipeline import Pipeline
from .errors import ApiError
from .kserve import INPUTS, OUTPUT, request_of

SEED = "seed"
"""The output with the seed of each row, which a request need not state."""
PACKAGE = "package"
"""Folder of the engines, beside `model.py`."""


def model(file: str) -> type:
    """The class that `model.py`, at the path `file`, has to define for Triton's Python backend."""
    folder = Path(file).resolve().parent / PACKAGE

    class TritonPythonModel:
        """Called by Triton."""

        def initialize(self, args: dict[str, str]) -> None:
            """Open the pipeline."""
            del args
            self._backend: Any = import_module("triton_python_backend_utils")
            self._pipeline = Pipeline.open(folder)

        def execute(self, requests: Sequence[Any]) -> list[Any]:
            """Answer the requests of a batch."""
            return answers(self._pipeline, requests, self._backend)

        def finalize(self) -> None:
            """Release the engines."""
            self._pipeline.close()

    return TritonPythonModel


def answers(pipeline: Pipeline, requests: Sequence[Any], backend: Any) -> list[Any]:
    """The responses of requests in Triton's form; `backend` is the module `triton_python_backend_utils`."""
    rows = [_rows(one, backend) for one in requests]
    asked = [(index, row) for index, each in enumerate(rows) if not isinstance(each, Exception) for row in each]
    on_step = [partial(_goes_on, requests[index]) for index, _ in asked]
    results = pipeline.draw_many([row for _, row in asked], on_step, return_exceptions=True) if asked else []
    made: list[list[Result | Exception]] = [[] for _ in rows]
    for (index, _), result in zip(asked, results, strict=True):
        made[index].append(result)
    return [
        _error(row, backend) if isinstance(row, Exception) else _answer(results_of, backend)
        for row, results_of in zip(rows, made, strict=True)
    ]


def _goes_on(request: Any, step: Step) -> bool:
    """Whether the client still waits."""
    del step
    return not request.is_cancelled()


def _rows(request: Any, backend: Any) -> list[Request] | Exception:
    """The request of each row, or what is wrong with one."""
    found = {name: backend.get_input_tensor_by_name(request, name) for name in INPUTS}
    columns = {name: tensor.as_numpy().reshape(-1) for name, tensor in found.items() if tensor is not None}
    try:
        return [
            request_of(
                {"inputs": [{"name": name, "data": _plain(value)} for name, value in zip(columns, row, strict=True)]}
            )
            for row in zip(*columns.values(), strict=True)
        ]
    except (ApiError, LatentcError, ValueError) as exc:
        return exc


def _plain(value: Any) -> Any:
    """A tensor's element as JSON has it. Text that is not UTF-8 is a `ValueError`."""
    if isinstance(value, bytes):
        return value.decode()
    return float(f"{value:.7g}") if value.dtype == np.float32 else value.item()


def _answer(results: Iterable[Result | Exception], backend: Any) -> Any:
    """The response to a request of these rows: their images, or the first error."""
    rows: list[Result] = []
    for one in results:
        if isinstance(one, Exception):
            return _error(one, backend)
        rows.append(one)
    images = [one.images for one in rows]
    if len({each.shape for each in images}) > 1:
        return _error(RequestError("The rows of a request must have one count and size. Send them apart."), backend)
    seeds = np.array([[one.request.seed] for one in rows], np.int64)
    tensors = [backend.Tensor(OUTPUT, np.stack(images)), backend.Tensor(SEED, seeds)]
    return backend.InferenceResponse(output_tensors=tensors)


def _error(exc: Exception, backend: Any) -> Any:
    """The response of a failed request; the client's own mistakes are invalid arguments."""
    kinds = backend.TritonError
    code = kinds.INTERNAL
    if isinstance(exc, ApiError | RequestError | ShapeError | ValueError):
        code = kinds.INVALID_ARG
    elif isinstance(exc, CancelledError):
        code = kinds.CANCELLED
    return backend.InferenceResponse(error=kinds(str(exc), code))
