"""A benchmark run: each configuration in a process of its own, measured alternately until the times are stable."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from ..compiler.cache import artifacts, check_place, locked
from ..core.bundle import Bundle
from ..core.errors import BundleError, RequestError
from ..core.progress import Progress, quiet
from ..core.request import Request
from ..profiles import load_profile
from .baselines import check_task, find_baseline, peers_folder, require_baseline
from .contender import OWN_COST, TIMEOUT_SECONDS, Awake, Contender, contenders_of, reason
from .energy import joules, read_counters
from .line import Imported, Loaded, Prepared, Timed
from .meaning import require_scenes
from .others import other_cores, taken
from .plan import Plan, requests_of
from .process import Process
from .records import Draw, Likeness, Measurement, Memory, OnDevice, PartParity, Startup, Vram, append_records
from .referee import check_suite, compare, understand
from .row import row_of, run_facts, work_of
from .stability import stability_of
from .suite import suite_for
from .vram import Device, clocks, devices

Afterwards = Callable[[Awake, Progress], None]
"""Work for the engines after their times were measured."""

WARMUPS = 1


def bench(
    bundles: Bundle | Sequence[Bundle], plan: Plan, output: Path, on_progress: Progress = quiet
) -> list[Measurement]:
    """Measure each profile and baseline at each size and batch, and add a line for each to `output`.

    Several bundles, such as a base model and its fine-tunes, generate the same prompts with the same seeds, measured
    alternately. A configuration that fails is a line with the reason. Lines are written when all configurations of one
    size and batch are measured, or when the run is interrupted. Before anything runs, raises `RequestError` for an
    invalid baseline, setting or set of bundles, `RuntimeMissing` for a baseline without its environment, and
    `LatentcError` if `output` can't be written or a requirement of the suite, its measures or captions is missing.
    """
    bundles = [bundles] if isinstance(bundles, Bundle) else list(bundles)
    _check_names(bundles)
    baselines = [find_baseline(name) for name in plan.baselines]
    models = [bundle.manifest.model for bundle in bundles]
    films, images = any(model.reads_image for model in models), any(model.inpaints for model in models)
    for baseline in baselines:
        check_task(baseline, films=films, images=images or plan.files.named)
        require_baseline(baseline, plan.peers or peers_folder())
    own_cost = [] if any(profile.name == OWN_COST for profile in plan.profiles) else [load_profile(OWN_COST)]
    if own_cost and not _can_build(bundles[0]):
        own_cost = []  # a read-only bundle has no place for its engines
    wanted = list(requests_of(bundles, plan))
    if plan.captions:
        require_scenes(bundles)
    check_suite(bundles, plan, wanted)
    append_records(output, [])
    kept = {artifact.name for artifact in artifacts(bundles[0])}
    common = run_facts(plan.apart)
    rows: list[Measurement] = []
    for request in wanted:
        common["other_cores"] = None
        work = [work_of(bundle, request) for bundle in bundles]
        with tempfile.TemporaryDirectory(prefix="latentc-bench-") as scratch:
            groups: list[list[Contender]] = []
            for index, bundle in enumerate(bundles):  # the null profile is measured once
                profiles = [*(own_cost if index == 0 else []), *plan.profiles]
                folder = Path(scratch, str(index))
                folder.mkdir()
                groups.append(contenders_of(bundle, plan, request, profiles, baselines, folder, common["run"]))
            afterwards = _afterwards(bundles, groups, plan, request, first=request is wanted[0])
            try:
                common["other_cores"] = _measure(list(chain(*groups)), plan, afterwards, on_progress)
            finally:  # a run that is interrupted keeps its results
                measured: list[Measurement] = []
                for group, counted in zip(groups, work, strict=True):
                    for contender in group:
                        if not contender.draws and contender.error is None:
                            contender.error = "The run was interrupted before this configuration was measured."
                        measured.append(row_of(contender, request, *counted, common, output.parent))
                append_records(output, measured)
                if own_cost and not any(profile.runtime == OWN_COST for profile in plan.profiles):
                    _remove_own_cost(bundles[0], kept)
        rows += measured
    return rows


def _check_names(bundles: Sequence[Bundle]) -> None:
    """Raise `RequestError` for no bundles, and for bundles with the same name."""
    names = [bundle.folder.name for bundle in bundles]
    if not names:
        raise RequestError("No bundle was given. Name at least one.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(
            f"Two bundles are called {twice}, so their rows could not be distinguished. Rename one of them."
        )


def _can_build(bundle: Bundle) -> bool:
    try:
        check_place(bundle)
    except BundleError:
        return False
    return bundle.manifest.packaged is None


def _remove_own_cost(bundle: Bundle, kept: Collection[str]) -> None:
    """Remove the engines that were built for the row of latentc's own overhead: the user didn't ask for them."""
    for artifact in artifacts(bundle):
        if artifact.fields.runtime == OWN_COST and artifact.name not in kept:
            with locked(bundle, artifact.name):
                shutil.rmtree(bundle.engines / artifact.name, ignore_errors=True)


def _afterwards(
    bundles: Sequence[Bundle], groups: Sequence[Sequence[Contender]], plan: Plan, request: Request, first: bool
) -> list[Afterwards]:
    found: list[Afterwards] = []
    for bundle, group in zip(bundles, groups, strict=True):
        if plan.suite:
            found.append(partial(compare, bundle, request, suite_for(*bundles), plan.measures, group))
        if plan.captions and first:  # captions are always generated at the model's own size
            found.append(partial(understand, plan.captions, request, group))
    return found


def _measure(
    contenders: Sequence[Contender], plan: Plan, afterwards: Sequence[Afterwards], on_progress: Progress
) -> float | None:
    """Build one after the other, measure alternately until stable, then run the suite and captions.

    Returns how many cores other processes used meanwhile; None if unknown.
    """
    with ExitStack() as stack:
        sampler = stack.enter_context(Process(Path(sys.executable), "benchmarks.sampler"))

        def awake(contender: Contender) -> AbstractContextManager[None]:
            return _awake(contender, sampler, on_progress) if plan.apart else nullcontext()

        for contender in contenders:
            if contender.error is None:
                with reason(contender):
                    _build(contender, on_progress)
                    if not plan.apart:
                        _start(contender, stack, sampler, on_progress)
        before = taken(_living(contenders, sampler))
        for look in range(plan.patience):  # few checks: each one may take noise for stability
            _draw_in_turn(contenders, plan, look * plan.repeat, sampler, awake, on_progress)
            running = [contender for contender in contenders if contender.error is None]
            # The null profile takes a millisecond, so its time is noisy: nothing waits until it is stable.
            awaited = [contender for contender in running if contender.subject.name != OWN_COST] or running
            if all(stability_of(contender.draws)[0] for contender in awaited):
                break
        others = other_cores(before, taken(_living(contenders, sampler)))
        if not plan.apart:
            for contender in contenders:
                if contender.error is None:
                    with reason(contender):
                        _see_peak(contender, sampler)
        for see in afterwards:
            see(awake, on_progress)
    return others


def _living(contenders: Sequence[Contender], sampler: Process) -> list[int]:
    return [sampler.pid, *(one.process.pid for one in contenders if one.process is not None)]


def _draw_in_turn(
    contenders: Sequence[Contender], plan: Plan, done: int, sampler: Process, awake: Awake, on_progress: Progress
) -> None:
    for index in range(done, done + plan.repeat):
        for contender in contenders:
            if contender.error is None:
                on_progress(f"round {index + 1}: {contender.subject.name}", index / (plan.patience * plan.repeat))
                with reason(contender), awake(contender):
                    contender.draws.append(_draw(contender))
                    if plan.apart:
                        _see_peak(contender, sampler)


@contextmanager
def _awake(contender: Contender, sampler: Process, on_progress: Progress) -> Generator[None]:
    """Run the block with a process that has loaded and generated once, and close it afterwards."""
    try:
        with ExitStack() as stack:
            if contender.first is None:
                _start(contender, stack, sampler, on_progress, warmups=0)
            else:
                contender.process = process = stack.enter_context(_open(contender))
                for verb in ("open", "load"):
                    process.ask(verb, asdict(contender.brief), contender.limit)
                contender.warmup.append(_draw(contender))
            yield
    finally:
        contender.process = None


def _see_peak(contender: Contender, sampler: Process) -> None:
    if contender.memory is not None:
        held, before = _held(sampler, "peak", contender), contender.memory
        highest = max(held["peak"] or 0, before.peak_bytes)
        seen = _vram(contender, held, before.vram)
        contender.memory = before.model_copy(update={"peak_bytes": highest, "vram": seen})


def _open(contender: Contender) -> Process:
    return Process(contender.python(), contender.module, contender.environment)


def _build(contender: Contender, on_progress: Progress) -> None:
    """Build in a separate process, so that its memory isn't counted for generation."""
    on_progress(f"{contender.subject.name}: build", None)
    with _open(contender) as process:
        process.ask("open", asdict(contender.brief), contender.limit)
        built = Prepared(**process.ask("build", asdict(contender.brief), contender.limit))
    contender.startup = Startup(build_seconds=built.seconds, build_reused=built.reused, engine_bytes=built.bytes)
    contender.ceiling_tflops = built.ceiling_tflops
    contender.leaves_out += tuple(built.leaves_out)
    if built.parts:
        parts = {part: PartParity(psnr_db=psnr, cosine=cosine) for part, (psnr, cosine) in built.parts.items()}
        contender.parity = Likeness(reference=built.reference, parts=parts, step_psnr_db=built.step_psnr_db)


