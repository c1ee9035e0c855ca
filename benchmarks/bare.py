"""Compile graphs that belong to no bundle: the matrix products of the ceiling, and the judge of `scenes`."""

from __future__ import annotations

from pathlib import Path

from ..compiler.lower import lowered, needed_passes, weights_of
from ..core.engine import Engine
from ..core.progress import quiet
from ..runtimes import Job, Target, runtime
from ..runtimes.base import files_in


def bare_engine(graph: Path, target: Target, folder: Path) -> Engine:
    """Lower an ONNX graph, compile it into `folder` through the target's runtime, and load it.

    Raises what these three steps raise.
    """
    adapter = runtime(target.runtime)
    out = folder / "engine"
    out.mkdir()
    passes = needed_passes(adapter, target)
    with lowered(graph, "bare", adapter.facts.newest_opset, target.shape, passes) as path:
        adapter.compile(Job("bare", path, weights_of(path), target), out, quiet)
    return adapter.load(out, target, files_in(out))
