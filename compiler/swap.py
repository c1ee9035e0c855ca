"""Adapters that are swapped at run time: parts whose weights are fused for a request, beside the proved engines.

The engines of a bundle never change. For each combination of strengths, the graphs of changed parts are written with
fused weights (`export.fused.write_changed`), and the runtime opens them (`runtimes.Opens`) after their digests are
checked. No PyTorch reference stands behind such an engine: before it is used, it is compared with its graph, run by
ONNX Runtime without optimization, and what the adapters change in its output is compared too. The graphs, and
everything outside of engines, are the bundle's own, which are proved.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydantic import ConfigDict

from ..checkpoints.adapters.adapter import Adapter
from ..checkpoints.adapters.fuse import Edit
from ..core.bundle import Bundle, open_bundle, verify_files
from ..core.engine import Engine, Run
from ..core.errors import CheckpointError, CompileError
from ..core.files import sha256
from ..core.progress import Progress, quiet
from ..core.quarantine import quarantined
from ..core.record import Record
from ..core.records import recall, record_key, remember
from ..core.references import Case, changed, stored_at, text_pairs
from ..core.request import Fitted, Request
from ..core.tensors import Array, change_db
from ..core.version import __version__
from ..export.fused import Changed, write_changed
from ..export.sessions import CpuSession
from ..profiles import Profile
from ..runtimes import Opens
from .cache import Parity
from .cases import reference
from .engines import Engines
from .looped import as_part
from .lower import LOWERING_VERSION
from .make import WEIGHTS_MAPPED, lowered_job
from .parity import LIMIT_SECONDS, is_exported_here, measure
from .proof import DIFFERENCE_LOSS_DB, check_change, check_floor
from .scratch import scratch_folder
from .targets import Wanted, floor_db

SWAPPED = "adapters swapped in"
"""In the description of an engine whose weights are fused for a request."""

HEADROOM_DB = 40.0
"""How far above their floor engines in f32 usually are: the change of a weak adapter can't agree better than that.

Measured by `tests/pipelines/measure_change.py`: 30 to 41 dB with correct engines, at most 19 with a planted fault whose
effect is not near their rounding.
"""

OWN_LOSS_DB = 16.0
"""How far the SNR of an adapter's change, less the change's share of the output in dB, may be below the PSNR of a
part's own engine. Correct engines lose at most 9 dB, where the change is smaller than the output.
"""

ORIGIN = "the fused graph, run without optimization"


class Compared(Record):
    """Agreement of a swapped engine with its graph, on a few of the bundle's reference inputs."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    parity: Parity
    change_db: float
    """SNR of what the adapters change in the outputs."""
    change_share: float
    """RMS of that change relative to the RMS of the outputs."""


@dataclass
class _Combination:
    """The graphs of changed parts at some strengths."""

    graphs: dict[str, Changed] = field(default_factory=dict[str, Changed])
    """By part."""
    figures: dict[str, Compared] = field(default_factory=dict[str, Compared])
    """By engine key."""
    files: ExitStack = field(default_factory=ExitStack)
    users: int = 0


_Strengths = tuple[tuple[str, float], ...]


