"""The null runtime computes nothing: outputs have the right names and shapes, and are zero. It measures overhead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core.engine import Engine
from ..core.progress import Progress
from ..core.recipes import RECIPES
from ..core.shapes import shape_of
from ..core.tensors import Array
from .base import Costs, Facts, Job, Option, Runtime, Target
from .host import HostEngine

VERSIONS = {"null": "1"}
ENGINE = "engine.txt"


class Null(Runtime):
    """The adapter that is always available, on any device and in any precision."""

    facts = Facts(title="The null runtime", precisions=tuple(RECIPES), threads="", reads_onnx=False)

    def missing(self, device: str) -> str | None:
        """Never missing."""
        del device
        return None

    def versions(self) -> dict[str, str]:
        """The version of the artifact format, as there is no library."""
        return VERSIONS

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs:
        """Zero."""
        del device, options, free
        return Costs(per_weight=0.0, per_value=0.0)

    def threads_option(self, device: str) -> str | None:
        """Empty: it computes nothing."""
        del device
        return ""

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Write a placeholder file."""
        on_progress(f"{job.part}: compile", 1.0)
        (out / ENGINE).write_text("zeros\n", encoding="utf-8", newline="\n")

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """An engine that returns zeros."""
        del artifact, files

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del feeds
            return {tensor.name: np.zeros(shape_of(tensor.shape, sizes), np.float32) for tensor in target.outputs}

        return HostEngine(target, call)