def _start(
    contender: Contender, stack: ExitStack, sampler: Process, on_progress: Progress, warmups: int = WARMUPS
) -> None:
    """Import, load, run for the first time and warm up, while memory is sampled."""
    on_progress(f"{contender.subject.name}: load", None)
    contender.process = process = stack.enter_context(_open(contender))
    opened = Imported(**process.ask("open", asdict(contender.brief), contender.limit))
    contender.subject = contender.subject.model_copy(update={"versions": opened.versions})
    before = _held(sampler, "watch", contender)["now"]
    loaded = Loaded(**process.ask("load", asdict(contender.brief), contender.limit))
    loading = _held(sampler, "stop", contender)
    contender.subject = contender.subject.model_copy(update={"engines": loaded.engines, "scheduler": loaded.scheduler})
    contender.startup = contender.startup.model_copy(
        update={"import_seconds": opened.seconds, "load_seconds": loaded.seconds}
    )
    on_progress(f"{contender.subject.name}: first run and warm-up", None)
    _held(sampler, "watch", contender)
    contender.first = _draw(contender, keep=True)
    for _ in range(warmups):
        contender.warmup.append(_draw(contender))
    running = _held(sampler, "stop", contender)
    if before is not None:
        contender.memory = Memory(
            before_bytes=before,
            load_peak_bytes=loading["peak"],
            loaded_bytes=loading["now"],
            run_peak_bytes=running["peak"],
            peak_bytes=running["peak"],
            vram=_vram(contender, running),
        )


