"""The run: every configuration in a process of its own, all of them called in turn until their times are stable."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, cast
from uuid import uuid4

import numpy as np

from .. import __version__
from ..checkpoints.open import open_checkpoint
from ..core.bundle import Bundle
from ..core.errors import CheckpointError, LatentcError
from ..core.files import sha256_json
from ..core.progress import Progress, quiet
from ..core.request import Request
from ..pipelines.complete import complete
from ..pipelines.denoise import DENOISER
from ..pipelines.noise import initial_noise
from ..pipelines.pipeline import SCHEDULER
from ..pipelines.pixels import DECODER
from ..profiles import Profile, load_profile
from ..runtimes.machine import machine
from .baselines import EAGER, PROFILE_MODULE, Baseline, find_baseline, peers_folder, python_of
from .energy import joules, read_counters
from .line import Brief, Built, Drawn, Likeness, Loaded, Opened, Wish
from .process import Process
from .records import (
    Draw,
    Figure,
    Measurement,
    Memory,
    Metric,
    Parity,
    PartParity,
    Setting,
    Stage,
    Startup,
    Subject,
    Work,
    append_records,
    model_of,
    summarize,
)
from .suite import SUITE, references_path
from .work import count_work

OWN_COST = "null"
"""The profile that is always measured: what it takes is the harness's and the pipeline's own cost."""

PROMPT = "a lighthouse on a cliff, sunset, long exposure"
SEED = 7
WARMUPS = 1
REPEAT = 6
"""Fewest draws whose median has an interval of 95 % confidence."""
PATIENCE = 3
"""Rounds are repeated up to so many times what was asked, until every time is stable."""
SPREAD = 0.05
DRIFT = 0.05
TIMEOUT_SECONDS = 3600.0

LEAVES_OUT = (
    "Starting Python, importing, building and loading: they are under `startup`.",
    "The first draw and the warm-up: they are apart.",
    "Writing PNG files.",
)
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "MKL_NUM_THREADS")
"""Variables of the environment that change what libraries do with the cores."""

COUNTED = "Of the FLOP: activations, normalization, softmax and whatever else takes a few operations for each number."
STAGE_PARTS: dict[Stage, str] = {"text_encoder": "text_encoder", "denoiser": DENOISER, "vae_decoder": DECODER}
"""The part whose precision a stage is computed in."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    profiles: tuple[Profile, ...]
    baselines: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels; none: the size that the model was made for."""
    batches: tuple[int, ...] = (1,)
    steps: int = 20
    repeat: int = REPEAT
    """Measured draws at least; up to `PATIENCE` times as many until the times are stable."""
    prompt: str = PROMPT
    guidance: float = 7.5
    seed: int = SEED
    ceiling: bool = True
    """Also measure matrix products through each profile's runtime: some seconds each."""
    keep: Path | None = None
    """Folder for the first draw's pictures; None: they aren't kept."""
    peers: Path | None = None
    """Folder of the peers' environments; None: `peers_folder()`."""
    suite: bool = False
    """After the timed draws, draw the suite too and compare it with PyTorch's."""


@dataclass
class Contender:
    """One subject at one setting, while it is measured."""

    subject: Subject
    python: Callable[[], Path]
    module: str
    brief: Brief
    wish: Wish
    leaves_out: tuple[str, ...]
    environment: dict[str, str]
    process: Process | None = None
    startup: Startup = field(default_factory=Startup)
    parity: Parity | None = None
    ceiling_tflops: dict[str, float] = field(default_factory=dict[str, float])
    first: Draw | None = None
    warmup: list[Draw] = field(default_factory=list[Draw])
    draws: list[Draw] = field(default_factory=list[Draw])
    memory: Memory | None = None
    pictures: tuple[str, ...] = ()
    error: str | None = None


def bench(bundle: Bundle, plan: Plan, output: Path, on_progress: Progress = quiet) -> list[Measurement]:
    """Measure each profile and baseline at each size and batch, and add a line for each to `output`.

    What can't be measured is a line with its reason. Lines are written as soon as all of one size and batch are
    measured. Raises `RequestError` for a baseline or a setting that can't be, before anything is run, and
    `LatentcError` where `output` can't be written.
    """
    baselines = [find_baseline(name) for name in plan.baselines]
    profiles = list(plan.profiles)
    if all(profile.name != OWN_COST for profile in profiles):
        profiles.insert(0, load_profile(OWN_COST))
    settings = list(_settings(bundle, plan))
    append_records(output, [])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    common: dict[str, Any] = {
        "run": uuid4().hex,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "latentc": __version__,
        "commit": _commit(),
        "machine": machine(),
        "load_average": load,
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "model": model_of(bundle),
    }
    rows: list[Measurement] = []
    for setting in settings:
        with tempfile.TemporaryDirectory(prefix="latentc-bench-") as scratch:
            contenders = _contenders(bundle, plan, setting, profiles, baselines, Path(scratch))
            compare = partial(_compare, bundle, setting) if plan.suite else None
            _measure(contenders, plan.repeat, compare, on_progress)
        work, uncounted = _work(bundle, setting)
        measured = [_row(contender, setting, work, uncounted, common, output.parent) for contender in contenders]
        append_records(output, measured)
        rows += measured
    return rows


