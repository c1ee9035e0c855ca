"""The rate that a runtime reaches in plain matrix products, with which the rate of an engine is compared.

Measured on this machine with the profile's device, options and precision. It isn't a strict limit: a runtime may
convolve faster than it multiplies matrices, by algorithms with fewer multiplications.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from ..core.engine import Engine
from ..core.errors import RuntimeMissing
from ..core.install import install
from ..core.manifest import TensorInfo
from ..core.recipes import RECIPES, Precision
from ..core.tensors import Array
from ..profiles import Profile
from ..runtimes import Target, runtime
from .bare import bare_engine

SIZES = (1024, 2048, 4096, 8192)
"""Sides of the matrices, in the order in which they are tried while the rate still grows."""

DEPTH = 8
"""Products per call, so that input and output cost little in comparison."""

CALLS = 5
"""Timed calls at each size, after one warm-up call."""

LONGEST_SECONDS = 0.5
"""No larger size is tried after a call that took longer than this."""

GROWTH = 1.02
"""The next size is tried only if the rate grew by this factor."""


def measure_ceiling(
    profile: Profile,
    precision: Precision,
    sizes: tuple[int, ...] = SIZES,
    clock: Callable[[], float] = perf_counter,
) -> float | None:
    """Measure the best TFLOP/s of matrix products through a profile's runtime; None if it compiles no graphs, or for a
    recipe that quantizes, whose engines compute some of their layers in another type.

    A multiply-add is 2 FLOP, and the fastest call counts. On a CPU it takes a few seconds, and memory for `DEPTH`
    matrices of the largest size: 1 GB at 4096.

    Raises `RuntimeMissing` if the runtime or onnx isn't installed, `ProfileError` for options of the profile that the
    device doesn't support, and `CompileError` from the runtime.
    """
    adapter = runtime(profile.runtime)
    if reason := adapter.missing(profile.device):
        raise RuntimeMissing(f"Profile {profile.name} cannot be measured on this machine: {reason}")
    if not adapter.facts.reads_onnx or RECIPES[precision].int8_weights:
        return None
    adapter.check(profile.options, profile.device)
    best: float | None = None
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            engine = product_engine(profile, precision, size, Path(folder))
            try:
                seconds = min(_time(engine, size, clock))
            finally:
                engine.close()
        rate = product_flops(size) / seconds / 1e12
        grown = best is None or rate >= GROWTH * best
        best = rate if best is None else max(best, rate)
        if not grown or seconds > LONGEST_SECONDS:
            break
    return best


def product_flops(size: int) -> int:
    """FLOP of one call of `product_engine`, without its final maximum, as in `count_flops`."""
    return DEPTH * 2 * size**3


def product_engine(profile: Profile, precision: Precision, size: int, folder: Path) -> Engine:
    """Compile an f32 engine that computes `rows` [size], the row maxima of x W W W..., from `x` [size, size].

    It is compiled into `folder` through the profile's runtime, like a part of a bundle. The output is small, so that
    copying it costs little, and depends on every product.
    """
    graph = folder / "product.onnx"
    write_product(graph, size)
    target = Target(
        runtime=profile.runtime,
        device=profile.device,
        precision=precision,
        options=profile.options,
        inputs=(TensorInfo(name="x", dtype="float32", shape=(size, size)),),
        outputs=(TensorInfo(name="rows", dtype="float32", shape=(size,)),),
        shape={"x": (size, size)},
    )
    return bare_engine(graph, target, folder)


def write_product(path: Path, size: int) -> None:
    """Write the ONNX graph of `product_engine` at opset 18, with its weight in a file beside it.

    Raises `RuntimeMissing` if onnx isn't installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as exc:
        raise RuntimeMissing(f"Measuring the ceiling needs onnx ({exc}). {install('build')}") from exc
    make: Any = helper
    names = ["x", *(f"product.{index}" for index in range(DEPTH))]
    nodes = [make.make_node("MatMul", [before, "weight"], [after]) for before, after in pairwise(names)]
    nodes.append(make.make_node("ReduceMax", [names[-1], "axes"], ["rows"], keepdims=0))
    graph = make.make_graph(
        nodes,
        "product",
        [make.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
        [make.make_tensor_value_info("rows", TensorProto.FLOAT, [size])],
        [
            numpy_helper.from_array(weight(size), "weight"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
        ],
        value_info=[make.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in names[1:]],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    cast("Any", onnx).save(model, str(path), save_as_external_data=True, location=f"{path.name}_data")


def weight(size: int) -> Array:
    """The matrix: independent normal values, scaled to preserve the norm of a row, so that f16 doesn't overflow."""
    values = np.random.default_rng(size).standard_normal((size, size), dtype=np.float32)
    return values * np.float32(size**-0.5)


def entry(size: int) -> Array:
    """The input of the engine: standard normal values, f32 [size, size]."""
    return np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)


def _time(engine: Engine, size: int, clock: Callable[[], float]) -> tuple[float, ...]:
    run = engine.bind({"x": entry(size)})
    run({})
    seconds: list[float] = []
    for _ in range(CALLS):
        started = clock()
        run({})
        seconds.append(clock() - started)
    return tuple(seconds)
