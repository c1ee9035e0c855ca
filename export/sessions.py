"""Graphs run by ONNX Runtime on the CPU, without optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import CheckpointError
from ..core.kernels import CPU
from ..core.limits import is_out_of_memory, threads
from ..core.record import in_a_line
from ..core.telemetry import switch_off_events
from ..core.tensors import Array


def unoptimized(path: Path) -> Any:
    """ONNX Runtime's session of a graph on the CPU, without optimization; raises what the library raises."""
    ort: Any = import_module("onnxruntime")
    switch_off_events(ort)
    options = ort.SessionOptions()
    if (count := threads()) is not None:
        options.intra_op_num_threads = count
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    # In the order of the graph, each weight is cast where it is used; by default, many are cast before that.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False  # from the second call of a shape on, it took 7 GB more for 3.5 Large
    options.log_severity_level = 4  # errors are raised too
    return ort.InferenceSession(str(path), options, providers=[CPU])


class CpuSession:
    """One graph, unmodified; closed at the end of the `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._session: Any = unoptimized(path)
        except Exception as exc:
            if is_out_of_memory(exc):
                raise
            raise CheckpointError(
                f"ONNX Runtime cannot run {path} on the CPU: {in_a_line(exc).rstrip('.')}. Export the model to ONNX "
                "again."
            ) from exc

    def __enter__(self) -> CpuSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run the graph; returns these outputs, in order (None: all). Raises CheckpointError."""
        try:
            return self._session.run(None if outputs is None else list(outputs), dict(feeds))
        except Exception as exc:
            if is_out_of_memory(exc):
                raise
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise CheckpointError(
                f"ONNX Runtime failed to run {self.path} with {shapes}: {in_a_line(exc).rstrip('.')}. Export the model "
                "to ONNX again."
            ) from exc

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph; returns its outputs by name."""
        names = [str(output.name) for output in self._session.get_outputs()]
        return dict(zip(names, self.run(names, feeds), strict=True))
