"""Reading of a lowered graph whose weights are in another folder (`Job.weights`), for libraries that refuse links."""

from __future__ import annotations

import mmap
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

IN_MEMORY = "*/_ORT_MEM_ADDR_/*"
"""Stands for a file name where the offset is an address. ONNX Runtime and OpenVINO exchange graphs in this way."""


def read_graph(graph: Path, weights: Path) -> Any:
    """Read a graph with onnx-ir, with its external data in the folder `weights`; raises onnx-ir's errors."""
    library: Any = import_module("onnx_ir")
    model = library.load(graph)
    library.external_data.set_base_dir(model.graph, weights)
    return model


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
