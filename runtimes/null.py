"""The runtime that does nothing: right names, right shapes, all zeros. It measures what everything else costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core.engine import Engine
from ..core.errors import ProfileError
from ..core.progress import Progress
from ..core.recipes import RECIPES, Precision
from ..core.shapes import shape_of
from ..core.tensors import Array
from .base import Costs, Job, Option, Target
from .host import HostEngine

VERSIONS = {"null": "1"}
ENGINE = "engine.txt"


class Null:
    """Always there, on any device, in any precision."""

    revision = 1
    reads_onnx = False
    newest_opset = 23
    typed = False
    infers_shapes = True
    sums_in_a_row: frozenset[str] = frozenset()
    lacks: Mapping[str, frozenset[str]] = {}
    at_load: frozenset[str] = frozenset()
    reads_bf16 = True

    def devices(self) -> tuple[str, ...]:
        """CPU stands for whatever runs Python."""
        return ("CPU",)

    def missing(self, device: str) -> str | None:
        """Never missing."""
        del device
        return None

    def unbuildable(self, device: str) -> str | None:
        """It compiles where it runs."""
        return self.missing(device)

    def versions(self) -> dict[str, str]:
        """Of the artifact's form: there is no library."""
        return VERSIONS

    def device(self, device: str) -> dict[str, str]:
        """Nothing of the device shapes the artifact."""
        del device
        return {}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """All: zero is zero."""
        del device
        return tuple(RECIPES)

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Always."""
        del device, options
        return True

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs:
        """None."""
        del device, options, free
        return Costs(per_weight=0.0, per_value=0.0)

    def threads_option(self, device: str) -> str | None:
        """It computes nothing."""
        del device
        return ""

    def check(self, options: Mapping[str, Option]) -> None:
        """It has no options."""
        for name in options:
            raise ProfileError(f"The null runtime has no option {name!r}, nor any other. Remove it from [options].")

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Write a word."""
        on_progress(f"{job.part}: compile", 1.0)
        (out / ENGINE).write_text("zeros\n", encoding="utf-8")

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """An engine that answers with zeros."""
        del artifact, files

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del feeds
            return {tensor.name: np.zeros(shape_of(tensor.shape, sizes), np.float32) for tensor in target.outputs}

        return HostEngine(target, call)