def _vram(contender: Contender, held: dict[str, Any], before: Sequence[Vram] = ()) -> tuple[Vram, ...]:
    """GPU memory by device. If all engines run on the CPU, figures of whole devices are dropped as those of others."""
    known = {one.device: one for one in before}
    seen = [Vram(**one) for one in held["vram"]]
    if _on_cpu(contender):
        seen = [one for one in seen if one.by == "process"]
    for one in seen:
        was = known.get(one.device)
        if was:
            highest = max(one.peak_bytes, was.peak_bytes)
            one = was.model_copy(update={"peak_bytes": highest, "by": one.by})
        known[one.device] = one
    return tuple(known.values())


def _held(sampler: Process, verb: str, contender: Contender) -> dict[str, Any]:
    assert contender.process is not None
    return sampler.ask(verb, {"pid": contender.process.pid}, TIMEOUT_SECONDS)


def _draw(contender: Contender, keep: bool = False) -> Draw:
    assert contender.process is not None
    wish = contender.wish if keep else replace(contender.wish, keep=None)
    before = read_counters()
    answer = contender.process.ask("draw", asdict(wish), contender.limit)
    used = joules(before, read_counters())
    drawn = Timed(**answer)
    encoders = (drawn.text_encoder or 0.0) + (drawn.image_encoder or 0.0)
    if keep:
        contender.pictures = drawn.pictures
    return Draw(
        text_encoder=drawn.text_encoder,
        image_encoder=drawn.image_encoder,
        denoiser=drawn.denoiser,
        vae_decoder=drawn.vae_decoder,
        host=drawn.total - encoders - sum(drawn.denoiser) - drawn.vae_decoder,
        total=drawn.total,
        joules=used,
        device_seconds=OnDevice(**drawn.device_seconds) if drawn.device_seconds else None,
        clocks=() if _on_cpu(contender) else clocks(_gpus()),
    )


@cache
def _gpus() -> list[Device]:
    return devices()


def _on_cpu(contender: Contender) -> bool:
    """Whether all engines run on the CPU, as they say of themselves."""
    engines = [engine.partition(", nodes:")[0] for engine in contender.subject.engines.values()]
    return all(" CPU" in engine for engine in engines)
