"""What to measure: every profile and baseline, at every size and batch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.request import Request
from ..pipelines.complete import complete
from ..profiles import Profile
from ..sampling.draw import SCHEDULER

PROMPT = "a lighthouse on a cliff, sunset, long exposure"
SEED = 7
REPEAT = 6
"""Fewest draws whose median has an interval of 95 % confidence."""
PATIENCE = 3
"""So many times what was asked is drawn at most, until every time is stable."""

LIMIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    profiles: tuple[Profile, ...]
    baselines: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels; none: the size that the model was made for."""
    batches: tuple[int, ...] = (1,)
    steps: int = 20
    repeat: int = REPEAT
    """Measured draws at least; up to `PATIENCE` times as many until the times are stable."""
    prompt: str = PROMPT
    guidance: float = 7.5
    seed: int = SEED
    limit: float = LIMIT_SECONDS
    """Longest wait for one answer: what takes longer to import, build, load or draw is a row with that reason.
    The suite and captions, which are many draws, may take an hour in any case."""
    apart: bool = False
    """One process at a time, a new one for each draw: for what doesn't fit into memory together."""
    ceiling: bool = True
    """Also measure matrix products through each profile's runtime: some seconds each."""
    keep: Path | None = None
    """Folder for the first draw's pictures; None: they aren't kept."""
    peers: Path | None = None
    """Folder of the peers' environments; None: `peers_folder()`."""
    suite: bool = False
    """After the timed draws, draw the suite too and compare it with PyTorch's."""
    clip: Path | None = None
    """Folder of a CLIP model in transformers' layout, by which the suite's pictures are held against their prompts."""
    lpips: Path | None = None
    """Folder of LPIPS' published weights, by which the suite's pictures are held against PyTorch's."""
    fid: Path | None = None
    """Folder of FID's published weights, by which all of them are held against all of PyTorch's."""
    captions: int = 0
    """After them, draw so many captions of the world of `scenes` and have its judge read the pictures."""
    threads: int | None = None
    """What `profiles` compute in, and baselines as far as they honour OMP_NUM_THREADS; None: as they like, within the
    container's quota.
    """

    @property
    def measures(self) -> dict[str, Path]:
        """Folders of the measures that are asked for, by name: of `clip`, `lpips` and `fid`."""
        every = {"clip": self.clip, "lpips": self.lpips, "fid": self.fid}
        return {name: folder for name, folder in every.items() if folder is not None}


def requests_of(bundles: Sequence[Bundle], plan: Plan) -> Generator[Request]:
    """Every size with every batch, the same for all bundles. Raises `RequestError` for what one of them can't draw."""
    own = {bundle.manifest.model.own_size for bundle in bundles}
    if len(own) > 1 and not plan.sizes:
        sizes = {bundle.folder.name: "x".join(map(str, bundle.manifest.model.own_size)) for bundle in bundles}
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise RequestError(f"The bundles draw other sizes of their own ({each}). Name one for all, as --size 512.")
    for (width, height), batch in product(plan.sizes or own, plan.batches):
        request = Request(
            prompt=plan.prompt,
            width=width,
            height=height,
            count=batch,
            steps=plan.steps,
            guidance=plan.guidance,
            seed=plan.seed,
        )
        for bundle in bundles:
            complete(request, bundle.manifest.model, bundle.json(SCHEDULER))
        yield request
