"""One subject at one setting, while it is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..checkpoints.open import open_checkpoint
from ..core.bundle import Bundle
from ..core.errors import CheckpointError, LatentcError
from ..core.limits import threads
from ..core.request import Request
from ..pipelines.complete import size_and_seed
from ..profiles import Profile
from ..sampling.draw import SCHEDULER, drawing_digest
from ..sampling.noise import initial_noise
from .baselines import PROFILE_MODULE, Baseline, peers_folder, python_of
from .line import Brief, Wish
from .plan import Plan
from .process import Process
from .records import THREADS, Draw, Likeness, Memory, Startup, Subject

OWN_COST = "null"
"""The profile that is always measured: what it takes is the harness's and the pipeline's own cost."""

UNBOUND = f"Threads: this library starts as many as it likes, whatever --threads and {THREADS} say."

TIMEOUT_SECONDS = 3600.0
"""At least, for what isn't measured: references, the suite, captions."""


@dataclass
class Contender:
    """One subject at one setting, while it is measured."""

    bundle: Bundle
    subject: Subject
    python: Callable[[], Path]
    module: str
    brief: Brief
    wish: Wish
    leaves_out: tuple[str, ...]
    environment: dict[str, str]
    limit: float
    """Seconds that one answer may take: to import, build, load or draw."""
    process: Process | None = None
    startup: Startup = field(default_factory=Startup)
    parity: Likeness | None = None
    ceiling_tflops: dict[str, float] = field(default_factory=dict[str, float])
    first: Draw | None = None
    warmup: list[Draw] = field(default_factory=list[Draw])
    draws: list[Draw] = field(default_factory=list[Draw])
    memory: Memory | None = None
    pictures: tuple[str, ...] = ()
    error: str | None = None

    @property
    def long_limit(self) -> float:
        """Seconds that the suite or captions may take: they are many draws."""
        return max(self.limit, TIMEOUT_SECONDS)


Awake = Callable[[Contender], AbstractContextManager[None]]
"""Has the process of a contender there for a block, loaded and warm."""


def contenders_of(
    bundle: Bundle,
    plan: Plan,
    request: Request,
    profiles: Sequence[Profile],
    baselines: Sequence[Baseline],
    scratch: Path,
    run: str,
) -> list[Contender]:
    """One for each profile, then each baseline; those whose checkpoint is gone have failed already.

    Their common initial latents are written into `scratch`, where the compile caches of baselines go too. Pictures to
    keep are named after `run`, so that no later run writes over them.
    """
    model = bundle.manifest.model
    latents = scratch / "latents.npy"
    width, height, seed = size_and_seed(request)
    shape = (request.count, model.latent_channels, height // model.downscale, width // model.downscale)
    np.save(latents, initial_noise(seed, shape))
    drawing = request.model_dump(mode="json")
    own = [Baseline(profile.name, PROFILE_MODULE, profile=profile) for profile in profiles]
    peers = plan.peers or peers_folder()
    digest, folder = drawing_digest(bundle)[:16], bundle.folder.name
    found: list[Contender] = []
    count = plan.threads or threads()
    counted = {THREADS: str(count)} if count and (plan.threads or THREADS not in os.environ) else {}
    for index, one in enumerate([*own, *baselines]):
        name = f"{run[:8]}-{index:02}-{one.name}-{folder}-{digest[:8]}-{width}x{height}-b{request.count}"
        brief = Brief(
            bundle=str(bundle.folder),
            checkpoint="",
            models=str(peers / "models" / f"{digest}-{one.name}"),
            profile=one.profile.model_dump(mode="json") if one.profile else None,
            request=drawing,
            ceiling=plan.ceiling,
        )
        wish = Wish(drawing, str(latents), str(plan.keep / name) if plan.keep else None)
        kind = "profile" if index < len(own) else "baseline"
        found.append(
            Contender(
                bundle=bundle,
                subject=Subject(kind=kind, name=one.name, profile=one.profile),
                python=lambda one=one: python_of(one, peers),
                module=one.module,
                brief=brief,
                wish=wish,
                leaves_out=one.leaves_out + ((UNBOUND,) if plan.threads and one.own_threads else ()),
                environment=counted | ({one.cache: str(scratch / one.name)} if one.cache else {}),
                limit=plan.limit,
            )
        )
        if one.profile is None:
            with reason(found[-1]):
                found[-1].brief = replace(brief, checkpoint=_checkpoint_folder(bundle))
    if plan.keep:
        plan.keep.mkdir(parents=True, exist_ok=True)
    return found


def _checkpoint_folder(bundle: Bundle) -> str:
    """The folder that the bundle was exported from; raises `CheckpointError` where it was none, or is gone."""
    source, others = bundle.manifest.source, bundle.manifest.components
    if source.variant or others:
        what = f"{', '.join(others)} from elsewhere" if others else f"the variant {source.variant}"
        raise CheckpointError(
            f"The bundle was exported with {what}, and this baseline opens {source.location} as it is. Save such a "
            "pipeline as a folder with diffusers, and export that."
        )
    opened = open_checkpoint(source.location, revision=source.revision, family=bundle.manifest.family)
    named = opened.model_index["_class_name"]
    if dict(opened.scheduler) != bundle.json(SCHEDULER):
        raise CheckpointError(
            f"The bundle was exported with another scheduler config than that of {source.location}, which this "
            "baseline draws with. Export without --prediction, --spacing, --zero-snr and --scheduler, or leave the "
            "baseline out."
        )
    if opened.folder is None:
        raise CheckpointError(
            f"{source.location} is a single file, and this baseline opens diffusers folders. Convert it to one, and "
            "export that."
        )
    if named not in opened.family.pipelines:
        raise CheckpointError(
            f"This baseline would draw as {named} does, and the bundle draws as {opened.family.pipeline}. Name that "
            f"class in {source.location}/model_index.json."
        )
    return str(opened.folder)


@contextmanager
def reason(contender: Contender) -> Generator[None]:
    """What fails in the block is the contender's error, and the end of its process; the others go on."""
    try:
        yield
    except LatentcError as exc:
        contender.error = str(exc)
    except (TypeError, ValueError) as exc:  # an answer that isn't one
        contender.error = f"{contender.module} gave an answer that can't be read: {exc}"
    finally:
        if contender.error is not None and contender.process is not None:
            contender.process.close()
            contender.process = None
