"""Replacement of the weights of a TensorRT plan that was built with `refit = true`, on its GPU.

The library's refitter matches weights by name. Whether anything else in the graph differs is checked by the digest of
the graph without its weights (`weights.without_weights`), which is stored beside the plan. By TensorRT 11.3's
documentation a plan built for refitting may silently lose the bias of a matrix product, so neither it nor a refitted
plan is used before it was compared with the reference
(docs.nvidia.com/deeplearning/tensorrt/11.3.0/inference-library/refitting-engines.html).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CompileError
from .border import NO_REASON


def refitted(library: Any, log: Any, plan: bytes, graph: Path) -> bytes:
    """A plan with the weights of an ONNX graph. The GPU's context must be current. Raises `CompileError`."""
    engine = library.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise CompileError(f"TensorRT cannot load the plan to refit: {log.worst or NO_REASON}.")
    refitter = library.Refitter(engine, log)
    parser = library.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(graph)):
        reason = parser.get_error(0).desc() if parser.num_errors else log.worst
        raise CompileError(f"TensorRT refuses the weights: {reason or NO_REASON}.")
    if not refitter.refit_cuda_engine():
        raise CompileError(f"TensorRT cannot refit the plan: {log.worst or NO_REASON}.")
    config = engine.create_serialization_config()
    if hasattr(library.SerializationFlag, "INCLUDE_REFIT"):  # before 10.14 plans stay refittable without the flag
        config.set_flag(library.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))
