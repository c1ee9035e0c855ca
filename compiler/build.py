"""Bundle and profile to verified engines: compile what is missing, prove it, keep it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.bundle import Bundle, check_sizes, open_bundle, verify_files
from ..core.errors import BundleError, CompileError, ParityError, ShapeError
from ..core.files import fresh_folder
from ..core.progress import Progress, quiet
from ..core.records import recall, remember
from ..core.references import stored_at
from ..profiles import Profile, load_profile
from ..runtimes import Refits, Runtime
from ..runtimes.diagnose import advised
from .apart import measured_apart
from .cache import (
    Artifact,
    Miss,
    Parity,
    check_place,
    claim,
    explain,
    find,
    folder_name,
    intact,
    kindred,
    loadable,
    locked,
    seal,
    share,
    sweep,
    take,
)
from .engines import Engines
from .make import make
from .parity import check_graphs
from .plan import plan
from .proof import (
    Steps,
    check_floor,
    check_steps,
    engine_key,
    prove_host,
    prove_steps,
    proved_here,
    steps_key,
    unproved,
)
from .targets import Wanted, wanted

How = Literal["there", "taken", "refitted", "compiled"]


@dataclass(frozen=True)
class Built:
    """One engine of a build."""

    artifact: Artifact
    how: How
    """It was there already, taken from another bundle, another's with these weights, or compiled."""
    note: str | None = None
    """What else to know: why another's wasn't given these weights, or that a damaged one was replaced."""

    @property
    def hit(self) -> bool:
        """It was there already."""
        return self.how == "there"


@dataclass(frozen=True)
class Build:
    """What a build found and made."""

    profile: str
    engines: tuple[Built, ...]
    host_psnr_db: float
    """What latentc computes around the engines, against diffusers' pipeline."""
    steps: Steps | None
    """The whole step, what the prompt changes in it, and a picture; None where the device isn't here."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What wasn't proved."""

    @property
    def step_psnr_db(self) -> float | None:
        """The whole step, each from diffusers' own latents; None where the device isn't here."""
        return self.steps.step_db if self.steps else None


def build(
    bundle: Bundle | Path | str,
    profile: Profile | Path | str | None = None,
    on_progress: Progress = quiet,
    *,
    force: bool = False,
    like: Bundle | Path | str | None = None,
) -> Build:
    """Compile each part for a profile, unless its artifact is there; compare it with the reference; keep it.

    Bundles and the profile are taken by their names or paths, or as they are; without a profile it is the one that
    `latentc doctor` advises on this machine.

    Where the device isn't here and the compiler can do without, the graph is compared instead, run on the CPU.
    The same build on the device then compares the engines, without compiling them again.

    `like` is another bundle, as of the checkpoint that this one was tuned from: its engines of parts that are the same
    are taken, with what they were found to agree to; those of parts that differ by their weights alone are given these,
    where runtime and options can do that, and compared as any other.

    Raises `CompileError` where engines that aren't there yet won't fit by plan, unless `force`d; `ParityError` naming
    part and figure where an engine is below the profile's floor: nothing of it is kept, but for one that was built
    elsewhere, whose own figure then stands in place of its graph's. Also `RuntimeMissing`,
    `ProfileError`, and `BundleError` for a damaged bundle.
    """
    start = time.perf_counter()
    bundle, like = open_bundle(bundle), None if like is None else open_bundle(like)
    profile = advised() if profile is None else load_profile(profile)
    adapter, engines = wanted(bundle, profile, to_run=False)
    check_sizes(bundle)
    # Graphs and weights are compared where one is compiled.
    verify_files(bundle, [name for name in bundle.manifest.files if "/model.onnx" not in name])
    sweep(bundle)
    replaced = [_without_damage(bundle, want, on_progress) for want in engines]
    if not all(find(bundle, want.part, want.key) for want in engines):
        check_place(bundle)
    host = prove_host(bundle)
    if adapter.reads_onnx:
        check_graphs(bundle, bundle.manifest.parts, on_progress)
    check(bundle, profile, force=force, like=like)
    built = tuple(
        _build_one(bundle, profile, adapter, want, like, note, on_progress)
        for want, note in zip(engines, replaced, strict=True)
    )
    here = adapter.missing(profile.device) is None
    pairs = [(want, one.artifact) for want, one in zip(engines, built, strict=True)]
    steps = _prove_steps(bundle, profile, adapter, pairs, on_progress) if here else None
    return Build(profile.name, built, host, steps, time.perf_counter() - start, unproved(bundle))