def _settings(bundle: Bundle, plan: Plan) -> Generator[Setting]:
    side = bundle.manifest.model.default_size
    for (width, height), batch in product(plan.sizes or ((side, side),), plan.batches):
        request = Request(
            prompt=plan.prompt,
            width=width,
            height=height,
            count=batch,
            steps=plan.steps,
            guidance=plan.guidance,
            seed=plan.seed,
        )
        complete(request, bundle.manifest.model, bundle.json(SCHEDULER))
        yield Setting(
            prompt=plan.prompt,
            negative_prompt=request.negative_prompt,
            width=width,
            height=height,
            batch=batch,
            steps=plan.steps,
            guidance=plan.guidance,
            seed=plan.seed,
        )


def _contenders(
    bundle: Bundle,
    plan: Plan,
    setting: Setting,
    profiles: Sequence[Profile],
    baselines: Sequence[Baseline],
    scratch: Path,
) -> list[Contender]:
    model = bundle.manifest.model
    latents = scratch / "latents.npy"
    height, width = setting.height // model.downscale, setting.width // model.downscale
    np.save(latents, initial_noise(setting.seed, (setting.batch, model.latent_channels, height, width)))
    own = [Baseline(profile.name, PROFILE_MODULE, profile=profile) for profile in profiles]
    peers = plan.peers or peers_folder()
    digest = sha256_json([part.digest for part in bundle.manifest.parts.values()])[:16]
    found: list[Contender] = []
    for index, one in enumerate([*own, *baselines]):
        name = f"{index:02}-{one.name}-{setting.width}x{setting.height}-b{setting.batch}"
        brief = Brief(
            bundle=str(bundle.folder),
            checkpoint="",
            models=str(peers / "models" / f"{digest}-{one.name}"),
            profile=one.profile.model_dump(mode="json") if one.profile else None,
            width=setting.width,
            height=setting.height,
            batch=setting.batch,
            guidance=setting.guidance,
            ceiling=plan.ceiling,
        )
        drawing = setting.model_dump()
        wish = Wish(**drawing, latents=str(latents), keep=str(plan.keep / name) if plan.keep else None)
        kind = "profile" if index < len(own) else "baseline"
        found.append(
            Contender(
                subject=Subject(kind=kind, name=one.name, profile=one.profile),
                python=lambda one=one: python_of(one, peers),
                module=one.module,
                brief=brief,
                wish=wish,
                leaves_out=one.leaves_out,
                environment={one.cache: str(scratch / one.name)} if one.cache else {},
            )
        )
        if one.profile is None:
            with _reason(found[-1]):
                found[-1].brief = replace(brief, checkpoint=_checkpoint_folder(bundle))
    if plan.keep:
        plan.keep.mkdir(parents=True, exist_ok=True)
    return found


def _checkpoint_folder(bundle: Bundle) -> str:
    """The folder that the bundle was exported from; raises `CheckpointError` where it was none, or is gone."""
    source = bundle.manifest.source
    folder = open_checkpoint(source.location, revision=source.revision, family=bundle.manifest.family).folder
    if folder is None:
        raise CheckpointError(
            f"{source.location} is a single file, and this baseline opens diffusers folders. Convert it to one, and "
            "export that."
        )
    return str(folder)


Compare = Callable[[Sequence[Contender], Progress], None]


def _measure(contenders: Sequence[Contender], repeat: int, compare: Compare | None, on_progress: Progress) -> None:
    """Build, start and warm up one after the other; draw in turn until stable; then compare pictures, if asked."""
    with ExitStack() as stack:
        sampler = stack.enter_context(Process(Path(sys.executable), "benchmarks.sampler"))
        for contender in contenders:
            if contender.error is None:
                with _reason(contender):
                    _build(contender, on_progress)
                    _start(contender, stack, sampler, on_progress)
        rounds = PATIENCE * repeat
        for index in range(rounds):
            running = [contender for contender in contenders if contender.error is None]
            # What does no work takes a millisecond, in which everything shows: nobody waits for it.
            awaited = [contender for contender in running if contender.subject.name != OWN_COST] or running
            if not running or (index >= repeat and all(judge(contender.draws)[0] for contender in awaited)):
                break
            for contender in running:
                on_progress(f"round {index + 1}: {contender.subject.name}", index / rounds)
                with _reason(contender):
                    contender.draws.append(_draw(contender))
        for contender in contenders:
            if contender.memory is not None and contender.process is not None:
                with _reason(contender):
                    peak = _held(sampler, "peak", contender)["peak"]
                    contender.memory = contender.memory.model_copy(update={"peak_bytes": peak})
        if compare is not None:
            compare([contender for contender in contenders if contender.error is None], on_progress)


