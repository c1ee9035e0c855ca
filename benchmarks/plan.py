"""The plan of a benchmark: every profile and baseline, at every size and batch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.request import Request
from ..profiles import Profile
from .shown import Files, completed

PROMPT = "a lighthouse on a cliff, sunset, long exposure"
SEED = 7
REPEAT = 6
"""Fewest repetitions for which a 95 % confidence interval of the median exists."""
PATIENCE = 3
"""Times are measured in up to so many rounds of repetitions, until all are stable."""

LIMIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    profiles: tuple[Profile, ...]
    baselines: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels; empty is the model's own size."""
    batches: tuple[int, ...] = (1,)
    steps: int = 20
    repeat: int = REPEAT
    """Least number of measured repetitions; up to `patience` times as many until the times are stable."""
    patience: int = PATIENCE
    prompt: str = PROMPT
    files: Files = field(default_factory=Files)
    """The images of the request."""
    guidance: float | None = None
    """None is the default of requests: 7.5, for videos 3 in the last frame."""
    seed: int = SEED
    limit: float = LIMIT_SECONDS
    """Seconds that importing, building, loading or one generation may take; a row that takes longer fails.
    The suite and captions may always take an hour."""
    apart: bool = False
    """One process at a time, a new one for each repetition: for models that don't fit into memory together."""
    ceiling: bool = True
    """Also measure matrix products through each profile's runtime, which takes a few seconds each."""
    keep: Path | None = None
    """Folder for the images of the first run; None doesn't keep them."""
    peers: Path | None = None
    """Folder of the baselines' environments; None is `peers_folder()`."""
    suite: bool = False
    """Also generate the suite after the timed runs, and compare it with PyTorch's images."""
    clip: Path | None = None
    """Folder of a CLIP model in transformers' layout, to score the suite's images against their prompts."""
    lpips: Path | None = None
    """Folder of the published LPIPS weights, to compare the suite's images with PyTorch's."""
    fid: Path | None = None
    """Folder of the published FID weights, to compare the set of images with PyTorch's."""
    captions: int = 0
    """Number of captions of `scenes` to generate and score with its judge; 0 for none."""
    threads: int | None = None
    """Threads for profiles, and for baselines that follow OMP_NUM_THREADS; None is the libraries' default, within the
    quota of the container."""

    @property
    def measures(self) -> dict[str, Path]:
        """Folders of the requested measures, by name: `clip`, `lpips`, `fid`."""
        every = {"clip": self.clip, "lpips": self.lpips, "fid": self.fid}
        return {name: folder for name, folder in every.items() if folder is not None}


def requests_of(bundles: Sequence[Bundle], plan: Plan) -> Generator[Request]:
    """Every size with every batch, for all bundles. Raises `RequestError` for one that a bundle doesn't support."""
    if other := next((one for one in bundles if one.manifest.model.tasks[0] in ("image", "edit")), None):
        raise RequestError(
            f"{other.folder} generates images from images alone, which latentc bench cannot measure yet. `latentc run` "
            "shows the time of each stage."
        )
    if other := next((one for one in bundles if one.manifest.model.refiner is not None), None):
        raise RequestError(
            f"{other.folder} has a refiner, which latentc bench cannot measure yet. Export the checkpoint without "
            "--refiner to measure it; `latentc run` shows the time of each stage."
        )
    frames = {bundle.folder.name: bundle.manifest.model.frames for bundle in bundles}
    if len({*frames.values()}) > 1:
        each = ", ".join(f"{name} {f'{count} frames' if count else 'images'}" for name, count in frames.items())
        raise RequestError(f"The bundles generate different things ({each}). Measure them in separate runs.")
    own = {bundle.manifest.model.own_size for bundle in bundles}
    if len(own) > 1 and not plan.sizes:
        sizes = {bundle.folder.name: "x".join(map(str, bundle.manifest.model.own_size)) for bundle in bundles}
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise RequestError(
            f"The bundles have different default sizes ({each}). Choose one for all, for example --size 512."
        )
    for (width, height), batch in product(plan.sizes or own, plan.batches):
        sized: dict[str, Any] = {
            "width": width,
            "height": height,
            "count": batch,
            "steps": plan.steps,
            "seed": plan.seed,
        }
        sized |= {} if plan.guidance is None else {"guidance": plan.guidance}
        films = any(frames.values())
        request = Request(**sized) if films else Request(prompt=plan.prompt, **sized)
        each = [completed(request, bundle, plan.files, (width, height)) for bundle in bundles]
        yield each[0] if films or plan.files.named else request
