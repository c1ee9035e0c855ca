"""Whether the exported graph says what PyTorch said."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import ParityError, RuntimeMissing
from ..core.install import pip
from ..core.telemetry import switch_off_events
from ..core.tensors import Array, psnr_db

FLOOR_DB = 60.0
NEEDED = ("torch", "diffusers", "transformers", "onnx_ir", "onnxscript", "onnxruntime")


def installed() -> None:
    """Raise `RuntimeMissing` where a library that an export needs isn't here: better now than after a download."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise _lacking(name, "it isn't installed")


def ready() -> None:
    """Raise `RuntimeMissing` where one of them can't be imported: better now than after minutes."""
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as exc:
            raise _lacking(name, str(exc)) from exc


def _lacking(name: str, why: str) -> RuntimeMissing:
    return RuntimeMissing(
        f"An export traces PyTorch's modules and compares each with ONNX Runtime; {name} can't be imported ({why}). "
        f"Install what is missing: {pip('export', 'onnxruntime')}."
    )


def check(part: str, graph: Path, feeds: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Worst PSNR over a part's outputs, in dB, of the graph run as it stands: ONNX Runtime, nothing optimized.

    Raises `ParityError` below 60 dB, naming the part and the output.
    """
    ort: Any = import_module("onnxruntime")
    switch_off_events(ort)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(list(reference), dict(feeds))
    figures = {name: psnr_db(wanted, output) for (name, wanted), output in zip(reference.items(), outputs, strict=True)}
    worst = min(figures, key=lambda name: figures[name])
    if figures[worst] < FLOOR_DB:
        raise ParityError(
            f"The exported {part} isn't what PyTorch computes: {worst} agrees to {figures[worst]:.1f} dB, and "
            f"{FLOOR_DB:.0f} dB was expected. Nothing was written; please report the checkpoint."
        )
    return figures[worst]