def check(bundle: Bundle, profile: Profile, *, force: bool = False, like: Bundle | None = None) -> None:
    """Raise what `build` would before a minute is spent on what isn't there yet."""
    adapter, engines = wanted(bundle, profile, to_run=False)
    if not all(find(bundle, want.part, want.key) for want in engines):
        check_place(bundle)
    if force or all(find(bundle, want.part, want.key) or _theirs(like, adapter, want) for want in engines):
        return
    try:
        complaints = plan(bundle, profile).complaints
    except (BundleError, ShapeError):  # a graph that can't be planned is no reason not to build it
        return
    if complaints:
        raise CompileError(
            f"By plan, profile {profile.name} doesn't fit. {'. '.join(complaints)}. `latentc plan` shows the figures. "
            f"To try all the same: latentc build {bundle.argument} --profile {profile.argument} --force"
        )


def _theirs(like: Bundle | None, adapter: Runtime, want: Wanted) -> Artifact | None:
    """The same engine in another bundle. What isn't compiled from the graph points back at its own checkpoint."""
    return find(like, want.part, want.key) if like and adapter.reads_onnx else None


def _build_one(
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    want: Wanted,
    like: Bundle | None,
    note: str | None,
    on_progress: Progress,
) -> Built:
    here = adapter.missing(profile.device) is None
    if artifact := find(bundle, want.part, want.key):
        parity = _known(bundle, adapter, artifact)
        if parity is not None:
            check_floor(bundle, profile, want, parity)
            return Built(_claimed(bundle, artifact, profile, on_progress), "there")
    name = folder_name(want.part, want.key)
    with locked(bundle, name, on_progress):
        theirs = None
        if not find(bundle, want.part, want.key):
            _clear(bundle, name)
            if like and (theirs := _theirs(like, adapter, want)):
                check_floor(bundle, profile, want, theirs.parity)
                on_progress(f"{want.part}: take", None)
                take(bundle, like, theirs)
        if artifact := find(bundle, want.part, want.key):  # made meanwhile, or elsewhere, or without its device
            parity = _known(bundle, adapter, artifact)
            if parity is None:
                parity = _prove_found(bundle, profile, adapter, artifact, on_progress)
            try:
                check_floor(bundle, profile, want, parity)
            except ParityError:
                if theirs:
                    _clear(bundle, name)
                raise
            return Built(claim(bundle, artifact, profile.name), "taken" if theirs else "there", note)
        on_progress(f"{want.part}: read", None)
        verify_files(bundle, [*bundle.files(want.part), stored_at(want.part)])
        if like and here and (other := _kindred(adapter, want, like)):
            try:
                return Built(_refit(bundle, profile, adapter, want, like, other, on_progress), "refitted", note)
            except (CompileError, ParityError) as exc:
                note = " ".join(filter(None, (note, f"It was compiled, not refitted: {exc}")))
        with fresh_folder(bundle.engines / name, BundleError) as fresh:
            made = make(bundle, profile, adapter, want, fresh, on_progress)
            artifact = seal(fresh, want.part, want.fields, made.parity, made.seconds, profile.name)
            share(bundle, fresh, artifact.files)
        if here:
            remember(engine_key(bundle, adapter, artifact), made.parity)
    return Built(artifact, "compiled", note)