def _compare(bundle: Bundle, setting: Setting, contenders: Sequence[Contender], on_progress: Progress) -> None:
    """Have the engines that were timed draw the suite, and hold it against the reference's."""
    drawing = [one for one in contenders if one.brief.profile and one.subject.name != OWN_COST]
    if not drawing:
        return
    path = references_path(bundle, SUITE, (setting.width, setting.height))
    try:
        floor = _refer(drawing[0].brief, path, on_progress)
    except LatentcError as exc:  # what can't be compared has failed, whatever the reason
        for contender in drawing:
            known = contender.parity or Parity(reference="")
            failure = f"The suite couldn't be compared: {exc}"
            contender.parity = known.model_copy(update={"suite": SUITE.title, "failures": (failure,)})
        return
    for contender in drawing:
        assert contender.process is not None
        on_progress(f"{contender.subject.name}: compare", None)
        with _reason(contender):
            found = Likeness(**contender.process.ask("compare", {"path": str(path)}, TIMEOUT_SECONDS))
            known = contender.parity or Parity(reference=found.reference)
            contender.parity = Parity.model_validate(known.model_dump() | _likeness(found, floor))


def _refer(brief: Brief, path: Path, on_progress: Progress) -> Likeness:
    """Draw the reference's side of the suite unless it is there; how far is it from itself with one thread?"""
    on_progress("reference: draw the suite", None)
    if not path.exists():
        size = {"width": brief.width, "height": brief.height}
        _ask_torch(brief, "refer", {"path": str(path), **size}, {})
    return Likeness(**_ask_torch(brief, "compare", {"path": str(path)}, {"OMP_NUM_THREADS": "1"}))


