"""TensorRT and TensorRT for RTX: two libraries with one interface, nearly.

TensorRT for RTX builds engines for NVIDIA GPUs of other machines, and runs them where one is here. One engine can be
for several: `sm86+sm89`, no larger than for one. TensorRT builds for the GPU it is on, and times its kernels there;
what it timed is kept in the bundle, `engines/.timing`.

An artifact is `engine.plan`, and `memory.json`, what the builder says it will hold on the device. Networks are strongly
typed: precision is what the graph says. Free sizes get one optimization profile, of the ranges in `ranges.py`.

Device memory and copies go through the driver's own library (`cuda.py`): nothing else of CUDA has to be installed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.engine import Engine
from ..core.errors import CompileError, RuntimeMissing
from ..core.files import write_bytes
from ..core.install import install, pip
from ..core.progress import Progress
from ..core.reading import read_bounded
from ..core.recipes import Precision
from .base import MEMORY, TIMING, TOGETHER, Costs, Facts, Job, Kind, Option, Runtime, Target
from .border import border, first_line, sentence
from .cuda import capabilities, gpu_name, open_driver
from .host import HostEngine
from .ranges import bounds
from .trt_plan import LoadedPlan
from .trt_refit import WITHOUT_WEIGHTS, refitted, without_weights

PLAN = "engine.plan"
TIMING_BYTES = 1 << 28
PRECISIONS: tuple[Precision, ...] = ("f32", "f16")
LEVEL, STREAMED, WORKSPACE, GRAPH, REFIT = (
    "builder_optimization_level",
    "weight_streaming_budget_mb",
    "workspace_mb",
    "cuda_graph",
    "refit",
)
OPTIONS: dict[str, Kind] = {
    LEVEL: range(6),
    STREAMED: range(1 << 30),
    WORKSPACE: range(1, 1 << 30),
    GRAPH: bool,
    REFIT: bool,
}
"""Options, and the values that they take.

`weight_streaming_budget_mb` builds a plan whose weights need not all be on the GPU, and says how much of them may be;
`workspace_mb` is the most that a kernel may take to work in; `cuda_graph` captures a call's work and launches it whole;
`refit` builds a plan that takes other weights of the same graph, which only TensorRT itself does.
"""

ATTENTION = "IAttentionInputLayer"
ADVICE = {
    "HW-specific datatypes": "That GPU doesn't have the type: build for a newer one, or write the graph without it.",
    "FP32 GEMM is not supported": "GPUs before Ampere (sm75) multiply no f32 matrices through it: f16 for this part.",
}
"""What to do about what the builder says: of FP8 for a GPU before Ada, of f32 for Turing."""

TRY = "Try opset = 18, or f32 for this part."

TOLD = {
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+)"),
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+)"),
}
"""What the builder's log says of device memory."""

COSTS = Costs(
    per_engine=14_000_000,
    scores={"f32": 2},
    build_base=300_000_000,
    build_per_weight=3.2,
    build_seconds=2.0,
    build_seconds_per_gb=8.0,
    on_host=False,
)


@dataclass(frozen=True)
class Library:
    """Which of the two."""

    name: str
    title: str
    module: str
    """The bindings; the metapackage beside those for RTX only imports these."""
    install: str
    capabilities: tuple[str, ...]
    """Compute capabilities of the GPUs that it is for."""
    builds_elsewhere: bool
    """Whether it builds for GPUs that aren't here."""
    costs: Costs | None


RTX = Library(
    name="tensorrt-rtx",
    title="TensorRT for RTX",
    module="tensorrt_rtx_bindings",
    install=install("tensorrt-rtx"),
    capabilities=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),  # RTX 20, A100, RTX 30, 40, 50, GB10; no Hopper
    builds_elsewhere=True,
    costs=COSTS,
)
FULL = Library(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    install=f"Install it with: {pip('tensorrt')}; on a Jetson it comes with JetPack.",
    capabilities=("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121"),
    builds_elsewhere=False,
    costs=None,
)


def tensorrt_rtx() -> TensorRT:
    """The adapter to TensorRT for RTX."""
    return TensorRT(RTX)


def tensorrt() -> TensorRT:
    """The adapter to TensorRT, 10 and 11."""
    return TensorRT(FULL)


def _newest_opset(library: Library) -> int:
    """23 where the library knows attention, which its parser reads from there."""
    try:
        return 23 if hasattr(_library(library.module), ATTENTION) else 18
    except Exception:  # as in `_unfit`, which says so
        return 23