def _without_damage(bundle: Bundle, want: Wanted, on_progress: Progress) -> str | None:
    """Remove what is where an engine should be and isn't what was built; what to say of that."""
    path = bundle.engines / folder_name(want.part, want.key)
    if not os.path.lexists(path):
        return None
    on_progress(f"{want.part}: verify", None)
    if intact(bundle, want.part, want.key):
        return None
    with locked(bundle, path.name, on_progress):
        if not os.path.lexists(path) or intact(bundle, want.part, want.key):  # another process was faster
            return None
        _clear(bundle, path.name)
    return f"{path} was damaged, or an engine of another version of latentc. It was replaced."


def _claimed(bundle: Bundle, artifact: Artifact, profile: Profile, on_progress: Progress) -> Artifact:
    """An engine that is there, noted as this profile's too; in a bundle that can't be written it goes unnoted."""
    if profile.name not in artifact.profiles:
        with suppress(BundleError), locked(bundle, artifact.name, on_progress):
            return claim(bundle, artifact, profile.name)
    return artifact


def _kindred(adapter: Runtime, want: Wanted, like: Bundle) -> Artifact | None:
    """Another bundle's engine that can be given this part's weights."""
    able = isinstance(adapter, Refits) and adapter.refits(want.target.options)
    return kindred(like, want.part, want.fields) if able else None


def _refit(
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    want: Wanted,
    like: Bundle,
    other: Artifact,
    on_progress: Progress,
) -> Artifact:
    """An engine of another's plan and this part's weights, held to the floor as any other."""
    try:
        theirs = loadable(like, other)
    except BundleError as exc:  # no reason not to compile
        raise CompileError(str(exc)) from exc
    with fresh_folder(bundle.engines / folder_name(want.part, want.key), BundleError) as fresh:
        made = make(bundle, profile, adapter, want, fresh, on_progress, refitted=theirs)
        artifact = seal(fresh, want.part, want.fields, made.parity, made.seconds, profile.name, refitted_from=other.key)
    remember(engine_key(bundle, adapter, artifact), made.parity)
    return artifact


def _known(bundle: Bundle, adapter: Runtime, artifact: Artifact) -> Parity | None:
    """What an engine came to on this machine; where its device isn't here, what its header says."""
    if adapter.missing(artifact.fields["device"]["name"]):
        return artifact.parity
    return proved_here(bundle, adapter, artifact)


def _prove_found(
    bundle: Bundle, profile: Profile, adapter: Runtime, artifact: Artifact, on_progress: Progress
) -> Parity:
    """Compare an engine that this machine didn't build."""
    measured = measured_apart(bundle, profile, [artifact], steps=False, on_progress=on_progress)
    parity = measured.parities[artifact.key]
    remember(engine_key(bundle, adapter, artifact), parity)
    return parity


def _clear(bundle: Bundle, name: str) -> None:
    """Remove what stands where an artifact belongs and isn't one."""
    path = bundle.engines / name
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise BundleError(f"{path} is damaged and can't be removed ({exc.strerror}). Remove it by hand.") from exc


def _prove_steps(
    bundle: Bundle, profile: Profile, adapter: Runtime, pairs: Sequence[tuple[Wanted, Artifact]], on_progress: Progress
) -> Steps:
    """Take diffusers' steps with the engines, once for each set of them."""
    wants = [want for want, _ in pairs]
    key = steps_key(bundle, adapter, [artifact for _, artifact in pairs], guided=profile.shapes.guided)
    steps = recall(key, Steps)
    if steps is None:
        steps = prove_steps(bundle, profile, wants, lambda: Engines(bundle, profile), on_progress)
        remember(key, steps)
    check_steps(bundle, profile, wants, steps)
    return steps


def why(bundle: Bundle, profile: Profile) -> list[tuple[Wanted, Artifact | Miss]]:
    """For each engine that a profile asks for: the artifact, or what keeps the nearest one from being it."""
    _, engines = wanted(bundle, profile, to_run=False)
    return [(want, find(bundle, want.part, want.key) or explain(bundle, want.part, want.fields)) for want in engines]
