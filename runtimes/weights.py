"""Weights of a lowered graph, which may be in another folder (`Job.weights`), for libraries that refuse links."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..core.external import values_of
from ..core.tensors import Array

IN_MEMORY = "*/_ORT_MEM_ADDR_/*"
"""Stands for a file name where the offset is an address. ONNX Runtime and OpenVINO exchange graphs in this way."""


WITHOUT_WEIGHTS = "graph.sha256"
"""In an artifact: the digest of its graph without its weights."""


def read_graph(graph: Path, weights: Path) -> Any:
    """Read a graph with onnx-ir, with its external data in the folder `weights`; raises onnx-ir's errors."""
    library: Any = import_module("onnx_ir")
    model = library.load(graph)
    library.external_data.set_base_dir(model.graph, weights)
    return model


def weights_in(graph: Path, weights: Path) -> dict[str, Array]:
    """The values of a graph's initializers by name; external ones are mapped from their files."""
    found = read_graph(graph, weights).graph.initializers
    return {name: values_of(value.const_value) for name, value in found.items()}


def without_weights(graph: Path, weights: Path, *, least: int = 0) -> str:
    """Digest of an ONNX graph without the values of its floating-point weights, but with their names and shapes.

    Weights with fewer than `least` numbers count as parts of the graph.
    """
    library: Any = import_module("onnx_ir")
    model = read_graph(graph, weights)
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        if not value.dtype.is_floating_point() or value.const_value.size < least:
            digest.update(value.const_value.tobytes())
        value.const_value = None
    model.graph.initializers.clear()
    digest.update(library.to_proto(model.graph).SerializeToString(deterministic=True))
    return digest.hexdigest()


def in_memory(graph: Path, weights: Path) -> tuple[bytes, list[mmap.mmap]]:
    """A graph that refers to its external data by address, and the mapped files, which must outlive its use.

    Raises `ValueError` for data outside of the folder `weights` or beyond the end of its file, and `OSError`.
    """
    onnx: Any = import_module("onnx")
    model = onnx.load(str(graph), load_external_data=False)
    mapped: dict[str, mmap.mmap] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        name, offset = place["location"], int(place.get("offset", 0))
        if name not in mapped:
            path = (weights / name).resolve()
            if not path.is_relative_to(weights.resolve()):
                raise ValueError(f"{name} is outside of {weights}")
            with path.open("rb") as file:
                mapped[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int(place.get("length", len(mapped[name]) - offset))
        if offset < 0 or length < 0 or offset + length > len(mapped[name]):
            raise ValueError(f"{tensor.name} is beyond the end of {weights / name}")
        address = np.frombuffer(mapped[name], np.uint8).ctypes.data + offset
        del tensor.external_data[:]
        for key, value in (("location", IN_MEMORY), ("offset", address), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return model.SerializeToString(), list(mapped.values())


def give_back(mapped: Iterable[mmap.mmap]) -> None:
    """Give the pages of mapped files back to the system. What is read again comes from the file, or its cache.

    Nothing may have been written to the pages: changes would be lost. Does nothing where the system can't.
    """
    for one in mapped:
        with suppress(AttributeError, OSError, ValueError):  # Windows has no madvise; a mapping may be closed
            one.madvise(mmap.MADV_DONTNEED)
