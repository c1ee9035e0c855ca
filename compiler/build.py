"""Bundle and profile to verified engines: compile what is missing, prove it, keep it, load it."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Literal

from ..core.bundle import Bundle, verify_files
from ..core.errors import BundleError, CompileError, ParityError, RuntimeMissing, ShapeError
from ..core.files import fresh_folder, write_text
from ..core.progress import Progress, quiet
from ..profiles import Profile
from ..runtimes import Engine, Job, Refits, Runtime
from ..runtimes.base import PLACEMENT
from .cache import (
    Artifact,
    Miss,
    Parity,
    explain,
    find,
    folder_name,
    kindred,
    locked,
    read_step,
    reprove,
    seal,
    share,
    step_key,
    take,
    verify,
)
from .lower import lowered
from .parity import measure, measure_graph, measure_step, reference
from .plan import plan
from .targets import Wanted, device_here, wanted

STEP_LOSS_DB = 10.0
"""How much farther off the whole step may be than a part: guidance multiplies what the two halves don't share."""


How = Literal["there", "taken", "refitted", "compiled"]


@dataclass(frozen=True)
class Built:
    """One engine of a build."""

    artifact: Artifact
    how: How
    """It was there already, taken from another bundle, another's with these weights, or compiled."""
    note: str | None = None
    """Why another's wasn't given these weights, where that was tried."""

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
    if not force:
        _check_fits(bundle, profile, adapter, engines, like)
    built = tuple(_build_one(bundle, profile, adapter, want, like, on_progress) for want in engines)
    here = adapter.missing(profile.device) is None
    step = _prove_step(bundle, profile, built, on_progress) if here else None
    return Build(profile.name, built, step, time.perf_counter() - start)


def _check_fits(
    bundle: Bundle, profile: Profile, adapter: Runtime, engines: tuple[Wanted, ...], like: Bundle | None
) -> None:
    """Before a minute is spent on what isn't there yet."""
    if all(find(bundle, want.part, want.key) or _theirs(like, adapter, want) for want in engines):
        return
    try:
        complaints = plan(bundle, profile).complaints
    except (BundleError, ShapeError):  # a graph that can't be planned is no reason not to build it
        return
    if complaints:
        raise CompileError(
            f"By plan, profile {profile.name} doesn't fit. {'. '.join(complaints)}. `latentc plan` shows the figures. "
            f"To try all the same: latentc build {bundle.folder} --profile {profile.name} --force"
        )


def _theirs(like: Bundle | None, adapter: Runtime, want: Wanted) -> Artifact | None:
    """The same engine in another bundle. What isn't compiled from the graph points back at its own checkpoint."""
    return find(like, want.part, want.key) if like and adapter.reads_onnx else None


def _build_one(
    bundle: Bundle, profile: Profile, adapter: Runtime, want: Wanted, like: Bundle | None, on_progress: Progress
) -> Built:
    here = adapter.missing(profile.device) is None
    if (artifact := find(bundle, want.part, want.key)) and (proved := _proved(adapter, artifact)):
        _check_floor(profile, want, proved.parity.psnr_db)
        return Built(proved, "there")
    name = folder_name(want.part, want.key)
    with locked(bundle, name, on_progress):
        theirs = None
        if not find(bundle, want.part, want.key):
            _clear(bundle, name)
            if like and (theirs := _theirs(like, adapter, want)):
                _check_floor(profile, want, theirs.parity.psnr_db)
                on_progress(f"{want.part}: take", None)
                take(bundle, like, theirs)
        if artifact := find(bundle, want.part, want.key):  # made meanwhile, or elsewhere, or without its device
            proved = _proved(adapter, artifact)
            if proved is None:
                on_progress(f"{want.part}: compare", None)
                verify_files(bundle, [f"reference/{want.part}.npz"])
                proved = reprove(bundle, artifact, _compare(bundle, adapter, want, verify(bundle, artifact)))
            _check_floor(profile, want, proved.parity.psnr_db)
            return Built(proved, "taken" if theirs else "there")
        on_progress(f"{want.part}: read", None)
        verify_files(bundle, [*bundle.files(want.part), f"reference/{want.part}.npz", "reference/step.npz"])
        parity: Parity | None = None
        if not here:  # before compiling, which takes longer
            on_progress(f"{want.part}: compare its graph", None)
            parity = measure_graph(bundle, want.part, want.target)
            _check_floor(profile, want, parity.psnr_db)
        else:
            reference(bundle, want.part, want.target.shape)
        note: str | None = None
        if like and here and (other := _kindred(adapter, want, like)):
            try:
                return Built(_refit(bundle, profile, adapter, want, like, other, on_progress), "refitted")
            except (CompileError, ParityError) as exc:
                note = str(exc)
        with fresh_folder(bundle.engines / name, BundleError) as fresh:
            start = time.perf_counter()
            on_progress(f"{want.part}: compile", None)
            with _lowered(bundle, profile, adapter, want) as path:
                adapter.compile(Job(bundle, want.part, path, want.target), fresh, on_progress)
                seconds = time.perf_counter() - start
            if parity is None:
                on_progress(f"{want.part}: compare", None)
                parity = _compare(bundle, adapter, want, fresh)
                _check_floor(profile, want, parity.psnr_db)
            artifact = seal(fresh, want.part, want.fields, parity, seconds)
            share(bundle, fresh, artifact.files)
    return Built(artifact, "compiled", note)


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
        _check_floor(profile, want, parity.psnr_db)
        return seal(fresh, want.part, want.fields, parity, seconds, refitted_from=other.key)