class Swaps:
    """The adapters of a pipeline: engines for each request's strengths. Thread-safe.

    One combination is kept until another is asked for, and those that are in use. Memory holds one set of engines of
    the changed parts, unless requests of different strengths run at the same time.
    """

    def __init__(self, engines: Engines, adapters: Sequence[Adapter]) -> None:
        """`adapters` fit the bundle; their own strengths are not used. Checks the weights that they change."""
        self.engines, self.bundle, self.profile = engines, engines.bundle, engines.profile
        self.adapters = {one.file.name: one for one in adapters}
        self.parts = tuple(name for name in self.bundle.manifest.parts if any(name in one.edits for one in adapters))
        verify_files(self.bundle, [file for part in self.parts for file in self.bundle.files(part)])
        self._kept: dict[_Strengths, _Combination] = {(): _Combination()}
        self._turn, self._lock = Lock(), Lock()
        self._process = os.getpid()

    @contextmanager
    def at(self, strengths: Mapping[str, float], on_progress: Progress = quiet) -> Generator[SwappedEngines]:
        """Yield the engines for these strengths by adapter, which stay loaded during the block.

        An adapter that is left out, or has a strength of 0, changes nothing. Engines of a new combination are compared
        with its graphs. Raises `CheckpointError`, `CompileError` or `ParityError`; the pipeline then stays as it was.
        """
        key = tuple(sorted((name, strength) for name, strength in strengths.items() if strength))
        with self._turn:
            self._free(key)
            combination = self._kept.get(key) or self._made(key, on_progress)
            with self._lock:
                self._kept[key] = combination
                combination.users += 1
            self._drop(key)
        try:
            yield SwappedEngines(self.engines, key, combination.graphs)
        finally:
            with self._lock:
                combination.users -= 1

    def close(self) -> None:
        """Remove the graphs. The engines are closed by their owner. Does nothing in a forked process."""
        if os.getpid() == self._process:
            for one in self._kept.values():
                one.files.close()
            self._kept = {(): _Combination()}

    def _idle(self, key: _Strengths) -> list[_Strengths]:
        """Combinations, other than this one, that nobody uses."""
        with self._lock:
            return [other for other, one in self._kept.items() if other != key and not one.users]

    def _free(self, key: _Strengths) -> None:
        """Free the engines that only idle combinations have; they can be opened again."""
        idle = self._idle(key)
        used = {one for other in {key, *self._kept} - {*idle} for one in self._engine_keys(other)}
        for one in {one for other in idle for one in self._engine_keys(other)} - used:
            self.engines.release(one)

    def _drop(self, key: _Strengths) -> None:
        """Remove the graphs of idle combinations."""
        for other in self._idle(key):
            if other:
                with self._lock:
                    gone = self._kept.pop(other)
                gone.files.close()

    def _wants(self) -> list[Wanted]:
        return [want for want in self.engines.wanted if want.part in self.parts]

    def _engine_keys(self, key: _Strengths) -> set[str]:
        wants = self._wants()
        return {_engine_key(want, key) if self._edits(want.part, key) else want.key for want in wants}

    def _made(self, key: _Strengths, on_progress: Progress) -> _Combination:
        """A combination whose engines were compared; nothing is left of it after an error."""
        made = _Combination()
        with ExitStack() as stack:
            place = stack.enter_context(scratch_folder(self.bundle.engines))
            for part in self.parts:
                if edits := self._edits(part, key):
                    on_progress(f"{part}: fuse", None)
                    folder = place / part
                    folder.mkdir()
                    made.graphs[part] = write_changed(self.bundle, part, edits, folder)
            self._check_files(key)
            for want in self._wants():
                if want.part in made.graphs:
                    on_progress(f"{want.part}: compare", None)
                    made.figures[want.key] = self._compare(want, key, made.graphs[want.part], stack)
                    if sum(one.part == want.part for one in self._wants()) > 1:  # of several sizes: loaded when used
                        self.engines.release(_engine_key(want, key))
            made.files = stack.pop_all()
        return made

    def _edits(self, part: str, key: _Strengths) -> list[Edit]:
        return [
            replace(edit, strength=strength)
            for name, strength in key
            for edit in self.adapters[name].edits.get(part, ())
        ]

    def _check_files(self, key: _Strengths) -> None:
        for name, _ in key:
            file = self.adapters[name].file
            if sha256(file.path) != file.sha256:
                raise CheckpointError(
                    f"{file.path} was changed after the pipeline was opened. Open the pipeline again."
                )

    def _compare(self, want: Wanted, key: _Strengths, graph: Changed, stack: ExitStack) -> Compared:
        """The figures of a combination's engine, measured unless this machine remembers them; raises `ParityError`."""
        about = [(self.adapters[name].file.sha256, strength) for name, strength in key]
        base = self.engines.proof_key(want)
        facts: dict[str, Any] = {"base": base, "adapters": about, "lowering": LOWERING_VERSION, "latentc": __version__}
        facts["files"] = graph.files
        record = record_key("swapped", facts)
        found = recall(record, Compared)
        release = partial(self.engines.release, _engine_key(want, key))
        if found is None:
            if is_exported_here(self.bundle, want.part):
                with ExitStack() as failing:
                    failing.callback(release)
                    engine = self.engines.held(_engine_key(want, key), partial(_open, self.engines, want, graph))
                    found = compare(self.bundle, want, engine, graph.graph)
                    check(self.bundle, self.profile, want, found, self.engines.figures(want))
                    failing.pop_all()
            else:
                arguments = {
                    "bundle": str(self.bundle.folder),
                    "profile": self.profile.model_dump(mode="json"),
                    "key": want.key,
                    "graph": str(graph.graph),
                    "files": dict(graph.files),
                }
                what = f"The first run of {want.part} with adapters"
                answer = quarantined(
                    f"{__name__}:compare_apart",
                    arguments,
                    seconds=LIMIT_SECONDS,
                    what=what,
                    mapped_bytes=WEIGHTS_MAPPED * sum(file.bytes for file in self.bundle.files(want.part).values()),
                )
                found = Compared.model_validate(answer)
            remember(record, found)
        check(self.bundle, self.profile, want, found, self.engines.figures(want))
        stack.callback(release)
        return found


def compare_apart(
    bundle: str, profile: Mapping[str, Any], key: str, graph: str, files: Mapping[str, str], on_progress: Progress
) -> dict[str, Any]:
    """Run in a separate process, for graphs that this machine didn't export; returns `Compared` as JSON."""
    del on_progress
    engines = Engines(open_bundle(bundle), Profile.model_validate(profile))
    want = next((one for one in engines.wanted if one.key == key), None)
    if want is None:
        raise CompileError(f"The bundle, the profile or the runtime of {bundle} changed. Open the pipeline again.")
    engine = _open(engines, want, Changed(Path(graph), files))
    try:
        return compare(engines.bundle, want, engine, Path(graph)).model_dump(mode="json")
    finally:
        engine.close()


