"""One engine of a build: compiled or refitted, then compared with its reference.

A library that compiles or runs a graph from an unknown source may crash, hang, or use all memory. Where this machine
didn't export the graph, this work runs in a separate process.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, checked_graph, open_bundle
from ..core.errors import CompileError, InexactError
from ..core.locks import WAIT_SECONDS
from ..core.progress import Progress, quiet
from ..core.quarantine import quarantined
from ..core.record import Record
from ..profiles import Profile
from ..runtimes import Calibration, Job, Refits, Runtime
from ..runtimes.base import files_in
from .cache import Parity
from .calibrate import calibration
from .cases import reference
from .looped import engine_target, load_part
from .lower import lowered, needed_passes
from .parity import is_exported_here, measure_typed
from .proof import prove_engine
from .targets import Wanted, floor_db, job_of, wanted
from .traces import LACKING_DB

WEIGHTS_MAPPED = 2
"""How often a compiler maps the weights: ONNX Runtime does once to read them, and once to write its own graph."""


class Made(Record):
    """Figures of a new engine, which the caller compares with the profile's floor."""

    parity: Parity
    seconds: float
    """Time to lower the graph and to compile or refit it."""


def make(
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    want: Wanted,
    folder: Path,
    on_progress: Progress,
    *,
    here: bool,
    refitted: Path | None = None,
) -> Made:
    """Compile an engine into an empty folder, or refit the one in folder `refitted` with its weights, and compare it.

    Without the device (`here` is False) the graph is compared in the engine's own types first, and compiled if it
    reaches the profile's floor. Raises `CompileError`.
    """
    if not adapter.facts.reads_onnx or is_exported_here(bundle, want.part):
        return _make(bundle, profile, adapter, want, folder, refitted, on_progress, here=here)
    answer = quarantined(
        f"{__name__}:make_apart",
        {
            "bundle": str(bundle.folder),
            "profile": profile.model_dump(mode="json"),
            "key": want.key,
            "folder": str(folder),
            "refitted": str(refitted) if refitted else None,
        },
        seconds=WAIT_SECONDS,
        what=f"Compiling {want.part} for profile {profile.name}",
        mapped_bytes=WEIGHTS_MAPPED * _mapped_bytes(bundle, want),
        on_progress=on_progress,
    )
    return Made.model_validate(answer)


def _mapped_bytes(bundle: Bundle, want: Wanted) -> int:
    """Files of the part, or of all parts where calls for its calibration are recorded, which engines of all make."""
    parts = bundle.manifest.parts if want.target.recipe.calibrated else (want.part,)
    files = {path: file.bytes for part in parts for path, file in bundle.files(part).items()}
    return sum(files.values())


def make_apart(
    bundle: str, profile: Mapping[str, Any], key: str, folder: str, refitted: str | None, on_progress: Progress
) -> dict[str, Any]:
    """Run `make` in a separate process; returns `Made` as JSON."""
    opened, chosen = open_bundle(bundle), Profile.model_validate(profile)
    adapter, engines = wanted(opened, chosen, to_run=False)
    want = next((one for one in engines if one.key == key), None)
    if want is None:
        raise CompileError(
            f"The bundle, the profile or the runtime of {folder} changed after this build started. Build again."
        )
    plan = Path(refitted) if refitted else None
    here = adapter.missing(chosen.device) is None
    return _make(opened, chosen, adapter, want, Path(folder), plan, on_progress, here=here).model_dump(mode="json")


def _make(
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    want: Wanted,
    folder: Path,
    refitted: Path | None,
    on_progress: Progress,
    *,
    here: bool,
) -> Made:
    parity = None
    if not here:  # compared first, because compiling takes longer
        on_progress(f"{want.part}: compare its graph", None)
        parity = measure_typed(bundle, want.part, want.target)
        if not parity.psnr_db >= floor_db(bundle, profile, want, parity):
            return Made(parity=parity, seconds=0.0)
    else:
        reference(bundle, want.part, want.target.shape, on_progress)
    given = None
    if want.target.recipe.calibrated:
        given = calibration(bundle, want.part, want.target, floor_db(bundle, profile, want), on_progress)
    start = time.perf_counter()
    on_progress(f"{want.part}: {'refit' if refitted else 'compile'}", None)
    compile_into(folder, bundle, profile, adapter, want, on_progress, refitted=refitted, given=given)
    seconds = time.perf_counter() - start
    if parity is None:
        parity = _proved(bundle, adapter, want, folder, on_progress)
    while given is not None and (more := _stricter(given, floor_db(bundle, profile, want), parity)) is not None:
        given = more
        for path in folder.iterdir():
            path.unlink()
        on_progress(f"{want.part}: compile with more exact layers", None)
        try:
            compile_into(folder, bundle, profile, adapter, want, on_progress, given=given)
        except InexactError:  # the one before is below the floor, and so refused
            break
        parity, seconds = _proved(bundle, adapter, want, folder, on_progress), time.perf_counter() - start
    return Made(parity=parity, seconds=seconds)


def _proved(bundle: Bundle, adapter: Runtime, want: Wanted, folder: Path, on_progress: Progress) -> Parity:
    """Load the engine in a folder, and compare it with its reference."""
    on_progress(f"{want.part}: compare", None)
    engine = load_part(adapter, folder, want.target, files_in(folder))
    try:
        return prove_engine(bundle, adapter, want, engine)
    finally:
        engine.close()


def _stricter(given: Calibration, floor: float, parity: Parity) -> Calibration | None:
    """What to build an int8 engine with again; None where it reaches its floor, or more exact layers would not help."""
    lacking = floor - parity.psnr_db
    if not 0 < lacking < LACKING_DB or given.floor_db - floor > LACKING_DB:
        return None
    if parity.worst_timestep is not None and parity.worst_timestep < (given.exact_below or 0):
        return None  # that call is exact
    return replace(given, floor_db=given.floor_db + lacking + 1)


def compile_into(
    folder: Path,
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    want: Wanted,
    on_progress: Progress = quiet,
    *,
    refitted: Path | None = None,
    given: Calibration | None = None,
) -> None:
    """Lower a part's graph and compile it into a folder; nothing is compared."""
    with lowered_job(bundle, profile, adapter, want, checked_graph(bundle, want.part)) as job:
        if refitted:
            assert isinstance(adapter, Refits)
            adapter.refit(job, refitted, folder)
        else:
            adapter.compile(replace(job, calibration=given), folder, on_progress)


@contextmanager
def lowered_job(bundle: Bundle, profile: Profile, adapter: Runtime, want: Wanted, graph: Path) -> Generator[Job]:
    """Yield the job of a part whose graph is lowered for a target: its own graph, or one with other weights.

    For a runtime that doesn't compile graphs it isn't lowered.
    """
    target = want.target
    if not adapter.facts.reads_onnx:
        yield job_of(bundle, want.part, graph, target)
        return
    with lowered(
        graph,
        want.key,
        profile.opset,
        target.shape,
        needed_passes(adapter, target, bundle.part(want.part).weights),
        lacks=adapter.facts.lacks.get(target.device, ()),
        scratch=bundle.engines,
        loop=target.loop,
    ) as path:
        yield job_of(bundle, want.part, path, engine_target(target))