@contextmanager
def _lowered(bundle: Bundle, profile: Profile, adapter: Runtime, want: Wanted) -> Generator[Path]:
    """The graph that the runtime is given."""
    graph, target = bundle.graph(want.part), want.target
    if not adapter.reads_onnx:
        yield graph
        return
    half = adapter.typed and target.precision == "f16"
    with lowered(graph, want.key, profile.opset, target.shape, half=half, folded=not adapter.infers_shapes) as path:
        yield path


def _compare(bundle: Bundle, adapter: Runtime, want: Wanted, artifact: Path) -> Parity:
    """Load an engine, and hold it against the reference."""
    engine = adapter.load(artifact, want.target)
    try:
        parity = measure(engine, reference(bundle, want.part, want.target.shape))
    finally:
        engine.close()
    return parity.model_copy(update={"compared_on": device_here(adapter, want.target.device)})


def _proved(adapter: Runtime, artifact: Artifact) -> Artifact | None:
    """The artifact with what it came to on the device that is here, as it stands where none is; None if it never ran on
    this one.
    """
    name = artifact.fields["device"]["name"]
    if adapter.missing(name):
        return artifact
    here = device_here(adapter, name)
    known = (one for one in (artifact.parity, *artifact.elsewhere) if not one.graph_run_by and one.compared_on == here)
    return next((artifact.model_copy(update={"parity": one}) for one in known), None)


def uncompared(adapter: Runtime, artifact: Artifact) -> str | None:
    """What keeps an engine from being trusted on the device that is here, or on any if none is; else None."""
    if artifact.parity.graph_run_by:
        return "was built on a machine without its device"
    if _proved(adapter, artifact):
        return None
    here = device_here(adapter, artifact.fields["device"]["name"])
    return f"was compared on {artifact.parity.compared_on}, and this is {here}"


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


def _check_floor(profile: Profile, want: Wanted, psnr_db: float) -> None:
    floor = profile.parity_db[want.target.precision]
    if not psnr_db >= floor:
        what = f"{want.part} in {want.target.precision} through {profile.runtime}"
        if not math.isfinite(psnr_db):
            raise ParityError(
                f"{what} answers NaN or infinity: something in it is larger than {want.target.precision} holds. It "
                f"won't be used. Give {want.part} a wider type under [precision]."
            )
        raise ParityError(
            f"{what} agrees with the reference to {psnr_db:.1f} dB; profile {profile.name} asks for {floor:.0f} dB. It "
            f"won't be used. Give {want.part} a wider type under [precision], or lower [parity_db] if that is what you "
            "want."
        )


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
        write_text(bundle.engines / f"step-{key}.json", json.dumps({"psnr_db": figure}) + "\n")
    _check_step(profile, [one.artifact for one in built], figure)
    return figure


def _check_step(profile: Profile, artifacts: list[Artifact], figure: float) -> None:
    """Hold the whole step to the floor of the parts that make it, less what guidance may multiply."""
    floors = [profile.parity_db[one.fields["precision"]] for one in artifacts if not one.part.startswith("vae")]
    floor = min(floors) - STEP_LOSS_DB
    if not figure >= floor and not math.isfinite(figure):
        raise ParityError(
            f"The whole step through profile {profile.name} answers NaN or infinity, though no part does by itself. It "
            "won't be used. Give the unet a wider type under [precision]."
        )
    if not figure >= floor:
        raise ParityError(
            f"The whole step through profile {profile.name} agrees with the reference to {figure:.1f} dB; "
            f"{floor:.0f} dB was expected, though each part is within its own floor. It won't be used. Give the unet a "
            "wider type under [precision]."
        )


def why(bundle: Bundle, profile: Profile) -> list[tuple[Wanted, Artifact | Miss]]:
    """For each engine that a profile asks for: the artifact, or what keeps the nearest one from being it."""
    _, engines = wanted(bundle, profile, to_run=False)
    return [(want, find(bundle, want.part, want.key) or explain(bundle, want.part, want.fields)) for want in engines]