class TensorRT(Runtime):
    """The adapter to either."""

    def __init__(self, library: Library) -> None:
        self._is = library
        self.facts = Facts(
            title=library.title,
            devices=library.capabilities,
            options={name: kind for name, kind in OPTIONS.items() if name != REFIT or not library.builds_elsewhere},
            newest_opset=_newest_opset(library),
            typed=True,
            reads_bf16=False,
        )

    def missing(self, device: str) -> str | None:
        """The library that isn't installed, an unknown device, or one that isn't here; of several one is enough."""
        if reason := self._unfit(device):
            return reason
        wanted = " or ".join(device.split(TOGETHER))
        try:
            has = capabilities()
        except RuntimeMissing as exc:
            return f"There is no {wanted} here: {exc}"
        if not _chosen(device, has):
            return f"There is no GPU of {wanted} here; NVIDIA GPUs found: {', '.join(has) or 'none'}."
        return None

    def unbuildable(self, device: str) -> str | None:
        """As `missing`; for RTX, the device itself needn't be here."""
        return self._unfit(device) if self._is.builds_elsewhere else self.missing(device)

    def _unfit(self, device: str) -> str | None:
        try:
            _library(self._is.module)
        except Exception as exc:  # without what it is linked with, it raises whatever it likes
            return f"{self._is.title} isn't installed here ({first_line(exc)}). {self._is.install}"
        if not self._is_known(device):
            also = (
                ", and builds for them anywhere, also for several unlike ones, as sm86+sm89" * self._is.builds_elsewhere
            )
            has = ", ".join(self._is.capabilities)
            return f"{self._is.title} runs on NVIDIA's {has}{also}; {device} isn't among them."
        return None

    def _is_known(self, device: str) -> bool:
        each = device.split(TOGETHER)
        return set(each) <= set(self._is.capabilities) and len(each) == (
            len(set(each)) if self._is.builds_elsewhere else 1
        )

    def versions(self) -> dict[str, str]:
        """Of the library."""
        with border(RuntimeMissing, f"{self._is.title} can't be loaded", self._is.install):
            return {self._is.name: str(_library(self._is.module).__version__)}

    def device(self, device: str) -> dict[str, str]:
        """The compute capability is its name; kernels timed on one GPU are also for that one."""
        return {} if self._is.builds_elsewhere else {"gpu": gpu_name(device)}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16, everywhere: it computes in what the graph says."""
        return PRECISIONS if self._is_known(device) else ()

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Unless each call is to launch a captured one: that has one size."""
        del device
        return not options.get(GRAPH)

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """What the builder for RTX reports, and what building took; nobody has measured the other."""
        del device, options, free
        return self._is.costs

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Parse and build for the device's compute capability. Memory peaks at about three times the weights."""
        target = job.target
        if reason := self.unbuildable(target.device):
            raise RuntimeMissing(reason)
        trt, log = _library(self._is.module), _logger(self._is.module)
        log.clear()
        with ExitStack() as stack:
            stack.enter_context(border(CompileError, f"TensorRT can't build {job.part}", TRY))
            if not self._is.builds_elsewhere:  # the GPU whose context is current is the one that kernels are timed on
                stack.callback(open_driver(target.device).close)
            builder = trt.Builder(log)
            network = builder.create_network(_network_flags(trt))
            parser = trt.OnnxParser(network, log)
            if not parser.parse_from_file(str(job.graph)):
                raise CompileError(
                    f"TensorRT can't read {job.part}: {parser.get_error(0).desc()}. Try opset = 18 in the profile."
                )
            _let_decompose(trt, network)
            config = builder.create_builder_config()
            _configure(trt, config, target.options)
            if target.shape is None:
                config.add_optimization_profile(_ranges(builder, job))
            config.progress_monitor = _monitor(trt, job.part, on_progress)
            if self._is.builds_elsewhere:
                each = target.device.split(TOGETHER)
                config.num_compute_capabilities = len(each)
                for place, capability in enumerate(each):
                    config.set_compute_capability(getattr(trt.ComputeCapability, capability.upper()), place)
                plan = builder.build_serialized_network(network, config)
            else:
                plan = self._build_here(job, builder, network, config)
            if plan is None:
                advice = next((do for said, do in ADVICE.items() if said in log.worst), TRY)
                what = f"TensorRT can't build {job.part} for {target.device}"
                raise CompileError(sentence(what, log.worst or "it says no more", advice))
            (out / PLAN).write_bytes(plan)
        if self.refits(target.options):
            (out / WITHOUT_WEIGHTS).write_text(without_weights(job.graph, job.weights) + "\n", encoding="utf-8")
        (out / MEMORY).write_text(json.dumps(log.memory) + "\n", encoding="utf-8")

    def _build_here(self, job: Job, builder: Any, network: Any, config: Any) -> Any:
        """Build on the GPU that it is for, with what was timed there before."""
        device = job.target.device
        name = re.sub(r"[^\w.]+", "-", f"{self.versions()[self._is.name]} {device} {gpu_name(device)}")
        kept = job.shared / TIMING / f"{name}.cache" if job.shared else None
        timed = config.create_timing_cache(_timed(kept) if kept else b"")
        if timed is None or not config.set_timing_cache(timed, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is not None and kept is not None:
            kept.parent.mkdir(exist_ok=True)
            write_bytes(kept, bytes(config.get_timing_cache().serialize()))
        return plan

    def refits(self, options: Mapping[str, Option]) -> bool:
        """What was built with `refit`."""
        return bool(options.get(REFIT))

    def refit(self, job: Job, other: Path, out: Path) -> None:
        """On the GPU; nothing is timed again."""
        device = job.target.device
        if reason := self.missing(device):
            raise RuntimeMissing(reason)
        trt, log = _library(self._is.module), _logger(self._is.module)
        log.clear()
        with ExitStack() as stack:
            stack.enter_context(border(CompileError, f"TensorRT can't refit {job.part}", "Build it without --like."))
            if (other / WITHOUT_WEIGHTS).read_text(encoding="utf-8").strip() != without_weights(job.graph, job.weights):
                raise CompileError(f"The graph of {job.part} differs from that of {other} in more than its weights.")
            stack.callback(open_driver(device).close)
            (out / PLAN).write_bytes(refitted(trt, log, (other / PLAN).read_bytes(), job.graph))
        for name in (WITHOUT_WEIGHTS, MEMORY):
            shutil.copyfile(other / name, out / name)

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Bring the plan onto the GPU."""
        del files
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        budget = target.options.get(STREAMED)
        loaded = LoadedPlan(
            _library(self._is.module),
            _logger(self._is.module),
            artifact / PLAN,
            replace(target, device=_chosen(target.device, capabilities())),
            graphed=bool(target.options.get(GRAPH)),
            streamed=None if budget is None else int(budget) << 20,
        )
        return HostEngine(target, loaded.call, loaded.release)

    def refusal(self, artifact: Path, target: Target) -> str | None:
        """What it says, on the first GPU that is here, to an engine that was built for another; None if it takes it."""
        device = capabilities()[0]
        trt, log = _library(self._is.module), _logger(self._is.module)
        try:
            LoadedPlan(trt, log, artifact / PLAN, replace(target, device=device)).release()
        except CompileError as exc:
            return str(exc)
        return None


def _chosen(device: str, has: Sequence[str]) -> str:
    """Of the capabilities that an engine is for, the first that is here; none: empty."""
    return next((one for one in device.split(TOGETHER) if one in has), "")


def _network_flags(trt: Any) -> int:
    """Types as the graph states them, which TensorRT 10 has to be asked for."""
    explicit = str(trt.__version__).startswith("10.")
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if explicit else 0


def _configure(trt: Any, config: Any, options: Mapping[str, Option]) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)  # set by default, and f32 is f32
    if LEVEL in options:
        config.builder_optimization_level = options[LEVEL]
    if WORKSPACE in options:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options[WORKSPACE]) << 20)
    if STREAMED in options:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.get(REFIT):
        config.set_flag(trt.BuilderFlag.REFIT)


def _let_decompose(trt: Any, network: Any) -> None:
    """Let attention without a kernel of its own be computed in pieces; the parser leaves that forbidden."""
    if not hasattr(trt, ATTENTION):
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = getattr(trt, ATTENTION)
            layer.attention.decomposable = True


def _ranges(builder: Any, job: Job) -> Any:
    """The optimization profile of a part whose sizes are free."""
    profile = builder.create_optimization_profile()
    for tensor in job.target.inputs:
        profile.set_shape(tensor.name, *bounds(tensor, job.target.length))
    return profile


def _monitor(trt: Any, part: str, on_progress: Progress) -> Any:
    """Tells of the builder's phases. Its class can't be ours before the library is there."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()  # pyright: ignore[reportUnknownMemberType]
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_progress(f"{part}: compile, {phase_name.lower()}", (step + 1) / max(1, self.steps.get(phase_name, 1)))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _timed(path: Path) -> bytes:
    """What was timed before; nothing where it can't be read."""
    try:
        return read_bounded(path, TIMING_BYTES)
    except (OSError, ValueError):
        return b""


@cache
def _logger(module: str) -> Any:
    """Remembers the last error, and what is said of memory; prints nothing. The library keeps the first one it gets."""
    trt = _library(module)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()  # pyright: ignore[reportUnknownMemberType]
            self.clear()

        def clear(self) -> None:
            self.worst = ""
            self.memory: dict[str, int] = {}

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.worst = " ".join(msg.split())[:400]
            for name, pattern in TOLD.items():
                if found := pattern.search(msg):
                    self.memory[name] = int(found[1])

    return Log()


@cache
def _library(module: str) -> Any:
    return import_module(module)
