"""Other weights for a plan of TensorRT's that was built to take them (`refit = true`), on the GPU that it is for.

The library's refitter goes by the names of weights; whether anything else in the graph differs is compared here: the
digest of all but its weights lies beside the plan. By TensorRT 11.3's documentation a plan built for refitting may lose
the bias of a matrix product without a word, so neither it nor a refitted one is used before it was compared with the
reference (docs.nvidia.com/deeplearning/tensorrt/11.3.0/inference-library/refitting-engines.html).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

from ..core.errors import CompileError
from .weights import read_graph

WITHOUT_WEIGHTS = "graph.sha256"
"""In an artifact: the digest of its graph without its weights."""


def without_weights(graph: Path, weights: Path) -> str:
    """Digest of an ONNX graph without the values of its floating-point initializers; names, types and shapes count."""
    import onnx_ir as ir

    library = cast("Any", ir)
    model = read_graph(graph, weights)
    told = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        told.update(f"{name} {value.dtype} {value.shape}".encode())
        if not value.dtype.is_floating_point():
            told.update(value.const_value.tobytes())
        value.const_value = None
    model.graph.initializers.clear()
    told.update(library.to_proto(model.graph).SerializeToString(deterministic=True))
    return told.hexdigest()


def refitted(library: Any, log: Any, plan: bytes, graph: Path) -> bytes:
    """A plan with the weights of an ONNX graph; the GPU's context is current. Raises `CompileError`."""
    engine = library.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise CompileError(f"TensorRT can't load the plan to refit: {log.worst or 'it says no more'}.")
    refitter = library.Refitter(engine, log)
    parser = library.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(graph)):
        said = parser.get_error(0).desc() if parser.num_errors else log.worst
        raise CompileError(f"TensorRT wouldn't take the weights: {said or 'it says no more'}.")
    if not refitter.refit_cuda_engine():
        raise CompileError(f"TensorRT couldn't refit the plan: {log.worst or 'it says no more'}.")
    config = engine.create_serialization_config()
    if hasattr(library.SerializationFlag, "INCLUDE_REFIT"):  # before 10.14 it stays refittable without
        config.set_flag(library.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))