@dataclass
class Engines:
    """The engines of a bundle for one profile, each loaded when it is first asked for. Safe for several threads."""

    bundle: Bundle
    profile: Profile
    _adapter: Runtime = field(init=False, repr=False)
    _wanted: tuple[Wanted, ...] = field(init=False, repr=False)
    _loaded: dict[str, Engine] = field(default_factory=dict[str, Engine], init=False, repr=False)
    _described: dict[str, str] = field(default_factory=dict[str, str], init=False, repr=False)
    _closed: bool = field(default=False, init=False, repr=False)
    _lock: RLock = field(default_factory=RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._adapter, self._wanted = wanted(self.bundle, self.profile, to_run=True)

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """The engine built for exactly these input shapes, or the one for every shape.

        Raises `BundleError` where the profile wasn't built or an artifact is damaged, `ShapeError` where it was
        built for other sizes.
        """
        candidates = [want for want in self._wanted if want.part == part]
        fitting = [one for one in candidates if one.target.shape is None or dict(one.target.shape) == dict(shapes)]
        if not fitting:
            self.bundle.part(part)
            profile = self.profile
            sizes, images = ", ".join(profile.shapes.sizes), profile.shapes.images
            raise ShapeError(
                f"{part} was asked for {_shown(shapes)}. Profile {profile.name} builds {sizes}, for {images} at once, "
                f"{'with' if profile.shapes.guided else 'without'} guidance, and prompts of one chunk (75 tokens). "
                "Draw within that, or copy the profile to a file of your own, change [shapes] there (without `sizes`: "
                "every size, count and length), and build with its path."
            )
        return self._load(max(fitting, key=lambda want: want.target.shape is not None))

    def check(self) -> None:
        """Raise `BundleError` where an engine isn't built or the whole step wasn't compared, and `ParityError`
        where one is below the profile's floor.
        """
        found = [self._artifact(want) for want in self._wanted]
        proved: list[Artifact] = []
        for want, artifact in zip(self._wanted, found, strict=True):
            here = _proved(self._adapter, artifact)
            if here is None:
                raise BundleError(
                    f"{want.part} for profile {self.profile.name} {uncompared(self._adapter, artifact)}: its engine "
                    f"was never compared with the reference here. Run: latentc build {self.bundle.folder} --profile "
                    f"{self.profile.name}   (it compiles nothing again)"
                )
            _check_floor(self.profile, want, here.parity.psnr_db)
            proved.append(here)
        figure = read_step(self.bundle, step_key(proved))
        if figure is not None:
            _check_step(self.profile, proved, figure)
        else:
            raise BundleError(
                f"The engines for profile {self.profile.name} are built, but the whole step was never compared with "
                f"the reference: the build didn't finish. Run: latentc build {self.bundle.folder} "
                f"--profile {self.profile.name}"
            )

    def _artifact(self, want: Wanted) -> Artifact:
        if artifact := find(self.bundle, want.part, want.key):
            return artifact
        raise BundleError(
            f"{want.part} isn't built for profile {self.profile.name}. Run: latentc build {self.bundle.folder} "
            f"--profile {self.profile.name}   (`latentc why` says what changed.)"
        )

    def preload(self, parts: Collection[str]) -> None:
        """Load parts now rather than when they are first asked for; those of several sizes still wait."""
        for part in parts:
            candidates = [want for want in self._wanted if want.part == part]
            if len(candidates) == 1:
                self._load(candidates[0])

    def _load(self, want: Wanted) -> Engine:
        with self._lock:
            if self._closed:
                raise RuntimeMissing("These engines were closed, and their memory given back. Open the bundle again.")
            if want.key not in self._loaded:
                artifact = self._artifact(want)
                self._loaded[want.key] = self._adapter.load(verify(self.bundle, artifact), want.target)
            return self._loaded[want.key]

    def describe(self) -> dict[str, str]:
        """What runs each part, as `openvino 2026.4.1 CPU bf16`, and how many nodes where, for what has providers."""
        with self._lock:
            if not self._described:
                self._described = self._describe()
            return dict(self._described)

    def _describe(self) -> dict[str, str]:
        versions = self._adapter.versions()
        version = versions.get(self.profile.runtime, next(iter(versions.values()), ""))
        told: dict[str, dict[str, None]] = {}
        for want in self._wanted:
            facts = (want.target.runtime, version, want.target.device, want.target.precision)
            told.setdefault(want.part, {})[" ".join(filter(None, facts)) + _placed(self.bundle, want)] = None
        return {part: "; or ".join(each) for part, each in told.items()}

    def close(self) -> None:
        """Give back the engines' memory."""
        with self._lock:
            self._closed = True
            for engine in self._loaded.values():
                engine.close()
            self._loaded.clear()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(bundle: Bundle, profile: Profile, parts: Collection[str] = ()) -> Engines:
    """The engines that a profile has in a bundle, those of `parts` loaded now rather than when first asked for.

    Raises as `wanted` does, `BundleError` where an engine isn't built or is damaged, and `ParityError` where one was
    built for a laxer profile than this.
    """
    engines = Engines(bundle, profile)
    engines.check()
    try:
        engines.preload(parts)
    except BaseException:
        engines.close()
        raise
    return engines


def _placed(bundle: Bundle, want: Wanted) -> str:
    """Nodes by provider, as they were placed when the engine was built; empty where the runtime has one place only."""
    path = bundle.engines / folder_name(want.part, want.key) / PLACEMENT
    try:
        nodes: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8"))
        return f", nodes: {', '.join(f'{sum(kinds.values())} {provider}' for provider, kinds in nodes.items())}"
    except (OSError, ValueError, AttributeError):  # there is none, or it is damaged, which loading the engine says
        return ""


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