def _ask_torch(brief: Brief, verb: str, what: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Have PyTorch answer, in a process of its own."""
    torch = asdict(replace(brief, profile=EAGER.model_dump(mode="json"), ceiling=False))
    with Process(Path(sys.executable), PROFILE_MODULE, environment) as process:
        for step in ("open", "build", "load"):
            process.ask(step, torch, TIMEOUT_SECONDS)
        return process.ask(verb, what, TIMEOUT_SECONDS)


def _likeness(found: Likeness, floor: Likeness) -> dict[str, Any]:
    """What the suite tells, as `Parity` has it."""
    return {
        "suite": f"{found.suite}, against {found.reference}",
        "forced_psnr_db": found.forced_psnr_db,
        "pictures": {
            cast("Metric", metric): Figure(median=median, worst=worst, floor=floor.pictures[metric][1])
            for metric, (median, worst) in found.pictures.items()
        },
        "faults": found.faults,
        "failures": found.failures,
    }


def _build(contender: Contender, on_progress: Progress) -> None:
    """In a process that does nothing else, so that what building takes isn't counted as drawing."""
    on_progress(f"{contender.subject.name}: build", None)
    with Process(contender.python(), contender.module, contender.environment) as process:
        process.ask("open", asdict(contender.brief), TIMEOUT_SECONDS)
        built = Built(**process.ask("build", asdict(contender.brief), TIMEOUT_SECONDS))
    contender.startup = Startup(build_seconds=built.seconds, build_reused=built.reused, engine_bytes=built.bytes)
    contender.ceiling_tflops = built.ceiling_tflops
    if built.parts:
        parts = {part: PartParity(psnr_db=psnr, cosine=cosine) for part, (psnr, cosine) in built.parts.items()}
        contender.parity = Parity(reference=built.reference, parts=parts, step_psnr_db=built.step_psnr_db)


def _start(contender: Contender, stack: ExitStack, sampler: Process, on_progress: Progress) -> None:
    """Import, load, draw for the first time, warm up: with the memory watched."""
    on_progress(f"{contender.subject.name}: load", None)
    contender.process = process = stack.enter_context(
        Process(contender.python(), contender.module, contender.environment)
    )
    opened = Opened(**process.ask("open", asdict(contender.brief), TIMEOUT_SECONDS))
    contender.subject = contender.subject.model_copy(update={"versions": opened.versions})
    before = _held(sampler, "watch", contender)["now"]
    loaded = Loaded(**process.ask("load", asdict(contender.brief), TIMEOUT_SECONDS))
    loading = _held(sampler, "stop", contender)
    contender.subject = contender.subject.model_copy(update={"engines": loaded.engines, "scheduler": loaded.scheduler})
    contender.startup = contender.startup.model_copy(
        update={"import_seconds": opened.seconds, "load_seconds": loaded.seconds}
    )
    on_progress(f"{contender.subject.name}: first draw and warm-up", None)
    _held(sampler, "watch", contender)
    contender.first = _draw(contender, keep=True)
    for _ in range(WARMUPS):
        contender.warmup.append(_draw(contender))
    running = _held(sampler, "stop", contender)
    if before is not None:
        contender.memory = Memory(
            before_bytes=before,
            load_peak_bytes=loading["peak"],
            loaded_bytes=loading["now"],
            run_peak_bytes=running["peak"],
            peak_bytes=running["peak"],
        )


def _held(sampler: Process, verb: str, contender: Contender) -> dict[str, Any]:
    assert contender.process is not None
    return sampler.ask(verb, {"pid": contender.process.pid}, TIMEOUT_SECONDS)


def _draw(contender: Contender, keep: bool = False) -> Draw:
    assert contender.process is not None
    wish = contender.wish if keep else replace(contender.wish, keep=None)
    before = read_counters()
    answer = contender.process.ask("draw", asdict(wish), TIMEOUT_SECONDS)
    used = joules(before, read_counters())
    drawn = Drawn(**answer)
    if keep:
        contender.pictures = drawn.pictures
    return Draw(
        text_encoder=drawn.text_encoder,
        denoiser=drawn.denoiser,
        vae_decoder=drawn.vae_decoder,
        host=drawn.total - drawn.text_encoder - sum(drawn.denoiser) - drawn.vae_decoder,
        total=drawn.total,
        joules=used,
    )


@contextmanager
def _reason(contender: Contender) -> Generator[None]:
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


def judge(draws: Sequence[Draw]) -> tuple[bool, str]:
    """Whether the time of whole draws is stable, and why: the rule of `Measurement.stability`.

    It is where there are `REPEAT` draws or more, the 95 % interval of their median is within `SPREAD` of it on
    average, and the medians of the first and second half differ by no more than `DRIFT`.
    """
    if len(draws) < REPEAT:
        return False, f"{len(draws)} draws; {REPEAT} are needed to tell"
    totals = [draw.total for draw in draws]
    found = summarize(totals)
    half = len(totals) // 2
    drift = abs(median(totals[-half:]) - median(totals[:half])) / found.median if found.median > 0 else 0.0
    stable = found.spread <= SPREAD and drift <= DRIFT
    return stable, (
        f"{len(draws)} draws; median within {found.spread:.1%} with 95 % confidence (at most {SPREAD:.0%}), halves "
        f"differ by {drift:.1%} (at most {DRIFT:.0%})"
    )


def _work(bundle: Bundle, setting: Setting) -> tuple[dict[Stage, Work] | None, tuple[str, ...]]:
    """The work of each stage, or None and why it couldn't be counted."""
    try:
        return count_work(bundle, setting), (COUNTED,)
    except LatentcError as exc:
        return None, (f"FLOP: they couldn't be counted. {exc}",)


def _row(
    contender: Contender,
    setting: Setting,
    work: dict[Stage, Work] | None,
    uncounted: tuple[str, ...],
    common: dict[str, Any],
    folder: Path,
) -> Measurement:
    stable, stability = judge(contender.draws) if contender.draws else (None, None)
    leaves_out = [*LEAVES_OUT, *uncounted, *contender.leaves_out]
    ceilings = {stage: contender.ceiling_tflops.get(part) for stage, part in STAGE_PARTS.items()}
    if work is not None:
        work = {stage: one.model_copy(update={"ceiling_tflops": ceilings.get(stage)}) for stage, one in work.items()}
    if contender.draws and contender.draws[0].joules is None:
        leaves_out.append("Energy: this machine has no counters, or they can't be read.")
    if contender.draws and contender.memory is None:
        leaves_out.append("Memory: it is read from /proc, which this system hasn't.")
    if common["machine"].gpus:
        leaves_out.append("GPU memory isn't sampled.")
    return Measurement(
        **common,
        subject=contender.subject,
        setting=setting,
        startup=contender.startup,
        first=contender.first,
        warmup=tuple(contender.warmup),
        draws=tuple(contender.draws),
        stable=stable,
        stability=stability,
        memory=contender.memory,
        work=work if contender.draws else None,
        parity=contender.parity,
        pictures=tuple(os.path.relpath(picture, folder) for picture in contender.pictures),
        error=contender.error,
        leaves_out=tuple(leaves_out),
    )


def _commit() -> str | None:
    """The commit of latentc's source, where that is a git checkout; with `-dirty` where it was changed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
