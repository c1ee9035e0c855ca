"""Graphs that are part of no bundle, compiled as a bundle's are: what the ceiling multiplies, and the judge."""

from __future__ import annotations

from pathlib import Path

from ..compiler.lower import lowered, needed_passes
from ..core.bundle import Bundle, Manifest, Model, Source, TextEncoder
from ..core.engine import Engine
from ..core.progress import quiet
from ..core.version import __version__
from ..runtimes import Job, Target, runtime
from ..runtimes.base import files_in


def bare_engine(graph: Path, target: Target, folder: Path) -> Engine:
    """Lower an ONNX graph, compile it into `folder` through the target's runtime, and load it.

    Raises what any of the three raises.
    """
    adapter = runtime(target.runtime)
    out = folder / "engine"
    out.mkdir()
    passes = needed_passes(adapter, target)
    with lowered(graph, "bare", adapter.newest_opset, target.shape, passes) as path:
        adapter.compile(Job(_no_bundle(folder), "bare", path, target), out, quiet)
    return adapter.load(out, target, files_in(out))


def _no_bundle(folder: Path) -> Bundle:
    """A bundle of no parts: a job names one, and a runtime that compiles graphs has no need of it."""
    encoder = TextEncoder(part="none", tokenizer="none")
    model = Model(
        text_encoders=(encoder,), latent_channels=1, downscale=1, scaling_factor=1.0, default_size=8, wires=()
    )
    source = Source(kind="made", location="none", random=True)
    return Bundle(
        folder,
        Manifest(latentc=__version__, family="none", source=source, model=model, parts={}, files={}, versions={}),
    )
