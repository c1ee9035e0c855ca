"""A lowered graph, and weights that lie in another folder (`Job.weights`), as libraries take them that refuse links."""

from __future__ import annotations

import mmap
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

IN_MEMORY = "*/_ORT_MEM_ADDR_/*"
"""In place of a file's name: the offset is an address. ONNX Runtime and OpenVINO exchange graphs like this."""


def read_graph(graph: Path, weights: Path) -> Any:
    """A graph as onnx-ir reads it, its external data in the folder `weights`; raises whatever that raises."""
    library: Any = import_module("onnx_ir")
    model = library.load(graph)
    library.external_data.set_base_dir(model.graph, weights)
    return model


def in_memory(graph: Path, weights: Path) -> tuple[bytes, list[mmap.mmap]]:
    """A graph that refers to its external data by address, and the mapped files, which must live as long as it is used.

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
                raise ValueError(f"{name} leads out of {weights}")
            with path.open("rb") as file:
                mapped[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int(place.get("length", len(mapped[name]) - offset))
        if offset < 0 or length < 0 or offset + length > len(mapped[name]):
            raise ValueError(f"{tensor.name} lies beyond the end of {weights / name}")
        address = np.frombuffer(mapped[name], np.uint8).ctypes.data + offset
        del tensor.external_data[:]
        for key, value in (("location", IN_MEMORY), ("offset", address), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return model.SerializeToString(), list(mapped.values())
