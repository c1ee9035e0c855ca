"""Bundle and profile to verified engines: compile what is missing, prove it, keep it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.bundle import Bundle, verify_files
from ..core.errors import BundleError, CompileError, ParityError, ShapeError
from ..core.files import fresh_folder
from ..core.progress import Progress, quiet
from ..profiles import Profile
from ..runtimes import Job, Refits, Runtime
from .cache import (
    Artifact,
    Miss,
    Parity,
    claim,
    explain,
    find,
    folder_name,
    intact,
    kindred,
    locked,
    read_step,
    reprove,
    seal,
    share,
    step_key,
    take,
    verify,
    write_step,
)
from .engines import Engines
from .lower import lowered
from .parity import measure, measure_graph, measure_step, reference
from .plan import plan
from .proof import as_proved, check_floor, check_step
from .targets import Wanted, device_here, wanted

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
    step_psnr_db: float | None
    """The whole step, teacher-forced; None where the device isn't here. Of several sizes the worst."""
    seconds: float


def build(
    bundle: Bundle, profile: Profile, on_progress: Progress = quiet, *, force: bool = False, like: Bundle | None = None
) -> Build:
    """Compile each part for a profile, unless its artifact is there; compare it with the reference; keep it.

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
    adapter, engines = wanted(bundle, profile, to_run=False)
    replaced = [_without_damage(bundle, want, on_progress) for want in engines]
    check(bundle, profile, force=force, like=like)
    built = tuple(
        _build_one(bundle, profile, adapter, want, like, note, on_progress)
        for want, note in zip(engines, replaced, strict=True)
    )
    here = adapter.missing(profile.device) is None
    step = _prove_step(bundle, profile, built, on_progress) if here else None
    return Build(profile.name, built, step, time.perf_counter() - start)


def check(bundle: Bundle, profile: Profile, *, force: bool = False, like: Bundle | None = None) -> None:
    """Raise what `build` would before a minute is spent on what isn't there yet."""
    adapter, engines = wanted(bundle, profile, to_run=False)
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
    if (artifact := find(bundle, want.part, want.key)) and (proved := as_proved(adapter, artifact)):
        check_floor(profile, want, proved.parity.psnr_db)
        return Built(_claimed(bundle, proved, profile, on_progress), "there")
    name = folder_name(want.part, want.key)
    with locked(bundle, name, on_progress):
        theirs = None
        if not find(bundle, want.part, want.key):
            _clear(bundle, name)
            if like and (theirs := _theirs(like, adapter, want)):
                check_floor(profile, want, theirs.parity.psnr_db)
                on_progress(f"{want.part}: take", None)
                take(bundle, like, theirs)
        if artifact := find(bundle, want.part, want.key):  # made meanwhile, or elsewhere, or without its device
            proved = as_proved(adapter, artifact)
            if proved is None:
                on_progress(f"{want.part}: compare", None)
                verify_files(bundle, [f"reference/{want.part}.npz"])
                proved = reprove(bundle, artifact, _compare(bundle, adapter, want, bundle.engines / name))
            check_floor(profile, want, proved.parity.psnr_db)
            return Built(claim(bundle, proved, profile.name), "taken" if theirs else "there", note)
        on_progress(f"{want.part}: read", None)
        verify_files(bundle, [*bundle.files(want.part), f"reference/{want.part}.npz", "reference/step.npz"])
        parity: Parity | None = None
        if not here:  # before compiling, which takes longer
            on_progress(f"{want.part}: compare its graph", None)
            parity = measure_graph(bundle, want.part, want.target)
            check_floor(profile, want, parity.psnr_db)
        else:
            reference(bundle, want.part, want.target.shape)
        if like and here and (other := _kindred(adapter, want, like)):
            try:
                return Built(_refit(bundle, profile, adapter, want, like, other, on_progress), "refitted", note)
            except (CompileError, ParityError) as exc:
                note = " ".join(filter(None, (note, f"It was compiled, not refitted: {exc}")))
        with fresh_folder(bundle.engines / name, BundleError) as fresh:
            start = time.perf_counter()
            on_progress(f"{want.part}: compile", None)
            with _lowered(bundle, profile, adapter, want) as path:
                adapter.compile(Job(bundle, want.part, path, want.target), fresh, on_progress)
                seconds = time.perf_counter() - start
            if parity is None:
                on_progress(f"{want.part}: compare", None)
                parity = _compare(bundle, adapter, want, fresh)
                check_floor(profile, want, parity.psnr_db)
            artifact = seal(fresh, want.part, want.fields, parity, seconds, profile.name)
            share(bundle, fresh, artifact.files)
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
    return f"What was in {path} was damaged, or an older latentc's. It was replaced."


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
    assert isinstance(adapter, Refits)
    try:
        theirs = verify(like, other)
    except BundleError as exc:  # no reason not to compile
        raise CompileError(str(exc)) from exc
    with fresh_folder(bundle.engines / folder_name(want.part, want.key), BundleError) as fresh:
        start = time.perf_counter()
        on_progress(f"{want.part}: refit", None)
        with _lowered(bundle, profile, adapter, want) as path:
            adapter.refit(Job(bundle, want.part, path, want.target), theirs, fresh)
        seconds = time.perf_counter() - start
        on_progress(f"{want.part}: compare", None)
        parity = _compare(bundle, adapter, want, fresh)
        check_floor(profile, want, parity.psnr_db)
        return seal(fresh, want.part, want.fields, parity, seconds, profile.name, refitted_from=other.key)


@contextmanager
def _lowered(bundle: Bundle, profile: Profile, adapter: Runtime, want: Wanted) -> Generator[Path]:
    """The graph that the runtime is given."""
    graph, target = bundle.graph(want.part), want.target
    if not adapter.reads_onnx:
        yield graph
        return
    half = adapter.typed and target.precision == "f16"
    folded, scratch = not adapter.infers_shapes, bundle.engines
    with lowered(graph, want.key, profile.opset, target.shape, half=half, folded=folded, scratch=scratch) as path:
        yield path


def _compare(bundle: Bundle, adapter: Runtime, want: Wanted, artifact: Path) -> Parity:
    """Load an engine, and hold it against the reference."""
    engine = adapter.load(artifact, want.target)
    try:
        parity = measure(engine, reference(bundle, want.part, want.target.shape))
    finally:
        engine.close()
    return parity.model_copy(update={"compared_on": device_here(adapter, want.target.device)})


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


def _prove_step(bundle: Bundle, profile: Profile, built: tuple[Built, ...], on_progress: Progress) -> float | None:
    """Compare the whole step, once for each set of engines."""
    key = step_key([engine.artifact for engine in built])
    figure = read_step(bundle, key)
    if figure is None:
        _, engines = wanted(bundle, profile, to_run=True)
        figures: list[float] = []
        for shape in [want.target.shape for want in engines if want.part == "unet"]:
            on_progress("step: compare", None)
            with Engines(bundle, profile) as loaded:  # of one size at a time
                figures.append(measure_step(bundle, loaded.engine, shape, guided=profile.shapes.guided))
        figure = min(figures)
        write_step(bundle, key, figure)
    check_step(profile, [one.artifact for one in built], figure)
    return figure


def why(bundle: Bundle, profile: Profile) -> list[tuple[Wanted, Artifact | Miss]]:
    """For each engine that a profile asks for: the artifact, or what keeps the nearest one from being it."""
    _, engines = wanted(bundle, profile, to_run=False)
    return [(want, find(bundle, want.part, want.key) or explain(bundle, want.part, want.fields)) for want in engines]
