"""A bundle's verified engines for one profile: found, checked, and loaded on first use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock, local
from typing import Any

from ..core.bundle import Bundle, check_whole
from ..core.engine import Engine
from ..core.errors import BundleError, RuntimeMissing, ShapeError
from ..core.manifest import FileInfo
from ..core.process import check_process
from ..core.progress import Progress, quiet
from ..core.reading import read_plain
from ..core.records import STATE, recall, remember, state_folder
from ..core.request import Fitted, Request
from ..core.shapes import all_of
from ..core.units import counted
from ..profiles import Profile
from ..runtimes import Runtime
from ..runtimes.base import PLACEMENT
from ..runtimes.environment import environment
from .apart import Measured, measured_apart
from .budget import fit
from .cache import (
    Artifact,
    Marks,
    Parity,
    built_profiles,
    damage,
    find,
    incomplete,
    is_whole,
    load_engine,
    loadable,
    marks_of,
)
from .faults import broken
from .packaged import unlike
from .proof import Steps, check_floor, check_steps, engine_key, prove_host, proved_here, steps_key
from .room import check_room
from .rows import RowByRow
from .sequential import Sequential
from .targets import Wanted, fixed_sizes, wanted


@dataclass
class Engines:
    """The engines of a bundle for one profile, each loaded on first use. Thread-safe.

    If the profile is sequential, an engine that is loaded replaces the one that was.
    """

    bundle: Bundle
    profile: Profile
    asked: tuple[Runtime, tuple[Wanted, ...]] | None = field(default=None, repr=False)
    """The result of `wanted` for this bundle and profile, where it is known."""
    built: Mapping[str, Artifact] = field(default_factory=dict[str, Artifact], repr=False)
    """Known artifacts, keyed by `Artifact.key`; others are looked up."""
    budget: int | None = None
    """Memory in bytes that a request may take, on the device; `fit` then chooses how each is computed."""
    _alone: bool = field(default=False, init=False, repr=False)
    """Whether an engine that is loaded replaces the one that was; once a request needed that, it stays so."""
    _here: local = field(default_factory=local, init=False, repr=False)
    """Of the request of this thread: `fitted`, whether it was fitted into the budget; `row_by_row`, whether it is
    denoised row by row.
    """
    _adapter: Runtime = field(init=False, repr=False)
    _wanted: tuple[Wanted, ...] = field(init=False, repr=False)
    _loaded: dict[str, Engine] = field(default_factory=dict[str, Engine], init=False, repr=False)
    _files: dict[str, tuple[Artifact, Marks]] = field(default_factory=dict[str, Any], init=False, repr=False)
    """State of the files of each loaded engine, keyed by engine key."""
    _described: dict[str, str] = field(default_factory=dict[str, str], init=False, repr=False)
    _closed: bool = field(default=False, init=False, repr=False)
    notices: tuple[str, ...] = field(default=(), init=False)
    """Messages to the user about the proof of the engines."""
    _figures: dict[str, Parity] = field(default_factory=dict[str, Parity], init=False, repr=False)
    """By engine key."""
    _proved: dict[str, str] = field(default_factory=dict[str, str], init=False, repr=False)
    """`engine_key` of each proved engine, keyed by engine key."""
    _lock: RLock = field(default_factory=RLock, init=False, repr=False)
    _process: int = field(default_factory=os.getpid, init=False, repr=False)

    @property
    def adapter(self) -> Runtime:
        """The profile's runtime."""
        return self._adapter

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The engines that the profile requires."""
        return self._wanted

    def proof_key(self, want: Wanted) -> str:
        """The key of the stored figures of an engine."""
        return self._engine_key(self._artifact(want))

    def figures(self, want: Wanted) -> Parity:
        """The figures of an engine on this machine; `check` measured them."""
        return self._figures[want.key]

    def __post_init__(self) -> None:
        self._alone = self.profile.sequential
        self._adapter, self._wanted = self.asked or wanted(self.bundle, self.profile, to_run=True)

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """The engine built for exactly these input shapes, or the one for every shape.

        Raises `BundleError` where the profile wasn't built or an artifact is damaged, and `ShapeError` where it was
        built for other sizes.
        """
        chosen = self.fitting(part, shapes)
        if not self._alone and self.budget is None:
            return self._load(chosen)
        self._artifact(chosen)  # one that isn't built is reported before the work begins
        found = Sequential(lambda: self._load_only(chosen), self._lock)
        info = self.bundle.part(part)
        return RowByRow(found, info.inputs) if info.role == "denoiser" and self._by_row else found

    def fitting(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Wanted:
        """Which engine takes these input shapes; raises `ShapeError` where none does."""
        check_process(self._process, "These engines were")
        candidates = [want for want in self._wanted if want.part == part]
        fitting = [one for one in candidates if one.target.shape is None or all_of(shapes, one.target.shape)]
        if not fitting:
            self.bundle.part(part)
            raise ShapeError(f"No engine of {part} accepts {_shown(shapes)}. {self._built_for()}")
        return max(fitting, key=lambda want: want.target.shape is not None)

    def _built_for(self) -> str:
        """What the engines of fixed sizes were built for, and how to get others, in sentences."""
        profile, shapes = self.profile, self.profile.shapes
        sizes = ", ".join(f"{width}x{height}" for width, height in fixed_sizes(self.bundle.manifest.model, profile))
        rows = f", {counted(shapes.images, 'image')} at once, {'with' if shapes.guided else 'without'} guidance"
        length = "prompts of one chunk (75 tokens)"
        limits = ("" if "batch" in shapes.free else rows) + ("" if "length" in shapes.free else f", and {length}")
        other = " Request that, or set other [shapes] in a profile of your own." if limits else ""
        build = f"latentc build {self.bundle.argument} --profile {profile.argument} --sizes WIDTHxHEIGHT"
        return (
            f"Profile {profile.name} is built for size {sizes}{limits}.{other} For another size: {build}, or for every "
            "size, where the runtime supports it: --sizes free."
        )

    def served(self, key: str, load: Callable[[], Engine]) -> Engine:
        """An engine that is not among the bundle's, such as one with other weights; `key` is its name here.

        It is loaded, and freed, as the others are.
        """
        if self._alone:
            return Sequential(lambda: self.held(key, load), self._lock)
        return self.held(key, load)

    def held(self, key: str, load: Callable[[], Engine]) -> Engine:
        """The engine of this name, loaded unless it is; if engines are loaded one at a time, all others are freed
        first.
        """
        with self._lock:
            if self._closed:
                raise RuntimeMissing("These engines are closed and their memory is freed. Open the bundle again.")
            if key not in self._loaded:
                if self._alone:
                    self._free(tuple(self._loaded))
                self._loaded[key] = load()
            return self._loaded[key]

    def release(self, key: str) -> None:
        """Free an engine's memory, if it is loaded. It is loaded again when it is next needed."""
        with self._lock:
            self._free([key])

    @property
    def _by_row(self) -> bool:
        return getattr(self._here, "row_by_row", False)

    def fit(self, passes: Sequence[Request]) -> Fitted | None:
        """Choose how a completed request, and its second pass if it has one, is computed within the budget.

        It holds for this thread's next calls of `engine`. Engines that it doesn't use are freed. None without a budget,
        and where no engine takes the size. Raises `RequestError` where nothing fits.
        """
        if self.budget is None:
            return None
        asked = [(want.part, want.target, find(self.bundle, want.part, want.key)) for want in self._wanted]
        found = fit(self.bundle, asked, passes, self.budget, sequential=self._alone, profile=self.profile.name)
        self._here.fitted, self._here.row_by_row = found is not None, False
        if found is None:
            return None
        memory, used = found
        self._here.row_by_row = memory.row_by_row
        with self._lock:
            if memory.sequential and not self._alone:
                self._alone = True
                self._free(tuple(self._loaded))
            parts = {self._wanted[index].part for index in used if self._role(self._wanted[index]) == "text_encoder"}
            unused = (one for index, one in enumerate(self._wanted) if index not in used)
            self._free([one.key for one in unused if one.part not in parts])  # which are called with one row and two
        return memory

    def check_room(self, request: Request) -> None:
        """Raise `RequestError` for a completed request whose images are predicted not to fit in memory."""
        if getattr(self._here, "fitted", False):  # the budget decided, with rows, tiles and decoder
            return
        check_room(self.bundle, self._wanted, request, sequential=self._alone)

    def check(self, on_progress: Progress = quiet) -> None:
        """Prove the engines that this machine hasn't proved yet, and compare all of them with the profile's floors.

        Raises `BundleError` where an engine isn't built, and `ParityError` where one, or the whole step, is below.
        """
        prove_host(self.bundle)
        pairs = self._pairs()
        artifacts = [artifact for _, artifact in pairs]
        known = {one.key: found for one in artifacts if (found := self._parity(one))}
        steps = recall(self._steps_key(artifacts), Steps)
        if steps is None or len(known) < len(artifacts):
            start = time.perf_counter()
            unknown = [one for one in artifacts if one.key not in known]
            stepped = artifacts if steps is None else ()
            measured = measured_apart(self.bundle, self.profile, unknown, steps=stepped, on_progress=on_progress)
            known |= measured.parities
            steps = steps or measured.steps
            self._remember(artifacts, measured, time.perf_counter() - start)
        for want, artifact in pairs:
            if artifact.key in known:  # measuring stops at the first that is below its floor
                check_floor(self.bundle, self.profile, want, known[artifact.key], artifact.parity)
        assert steps is not None
        self._proved, self._figures = {one.key: self._engine_key(one) for one in artifacts}, known
        check_steps(self.bundle, self.profile, self._wanted, steps)

    def unproved(self) -> str | None:
        """A sentence on what `check` would have to prove first; None where this machine proved everything."""
        artifacts = [artifact for _, artifact in self._pairs()]
        lacking = [one.part for one in artifacts if not self._parity(one)]
        if not lacking and recall(self._steps_key(artifacts), Steps):
            return None
        return (
            f"The engines for profile {self.profile.name} are not {self.bundle.standing.verb} on this machine yet "
            f"({', '.join(dict.fromkeys(lacking)) or 'the whole step'}). The first `latentc run` or `latentc build` "
            f"compares them with the references, once.{self._variables()}"
        )

    def _variables(self) -> str:
        """A sentence on what the environment changes; empty where it changes nothing."""
        found = environment(self._adapter, self.profile.device)
        if not found:
            return ""
        return f" With other values of {', '.join(found)} in the environment, they are compared again."

    def _engine_key(self, artifact: Artifact) -> str:
        return engine_key(self.bundle, self._adapter, artifact, self.profile.device)

    def _parity(self, artifact: Artifact) -> Parity | None:
        return proved_here(self.bundle, self._adapter, artifact, self.profile.device)

    def _steps_key(self, artifacts: list[Artifact]) -> str:
        return steps_key(self.bundle, self.profile, self._adapter, artifacts)

    def _pairs(self) -> list[tuple[Wanted, Artifact]]:
        return [(want, self._artifact(want)) for want in self._wanted]

    def _remember(self, artifacts: list[Artifact], measured: Measured, seconds: float) -> None:
        keys = {one.key: self._engine_key(one) for one in artifacts}
        kept = [remember(keys[key], parity) for key, parity in measured.parities.items()]
        if measured.steps:
            kept.append(remember(self._steps_key(artifacts), measured.steps))
        if not all(kept):
            notice = (
                f"The engines were {self.bundle.standing.verb} before generation, which took {seconds:.1f} s. This is "
                f"repeated at every start, because {state_folder()} is not writable. Set {STATE} to a writable folder."
            )
            self.notices = (notice,)

    def _artifact(self, want: Wanted) -> Artifact:
        if artifact := self.built.get(want.key) or find(self.bundle, want.part, want.key):
            return artifact
        name, built = self.profile.name, built_profiles(self.bundle)
        run = f"{self.bundle.argument} --profile {self.profile.argument}"
        if (path := self.bundle.engines / want.name) in broken(self.bundle):
            check_whole(self.bundle, f"{path.name}, which is damaged, cannot be built again")
            raise BundleError(f"{damage(path)} Run: latentc build {run}")
        packaged = self.bundle.manifest.packaged
        if packaged is not None and want.name in packaged.engines:
            raise BundleError(incomplete(path))
        check_whole(self.bundle, f"{want.part} cannot be built for {unlike(self.bundle, self.profile, want)}")
        if name in built:
            hint = f"`latentc why {run}` shows what changed since it was built."
        else:
            hint = f"Built profiles: {', '.join(built)}." if built else "`latentc inspect` lists built engines."
        raise BundleError(f"{want.part} is not built for profile {name}. Run: latentc build {run}   ({hint})")

    def preload(self, parts: Collection[str]) -> None:
        """Load parts now instead of on first use, except those that have engines of several sizes."""
        for part in () if self._alone or self.budget is not None else parts:
            candidates = [want for want in self._wanted if want.part == part]
            if len(candidates) == 1:
                self._load(candidates[0])

    def _load(self, want: Wanted) -> Engine:
        with self._lock:
            engine = self.held(want.key, lambda: self._opened(want))
            self._check_files(want.key)
            return engine

    def _load_only(self, want: Wanted) -> Engine:
        """Load an engine. A denoiser of another size is freed first, as a second pass has, and so are decoders."""
        with self._lock:
            others = [one.key for one in self._wanted if one.part == want.part and one.key != want.key]
            if self._role(want) == "denoiser" and any(key in self._loaded for key in others):
                self._free([*others, *(one.key for one in self._wanted if self._role(one) == "decoder")])
            return self._load(want)

    def _role(self, want: Wanted) -> str:
        return self.bundle.part(want.part).role

    def verified(self, want: Wanted) -> Path:
        """The folder of an engine that this machine proved, after checking its files."""
        return loadable(self.bundle, self._unchanged(want))

    def _unchanged(self, want: Wanted) -> Artifact:
        """An engine's artifact; raises `BundleError` where it isn't the one that was proved."""
        artifact = self._artifact(want)
        proved = self._proved.get(want.key)
        if proved is not None and proved != self._engine_key(artifact):
            place = self.bundle.engines / artifact.name
            raise BundleError(
                f"{place}, or code that was compiled for it on this machine, was replaced after it was "
                f"{self.bundle.standing.verb}. Open the bundle again."
            )
        return artifact

    def _opened(self, want: Wanted) -> Engine:
        artifact = self._unchanged(want)
        self._files[want.key] = artifact, marks_of(self.bundle, artifact)
        return load_engine(self.bundle, artifact, self._adapter, want)

    def _check_files(self, key: str) -> None:
        """Raise `BundleError` where a loaded file was written to; a file that was replaced by rename is unchanged."""
        artifact, marks = self._files[key]
        if (now := marks_of(self.bundle, artifact)) == marks:
            return
        for name, (node, state) in now.items():
            before, was = marks.get(name, (node, state))
            path = self.bundle.engines / artifact.name / name
            if node == before and state != was and _differs(path, artifact.files[name]):
                raise BundleError(
                    f"{path} was written to while its engine was loaded, so results of the engine cannot be trusted. "
                    "Open the bundle again. To replace an engine, copy it under another name, then rename the copy."
                )
        self._files[key] = artifact, now

    def describe(self) -> dict[str, str]:
        """What runs each part, such as `openvino 2026.4.1 CPU bf16`, with nodes per provider where there are any."""
        check_process(self._process, "These engines were")
        with self._lock:
            if not self._described:
                self._described = self._describe()
            return dict(self._described)

    def _describe(self) -> dict[str, str]:
        versions = self._adapter.versions()
        version = versions.get(self.profile.runtime, next(iter(versions.values()), ""))
        found: dict[str, dict[str, None]] = {}
        for want in self._wanted:
            step = "with the scheduler's step" if want.target.loop else ""
            facts = (want.target.runtime, version, want.target.device, want.target.precision, step)
            found.setdefault(want.part, {})[" ".join(filter(None, facts)) + _placed(self.bundle, want)] = None
        return {part: "; or ".join(each) for part, each in found.items()}

    def unload(self) -> None:
        """Free the engines' memory until they are needed again."""
        with self._lock:
            self._free(tuple(self._loaded))

    def close(self) -> None:
        """Free the engines' memory; does nothing in a forked process."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            self._free(tuple(self._loaded))

    def _free(self, keys: Iterable[str]) -> None:
        for key in keys:
            if (engine := self._loaded.pop(key, None)) is not None:
                engine.close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    bundle: Bundle,
    profile: Profile,
    parts: Collection[str] = (),
    on_progress: Progress = quiet,
    *,
    budget: int | None = None,
) -> Engines:
    """Open a bundle's engines for a profile; those of `parts` are loaded now instead of on first use, unless there is a
    memory `budget` in bytes.

    Engines that this machine didn't prove yet, such as those of a copied bundle, are proved first.
    Raises the errors of `wanted`, `BundleError` where an engine isn't built or is damaged, and `ParityError` where one
    is below the profile's floors.
    """
    engines = Engines(bundle, profile, budget=budget)
    engines.check(on_progress)
    try:
        engines.preload(parts)
    except BaseException:
        engines.close()
        raise
    return engines


def _differs(path: Path, info: FileInfo) -> bool:
    try:
        return not is_whole(path, info)
    except (OSError, ValueError):
        return True


def _placed(bundle: Bundle, want: Wanted) -> str:
    """Nodes by provider, as placed when the engine was built; empty where the runtime has only one provider."""
    path = bundle.engines / want.name / PLACEMENT
    try:
        nodes = read_plain(path, dict[str, dict[str, int]])
        return f", nodes: {', '.join(f'{sum(kinds.values())} {provider}' for provider, kinds in nodes.items())}"
    except (OSError, ValueError, AttributeError):  # none, or damaged: loading the engine reports that
        return ""


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
