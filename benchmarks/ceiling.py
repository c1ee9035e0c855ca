"""The rate that a runtime reaches here in matrix products and nothing else: what an engine's rate is held against.

Measured on the spot, with the profile's own device, options and precision. It is a yardstick and no law: a runtime may
convolve faster than it multiplies matrices (by algorithms with fewer multiplications), and then an engine passes it.
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
from ..core.recipes import Precision
from ..core.tensors import Array
from ..profiles import Profile
from ..runtimes import Target, runtime
from .bare import bare_engine

SIZES = (1024, 2048, 4096, 8192)
"""Sides of the matrices, tried in turn for as long as the rate still grows."""

DEPTH = 8
"""Products in a row, so that what goes in and comes out is little beside them."""

CALLS = 5
"""Calls at each size, after one that isn't counted."""

LONGEST_SECONDS = 0.5
"""A size whose call takes longer is the last one."""

GROWTH = 1.02
"""A larger size must reach this many times the rate of the smaller one for a still larger one to be tried."""


def measure_ceiling(
    profile: Profile,
    precision: Precision,
    sizes: tuple[int, ...] = SIZES,
    clock: Callable[[], float] = perf_counter,
) -> float | None:
    """The best TFLOP/s that matrix products reach through a profile's runtime; None where that compiles no graphs.

    A multiply-add is 2 FLOP, and the fastest call counts. On a CPU it takes some seconds, and memory for `DEPTH`
    matrices of the largest size: 1 GB at 4096.

    Raises `RuntimeMissing` where the runtime or onnx isn't here, `ProfileError` for what the profile asks and the
    device hasn't, and `CompileError` from the runtime.
    """
    adapter = runtime(profile.runtime)
    if reason := adapter.missing(profile.device):
        raise RuntimeMissing(f"Profile {profile.name} can't be measured here: {reason}")
    if not adapter.facts.reads_onnx:
        return None
    adapter.check(profile.options)
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
    """FLOP of one call of `product_engine`; the largest value of each row is left out, as `count_flops` does."""
    return DEPTH * 2 * size**3


def product_engine(profile: Profile, precision: Precision, size: int, folder: Path) -> Engine:
    """An engine that computes `rows` [size], the largest value of each row of x W W W... from `x` [size, size], in f32.

    It is compiled into `folder` through the profile's runtime, as a part of a bundle is. The answer is small, so that
    little time goes into copying it, and every product is needed for it.
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
    """Write the ONNX graph of `product_engine`, at opset 18, its weight in a file beside it.

    Raises `RuntimeMissing` without onnx.
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
    """The matrix: independent normal values that keep a row's length as it is, so that nothing runs away in f16."""
    values = np.random.default_rng(size).standard_normal((size, size), dtype=np.float32)
    return values * np.float32(size**-0.5)


def entry(size: int) -> Array:
    """What the engine is fed: standard normal values, f32 [size, size]."""
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
