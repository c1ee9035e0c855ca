"""A contender: one subject at one setting, while it is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints.open import open_checkpoint
from ..compiler.sized import for_size
from ..core.bundle import Bundle
from ..core.errors import CheckpointError, LatentcError
from ..core.limits import threads
from ..core.request import Request
from ..pipelines.complete import size_and_seed
from ..profiles import Profile
from ..runtimes import runtime
from ..sampling.host import SCHEDULER, drawing_digest, image_shape, latent_shape
from ..sampling.noise import image_noise, initial_noise
from .baselines import PAGE_MODULE, PROFILE_MODULE, Baseline, peers_folder, python_of
from .line import Brief, Wish
from .plan import Plan
from .process import Process
from .records import THREADS, Draw, Likeness, Memory, Startup, Subject
from .shown import first_image

OWN_COST = "null"
"""The profile that is always measured: its time is the overhead of harness and pipeline."""

UNBOUND = f"Threads: this library ignores --threads and {THREADS}."

TIMEOUT_SECONDS = 3600.0
"""Least limit for work that isn't timed: references, the suite, captions."""


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
    """Seconds that one answer may take: to import, build, load or generate."""
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
        """Seconds that the suite or captions may take, as they are many generations."""
        return max(self.limit, TIMEOUT_SECONDS)


Awake = Callable[[Contender], AbstractContextManager[None]]
"""Runs a block while the process of a contender is loaded and warm."""


def contenders_of(
    bundle: Bundle,
    plan: Plan,
    request: Request,
    profiles: Sequence[Profile],
    baselines: Sequence[Baseline],
    scratch: Path,
    run: str,
) -> list[Contender]:
    """Create one contender for each profile, then each baseline. Those that can't open the checkpoint have failed.

    Their common initial latents and image are written into `scratch`, which also holds the compile
    caches of baselines. Kept images are named after `run`, so that no later run overwrites them.
    """
    width, height, _ = size_and_seed(request)
    drawing = request.model_dump(mode="json")
    sized = [for_size(bundle.manifest.model, profile, width, height) for profile in profiles]
    own = [Baseline(profile.name, _module(profile), profile=profile) for profile in sized]
    peers = plan.peers or peers_folder()
    digest, folder = drawing_digest(bundle)[:16], bundle.folder.name
    found: list[Contender] = []
    count = plan.threads or threads()
    given = _given(bundle, plan, request, scratch)
    counted = {THREADS: str(count)} if count and (plan.threads or THREADS not in os.environ) else {}
    for index, one in enumerate([*own, *baselines]):
        name = f"{run[:8]}-{index:02}-{one.name}-{folder}-{digest[:8]}-{width}x{height}-b{request.count}"
        brief = Brief(
            bundle=str(bundle.folder),
            checkpoint="",
            models=str(
                scratch / f"page-{index}" if one.module == PAGE_MODULE else peers / "models" / f"{digest}-{one.name}"
            ),
            profile=one.profile.model_dump(mode="json") if one.profile else None,
            request=drawing,
            ceiling=plan.ceiling,
        )
        wish = replace(given, keep=str(plan.keep / name) if plan.keep else None)
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


def _module(profile: Profile) -> str:
    """The program that measures a profile."""
    return PAGE_MODULE if runtime(profile.runtime).facts.page else PROFILE_MODULE


def _given(bundle: Bundle, plan: Plan, request: Request, scratch: Path) -> Wish:
    """What all contenders generate, with its noise and its images in files."""
    model = bundle.manifest.model
    width, height, seed = size_and_seed(request)
    wish = Wish(request.model_dump(mode="json"), str(scratch / "latents.npy"))
    np.save(wish.latents, initial_noise(seed, latent_shape(model, request)))
    named = {"mask": plan.files.mask, "style": plan.files.style}
    files: dict[str, Any] = {name: str(path.resolve()) for name, path in named.items() if path is not None}
    if plan.files.control:
        files["control"] = [str(path.resolve()) for path in plan.files.control]
    if request.image_sha256 is not None:
        files["image"] = str(scratch / "image.png")
        Image.fromarray(first_image(plan.files, (width, height))).save(files["image"])
    if model.reads_image:
        wish = replace(wish, image_noise=str(scratch / "image_noise.npy"))
        np.save(wish.image_noise, image_noise(seed, image_shape(model, request)))
    return replace(wish, files=files)


def _checkpoint_folder(bundle: Bundle) -> str:
    """The folder that the bundle was exported from; raises `CheckpointError` if the baseline can't use it."""
    source, others = bundle.manifest.source, bundle.manifest.components
    if source.adopted is not None:
        raise CheckpointError(
            f"{bundle.folder} was adopted from ONNX graphs, so there is no checkpoint that this baseline could run. "
            "Omit the baseline."
        )
    if bundle.manifest.embeddings:
        raise CheckpointError(
            f"The bundle was exported with embeddings, but this baseline opens {source.location} unmodified. Load them "
            "with diffusers, save the pipeline as a folder, and export that folder."
        )
    if source.variant or others or source.adapters:
        what = f"{', '.join(others)} from another source" if others else f"the variant {source.variant}"
        if source.adapters:
            what = f"adapters ({', '.join(one.name for one in source.adapters)})"
        raise CheckpointError(
            f"The bundle was made with {what}, but this baseline opens {source.location} unmodified. Save the "
            "combined pipeline as a folder with diffusers, and export that folder."
        )
    opened = open_checkpoint(source.location, revision=source.revision, family=bundle.manifest.family)
    named = opened.model_index["_class_name"]
    if dict(opened.scheduler) != bundle.json(SCHEDULER):
        raise CheckpointError(
            f"The bundle's scheduler config differs from that of {source.location}, which this baseline uses. Export "
            "without --prediction, --spacing, --zero-snr and --scheduler, or omit the baseline."
        )
    if opened.folder is None:
        raise CheckpointError(
            f"{source.location} is a single file, but this baseline needs a diffusers folder. Convert the file to a "
            "folder, and export that."
        )
    if named not in opened.family.pipelines:
        raise CheckpointError(
            f"This baseline would run {named}, but the bundle follows {opened.family.pipeline}. Set _class_name to "
            f"that class in {source.location}/model_index.json."
        )
    return str(opened.folder)


@contextmanager
def reason(contender: Contender) -> Generator[None]:
    """Record a failure in the block as the contender's error, and end its process; the others continue."""
    try:
        yield
    except LatentcError as exc:
        contender.error = str(exc)
    except (TypeError, ValueError) as exc:  # an invalid answer
        contender.error = f"{contender.module} gave an invalid answer: {exc}"
    finally:
        if contender.error is not None and contender.process is not None:
            contender.process.close()
            contender.process = None