class SwappedEngines:
    """The engines of a bundle, with those of changed parts replaced. They belong to `Swaps`."""

    def __init__(self, engines: Engines, key: _Strengths, graphs: Mapping[str, Changed]) -> None:
        self._engines, self._key, self._graphs = engines, key, graphs

    @property
    def notices(self) -> tuple[str, ...]:
        """See `Engines`."""
        return self._engines.notices

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """See `Engines.engine`."""
        if (graph := self._graphs.get(part)) is None:
            return self._engines.engine(part, shapes)
        want = self._engines.fitting(part, shapes)
        return self._engines.served(_engine_key(want, self._key), partial(_open, self._engines, want, graph))

    def check_room(self, request: Request) -> None:
        """See `Engines.check_room`."""
        self._engines.check_room(request)

    def fit(self, passes: Sequence[Request]) -> Fitted | None:
        """See `Engines.fit`."""
        return self._engines.fit(passes)

    def describe(self) -> dict[str, str]:
        """See `Engines.describe`; changed parts are marked."""
        found = self._engines.describe()
        return {part: f"{one}, {SWAPPED}" if part in self._graphs else one for part, one in found.items()}

    def close(self) -> None:
        """Nothing: the engines are freed when other strengths are asked for, or with the pipeline."""


def _engine_key(want: Wanted, key: _Strengths) -> str:
    return f"{want.key} {key}" if key else want.key


def _open(engines: Engines, want: Wanted, graph: Changed) -> Engine:
    """The engine of a graph with fused weights, whose files are checked first."""
    adapter = engines.adapter
    assert isinstance(adapter, Opens)
    graph.verify()
    with lowered_job(engines.bundle, engines.profile, adapter, want, graph.graph) as job:
        return as_part(adapter.open(job, partial(engines.verified, want)), want.target)


class _Seen:
    """An engine that keeps its answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.answers = engine, list[dict[str, Array]]()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.answers.append(self._engine.run(feeds))
        return self.answers[-1]

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        return self._engine.bind(feeds)

    def close(self) -> None:
        self._engine.close()


def compare(bundle: Bundle, want: Wanted, engine: Engine, graph: Path) -> Compared:
    """Compare an engine with its fused graph, and their difference from the bundle's references with each other.

    The second figure shows an engine whose weights were not replaced, even if the adapters change little.
    """
    verify_files(bundle, [stored_at(want.part)])
    latents = bundle.manifest.model.latents_input
    cases = _few(reference(bundle, want.part, want.target.shape).cases, latents)
    with CpuSession(graph) as session:
        fused = [replace(case, outputs=_known(case, session.answer(case.feeds))) for case in cases]
    seen = _Seen(engine)
    parity = measure(want.part, seen, ORIGIN, fused, latents)
    asked, found, whole = list[Array](), list[Array](), list[Array]()
    for before, after, answer in zip(cases, fused, seen.answers, strict=False):  # the first call is repeated
        for name, output in before.outputs.items():
            asked.append((after.outputs[name] - output).ravel())
            found.append((answer[name] - output).ravel())
            whole.append(after.outputs[name].ravel())
    change, share = change_db(*(np.concatenate(one) for one in (asked, found, whole)))
    return Compared(parity=parity, change_db=change, change_share=share)


def _known(case: Case, answer: Mapping[str, Array]) -> dict[str, Array]:
    return {name: answer[name] for name in case.outputs}


def _few(cases: Sequence[Case], latents: str) -> list[Case]:
    """The first case, and for a denoiser two that differ by their text alone."""
    pairs = (pair for pair in text_pairs(cases, latents) if changed(cases[pair[0]], cases[pair[1]]) == "text")
    return [cases[index] for index in dict.fromkeys((0, *next(pairs, ())))]


def check(bundle: Bundle, profile: Profile, want: Wanted, found: Compared, own: Parity) -> None:
    """Raise `ParityError` where a swapped engine is below the profile's floors, or its change is much less accurate
    than `own`, the figures of the part's own engine, let expect.
    """
    check_floor(bundle, profile, want, found.parity)
    if found.change_share >= want.target.recipe.rounding:
        floor, share_db = floor_db(bundle, profile, want, found.parity), 20 * math.log10(found.change_share)
        most = floor + HEADROOM_DB
        least = max(1.0, min(floor, most + share_db))
        if found.change_share < 1:
            least = max(least, min(own.psnr_db, most) - OWN_LOSS_DB + share_db + DIFFERENCE_LOSS_DB)
        check_change(want.part, profile, "adapter", found.change_db, least)
