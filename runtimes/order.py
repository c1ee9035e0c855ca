"""Names of a compiled program's inputs and outputs in order, stored as `names.json`: the program has only the order."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.errors import CompileError
from ..core.reading import read_plain, unreadable
from .base import Job
from .border import REBUILD

NAMES = "names.json"


def write_names(job: Job, out: Path) -> None:
    """Store the order of a graph's inputs and outputs; raises `CompileError` where they don't match the part."""
    try:
        onnx: Any = import_module("onnx")
        graph = onnx.load(str(job.graph), load_external_data=False).graph
    except Exception as exc:  # protobuf's own, or OSError
        raise CompileError(f"{job.graph} cannot be read as ONNX ({exc}). Export the checkpoint again.") from exc
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    wanted, given = {tensor.name for tensor in job.target.inputs}, {tensor.name for tensor in job.target.outputs}
    if set(inputs) != wanted or not given <= set(outputs):
        raise CompileError(
            f"{job.graph} has the inputs {inputs} and the outputs {outputs}, but the bundle expects {sorted(wanted)} "
            f"and {sorted(given)}. Export the checkpoint again."
        )
    (out / NAMES).write_text(json.dumps({"inputs": inputs, "outputs": outputs}) + "\n", encoding="utf-8", newline="\n")


def read_names(artifact: Path) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs, in order; raises `CompileError` where the file is damaged."""
    try:
        names = read_plain(artifact / NAMES, dict[str, list[str]])
        return names["inputs"], names["outputs"]
    except (OSError, ValueError, KeyError) as exc:
        raise CompileError(unreadable(artifact / NAMES, exc, REBUILD)) from exc
