"""One engine of a build: compiled, or refitted, and compared.

A library that compiles or runs a graph from somewhere else may crash, never end, or take all memory. Where this machine
didn't export the graph, all of it happens in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, checked_graph, open_bundle
from ..core.errors import CompileError
from ..core.locks import WAIT_SECONDS
from ..core.progress import Progress, quiet
from ..core.quarantine import quarantined
from ..core.record import Record
from ..profiles import Profile
from ..runtimes import Job, Refits, Runtime
from ..runtimes.base import files_in
from .cache import Parity
from .cases import reference
from .lower import lowered, needed_passes
from .parity import is_exported_here, measure_typed
from .proof import check_floor, prove_engine
from .targets import Wanted, wanted


class Made(Record):
    """What is known of an engine once it is made."""

    parity: Parity
    seconds: float
    """Of compiling or refitting, with the lowering of the graph."""


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
    """Compile an engine into an empty folder, or give its weights to the plan in folder `refitted`; compare it.

    Where the device isn't `here`, what is compared is the graph in the engine's own types, before it is compiled.
    Raises `ParityError` below the profile's floor, and `CompileError`.
    """
    if not adapter.reads_onnx or is_exported_here(bundle, want.part):
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
        on_progress=on_progress,
    )
    return Made.model_validate(answer)


def make_apart(
    bundle: str, profile: Mapping[str, Any], key: str, folder: str, refitted: str | None, on_progress: Progress
) -> dict[str, Any]:
    """In a process of its own: `Made` as JSON."""
    opened, chosen = open_bundle(bundle), Profile.model_validate(profile)
    adapter, engines = wanted(opened, chosen, to_run=False)
    want = next((one for one in engines if one.key == key), None)
    if want is None:
        raise CompileError(f"What builds {folder} has changed since this build began. Build again.")
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
    if not here:  # compared before it is compiled, which takes longer
        on_progress(f"{want.part}: compare its graph", None)
        parity = measure_typed(bundle, want.part, want.target)
        check_floor(bundle, profile, want, parity)
    else:
        reference(bundle, want.part, want.target.shape, on_progress)
    start = time.perf_counter()
    on_progress(f"{want.part}: {'refit' if refitted else 'compile'}", None)
    compile_into(folder, bundle, profile, adapter, want, on_progress, refitted=refitted)
    seconds = time.perf_counter() - start
    if parity is None:
        on_progress(f"{want.part}: compare", None)
        engine = adapter.load(folder, want.target, files_in(folder))
        try:
            parity = prove_engine(bundle, adapter, want, engine)
        finally:
            engine.close()
        check_floor(bundle, profile, want, parity)
    return Made(parity=parity, seconds=seconds)


def compile_into(
    folder: Path,
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    want: Wanted,
    on_progress: Progress = quiet,
    *,
    refitted: Path | None = None,
) -> None:
    """Lower a part's graph and have the runtime compile it into a folder; nothing is compared."""
    graph, target = checked_graph(bundle, want.part), want.target
    if not adapter.reads_onnx:
        adapter.compile(Job(bundle, want.part, graph, target), folder, on_progress)
        return
    with lowered(
        graph,
        want.key,
        profile.opset,
        target.shape,
        needed_passes(adapter, target, bundle.part(want.part).weights),
        lacks=adapter.lacks.get(target.device, ()),
        scratch=bundle.engines,
    ) as path:
        job = Job(bundle, want.part, path, target)
        if refitted:
            assert isinstance(adapter, Refits)
            adapter.refit(job, refitted, folder)
        else:
            adapter.compile(job, folder, on_progress)
