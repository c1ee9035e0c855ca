"""Comparison of an exported graph with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.parts import PartSpec, as_part
from ..core.errors import ParityError, RuntimeMissing
from ..core.install import need, pip
from ..core.limits import threads
from ..core.norms import stage_norms
from ..core.records import GRAPH_DB, GraphFigure
from ..core.references import Case
from ..core.tensors import PERFECT_DB, Array, psnr_db
from .sessions import unoptimized
from .weights import computing

if TYPE_CHECKING:
    from ..checkpoints.open import Checkpoint

NEEDED = ("torch", "diffusers", "transformers", "onnx_ir", "onnxscript", "onnxruntime")


def absent() -> str | None:
    """The first library that an export needs and that isn't installed; None if all are."""
    return next((name for name in NEEDED if find_spec(name) is None), None)


def installed(instead: str = "") -> None:
    """Raise `RuntimeMissing` if a library that an export needs isn't installed, before anything is downloaded.

    `instead` is a sentence on what works without it.
    """
    if name := absent():
        raise _lacking(name, "it is not installed", instead)


def ready() -> None:
    """Raise `RuntimeMissing` if one of these libraries can't be imported, before the long work begins."""
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as exc:
            raise _lacking(name, str(exc)) from exc
    if (count := threads()) is not None and "OMP_NUM_THREADS" not in os.environ:  # which PyTorch reads by itself
        import_module("torch").set_num_threads(count)


def _lacking(name: str, why: str, instead: str = "") -> RuntimeMissing:
    return RuntimeMissing(
        f"An export needs {', '.join(NEEDED)}, but {name} cannot be imported ({why}). "
        f"Install what is missing: {pip('export', *need('onnxruntime'))}. {instead}".rstrip()
    )


def check(part: str, graph: Path, cases: Iterable[Case]) -> GraphFigure:
    """The worst PSNR over a part's cases and outputs, of the graph in ONNX Runtime without optimizations.

    Group norms are decomposed (`core.norms`) in a temporary file next to the graph.
    Raises `ParityError` below `GRAPH_DB`, naming the part, the case and the output.
    """
    library: Any = import_module("onnx_ir")
    path = graph.with_name("check.onnx")
    library.save(stage_norms(library.load(graph)), path)
    try:
        session = unoptimized(path)
    finally:
        path.unlink()
    figures: dict[str, float] = {}
    for case in cases:
        outputs: list[Array] = session.run(list(case.outputs), dict(case.feeds))
        for (name, wanted), output in zip(case.outputs.items(), outputs, strict=True):
            figures[f"{name} of {case.name}"] = psnr_db(wanted, output)
    worst = min(figures, key=lambda name: figures[name])
    if figures[worst] < GRAPH_DB:
        raise ParityError(
            f"The exported {part} differs from PyTorch: {worst} agrees to {figures[worst]:.1f} dB, but at least "
            f"{GRAPH_DB:.0f} dB is required. No bundle was written; please report the checkpoint."
        )
    run_by = f"onnxruntime {import_module('onnxruntime').__version__}"
    return GraphFigure(psnr_db=round(figures[worst], 2), worst=worst, run_by=run_by)


def bf16_figure(checkpoint: Checkpoint, spec: PartSpec, cases: Iterable[Case]) -> float:
    """Worst PSNR in dB over a part's cases of the checkpoint's own module run in bf16, timesteps included.

    Weights are cast where they are used, as a copy of all of them in bf16 may not fit in memory.
    """
    import torch

    module = as_part(checkpoint, spec, load=partial(computing, checkpoint, dtype=torch.bfloat16))
    from_numpy = cast("Any", torch).from_numpy
    worst = PERFECT_DB
    for case in cases:
        tensors = [from_numpy(np.array(case.feeds[tensor.name])) for tensor in spec.inputs]
        with torch.no_grad():
            outputs = module(*(one.bfloat16() if one.is_floating_point() else one for one in tensors))
        for tensor, output in zip(spec.outputs, outputs, strict=True):
            if tensor.name in case.outputs:
                worst = min(worst, psnr_db(case.outputs[tensor.name], output.float().numpy()))
    return round(worst, 2)
