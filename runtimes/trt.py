"""TensorRT and TensorRT for RTX: two libraries with almost the same interface.

TensorRT for RTX builds engines without a GPU, for NVIDIA GPUs of other machines. One engine can be for several GPUs:
`sm86+sm89` is no larger than for one. TensorRT builds for the GPU of this machine, and times its kernels there; the
timing cache is stored in the bundle, in `engines/.timing`.

An artifact is `engine.plan`, and `memory.json`, the device memory that the builder reports. Networks are strongly
typed: the graph states the precision. Free sizes get one optimization profile, with the ranges in `ranges.py`.

Device memory and copies go through the driver's own library (`cuda.py`): no other part of CUDA has to be installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from ..core.engine import Engine
from ..core.errors import CompileError, RuntimeMissing
from ..core.files import write_bytes
from ..core.install import install, pip
from ..core.progress import Progress
from ..core.recipes import RECIPES, Precision
from .base import MEMORY, NUMBERED, TOGETHER, Costs, Facts, Job, Kind, Option, Runtime, Target, numbered
from .border import NO_REASON, border, first_line, sentence
from .cuda import (
    DRIVERS,
    OVERRIDDEN,
    capabilities,
    driver_version,
    forces_tf32,
    gpu_name,
    has_tf32,
    old_driver,
    open_driver,
    uncaptured,
)
from .host import HostEngine, zeros
from .ranges import bounds
from .trt_cache import compiled_digest, read_cache, timing_path
from .trt_chain import PlanChain
from .trt_log import logger
from .trt_plan import LoadedPlan
from .trt_refit import refitted
from .weights import WITHOUT_WEIGHTS, without_weights

PLAN = "engine.plan"
PRECISIONS: tuple[Precision, ...] = ("f32", "tf32", "f16")
LEVEL, STREAMED, WORKSPACE, GRAPH, REFIT, DETAILS = (
    "builder_optimization_level",
    "weight_streaming_budget_mb",
    "workspace_mb",
    "cuda_graph",
    "refit",
    "detailed_layers",
)
OPTIONS: dict[str, Kind] = {
    LEVEL: range(6),
    STREAMED: range(1 << 30),
    WORKSPACE: range(1, 1 << 30),
    GRAPH: bool,
    REFIT: bool,
    DETAILS: bool,
}
"""Options and their valid values.

`weight_streaming_budget_mb` builds a plan whose weights need not all be on the GPU, and limits those that are;
`workspace_mb` limits the workspace of a kernel; `cuda_graph` captures a call, with its copies, as a CUDA graph;
`refit` builds a plan whose weights can be replaced (TensorRT only); `detailed_layers` builds a plan that states the
types and tactics of its layers, for `latentc probe`.
"""

ATTENTION = "IAttentionInputLayer"
ADVICE = {
    "HW-specific datatypes": "This GPU does not support the type: build for a newer one, or use a graph without it.",
    "kWEIGHT_STREAMING": "Remove cuda_graph or weight_streaming_budget_mb from [options].",
    "kREQUIRE_USER_ALLOCATION": uncaptured("cuda_graph", "{part}"),
    "FP32 GEMM is not supported": "TensorRT has no f32 matrix products before Ampere (sm75): use f16 for this part.",
}
"""Advice for messages of the builder: on FP8 for a GPU before Ada, on CUDA graphs, and on f32 for Turing."""

OWN_MEMORY = "REQUIRE_USER_ALLOCATION"
"""The flag of TensorRT for RTX for an engine that allocates no memory during a call, so that it can be captured."""

UPDATE = (
    "Update TensorRT to 10.14 or later, which has an attention layer; on a Jetson, it comes with JetPack 7.2. With "
    "opset = 18, the attention scores are stored, and take 1 GB in Stable Diffusion 1.5."
)
"""How to get support for opset 23."""
INSPECTED_CALLS = 3
"""The first call is captured, the others are replayed."""

JETSON = "sm87"
"""Its memory is too small for the attention scores that opset 18 stores."""

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
    """The properties in which the two libraries differ."""

    name: str
    title: str
    module: str
    """The module of the bindings; the metapackage for RTX only imports it."""
    install: Callable[[], str]
    """Makes a sentence on how to install it."""
    capabilities: tuple[str, ...]
    """Compute capabilities of the GPUs that it supports."""
    builds_elsewhere: bool
    """Whether it builds for GPUs that this machine doesn't have."""
    costs: Costs | None


RTX = Library(
    name="tensorrt-rtx",
    title="TensorRT for RTX",
    module="tensorrt_rtx_bindings",
    install=lambda: install("tensorrt-rtx"),
    capabilities=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),  # RTX 20, A100, RTX 30, 40, 50, GB10; no Hopper
    builds_elsewhere=True,
    costs=COSTS,
)
FULL = Library(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    install=lambda: f"Install it with: {pip('tensorrt')}; on a Jetson it comes with JetPack 7.2.",
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
    """23 where the library has an attention layer, which its parser reads from opset 23 on; else 18."""
    try:
        return 23 if hasattr(_library(library.module), ATTENTION) else 18
    except Exception:  # reported by `_unfit`
        return 23


class TensorRT(Runtime):
    """The adapter to either library."""

    def __init__(self, library: Library) -> None:
        self._is = library
        self.facts = Facts(
            title=library.title,
            devices=library.capabilities,
            options={name: kind for name, kind in OPTIONS.items() if name != REFIT or not library.builds_elsewhere},
            newest_opset=_newest_opset(library),
            newer_opset=UPDATE,
            numbered=True,
            typed=True,
            reads_bf16=False,
            chains=frozenset(library.capabilities),
        )

    def missing(self, device: str) -> str | None:
        """Report a library that is not installed, and an unknown or missing device; one of several is enough."""
        if reason := self._unfit(device):
            return reason
        name, number = numbered(device)
        wanted = " or ".join(name.split(TOGETHER))
        try:
            has = capabilities()
        except RuntimeMissing as exc:
            return f"No {wanted} GPU is available: {exc}"
        if not _chosen(device, has):
            which = "" if number is None else f" with number {number}"
            return f"This machine has no {wanted} GPU{which}; NVIDIA GPUs found: {', '.join(has) or 'none'}."
        return _old_driver(self._is)

    def unbuildable(self, device: str) -> str | None:
        """The same as `missing`; TensorRT for RTX doesn't need the device."""
        return self._unfit(device) if self._is.builds_elsewhere else self.missing(device)

    def _unfit(self, device: str) -> str | None:
        try:
            _library(self._is.module)
        except Exception as exc:  # with missing dependencies it may raise anything
            return f"{self._is.title} is not installed ({first_line(exc)}). {_install(self._is)}"
        if not self._is_known(device):
            also = " and combinations such as sm86+sm89" * self._is.builds_elsewhere
            has = ", ".join(self._is.capabilities)
            return f"{self._is.title} does not support device {device!r}. Supported NVIDIA GPUs: {has}{also}."
        return None

    def _is_known(self, device: str) -> bool:
        each = numbered(device)[0].split(TOGETHER)
        return set(each) <= set(self._is.capabilities) and len(each) == (
            len(set(each)) if self._is.builds_elsewhere else 1
        )

    def extra(self, device: str) -> str:
        """The library's own."""
        del device
        return self._is.name

    def versions(self) -> dict[str, str]:
        """The library's version."""
        with border(RuntimeMissing, f"{self._is.title} cannot be loaded", self._is.install()):
            return {self._is.name: str(_library(self._is.module).__version__)}

    def device(self, device: str) -> dict[str, str]:
        """The GPU's name for TensorRT, which times kernels on it; else the compute capability (its name) is enough."""
        return {} if self._is.builds_elsewhere else {"gpu": gpu_name(device)}

    def kinds(self, device: str) -> tuple[str, ...]:
        """The compute capability, and `cuda`."""
        return *super().kinds(device), "cuda"

    def places(self, device: str) -> dict[int, str]:
        """The GPUs of this compute capability, as CUDA numbers them."""
        name = numbered(device)[0]
        fits = (number for number, one in enumerate(capabilities()) if one in name.split(TOGETHER))
        return {number: f"{name}{NUMBERED}{number}" for number in fits}

    def model(self, device: str) -> dict[str, str]:
        """The GPU's name."""
        return {"gpu": gpu_name(_chosen(device, capabilities()))}

    def drivers(self, device: str) -> dict[str, str]:
        """The GPU's driver; for TensorRT for RTX, which compiles for the GPU at load, also the opened GPU's name."""
        found = super().drivers(device)
        if self._is.builds_elsewhere:
            with suppress(RuntimeMissing):  # the device isn't here
                return found | {"gpu": gpu_name(_chosen(device, capabilities()))}
        return found

    def compiled(self, artifact: Path, device: str) -> str:
        """The code that TensorRT for RTX compiled for the plan and the GPU, in the state folder."""
        if not self._is.builds_elsewhere:
            return ""
        try:
            chosen = _chosen(device, capabilities())
            return compiled_digest(artifact / PLAN, self.versions()[self._is.name], chosen)
        except (RuntimeMissing, OSError):  # neither the GPU nor its code is here, or the plan was removed
            return ""

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16 on every GPU: it computes in the types of the graph. TF32 from Ampere on. No f32 where the
        environment forces TF32.
        """
        if not self._is_known(device):
            return ()
        each = numbered(device)[0].split(TOGETHER)
        tf32, forced = all(map(has_tf32, each)), any(map(forces_tf32, each))
        return tuple(
            one for one in PRECISIONS if (tf32 if RECIPES[one].products_in_tf32 else not (forced and one in OVERRIDDEN))
        )

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Unless `cuda_graph` is set: a captured graph has one size."""
        del device
        return not options.get(GRAPH)

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """Costs of TensorRT for RTX, from the builder's reports and measured builds; None for TensorRT."""
        del device, options, free
        return self._is.costs

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Parse and build for the device's compute capability. Memory peaks at about three times the weights."""
        target = job.target
        if reason := self.unbuildable(target.place):
            raise RuntimeMissing(reason)
        log = _logger(self._is.module)
        log.clear()
        with border(CompileError, f"TensorRT cannot build {job.part}", _advice(target)):
            if self._is.builds_elsewhere:
                self._build(job, out, log, on_progress)
            else:
                with _current(target.place):  # kernels are timed on this GPU
                    self._build(job, out, log, on_progress)
        if self.refits(target.options):
            (out / WITHOUT_WEIGHTS).write_text(
                without_weights(job.graph, job.weights) + "\n", encoding="utf-8", newline="\n"
            )
        (out / MEMORY).write_text(json.dumps(log.memory) + "\n", encoding="utf-8", newline="\n")

    def _build(self, job: Job, out: Path, log: Any, on_progress: Progress) -> None:
        """Write the plan. All objects of the library are freed at the end, while the GPU's context is current."""
        target, trt = job.target, _library(self._is.module)
        builder = trt.Builder(log)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(job.graph)):
            raise CompileError(
                f"TensorRT cannot read {job.part}: {parser.get_error(0).desc().rstrip('.')}. {_advice(target)}"
            )
        _let_decompose(trt, network)
        config = builder.create_builder_config()
        _configure(trt, config, target)
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
            known = (advice.format(part=job.part) for words, advice in ADVICE.items() if words in log.worst)
            advice = next(known, _advice(target))
            what = f"TensorRT cannot build {job.part} for {target.device}"
            raise CompileError(sentence(what, log.worst or NO_REASON, advice))
        (out / PLAN).write_bytes(plan)

    def _build_here(self, job: Job, builder: Any, network: Any, config: Any) -> Any:
        """Build on the target GPU, with its timing cache of earlier builds."""
        target = job.target
        about = self.versions()[self._is.name], target.device, gpu_name(target.place)
        kept = timing_path(job.shared, *about) if job.shared else None
        timed = config.create_timing_cache(read_cache(kept) if kept else b"")
        if timed is None or not config.set_timing_cache(timed, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is not None and kept is not None:
            kept.parent.mkdir(exist_ok=True)
            write_bytes(kept, bytes(config.get_timing_cache().serialize()))
        return plan

    def refits(self, options: Mapping[str, Option]) -> bool:
        """Engines that were built with the option `refit`."""
        return bool(options.get(REFIT))

    def refit(self, job: Job, other: Path, out: Path) -> None:
        """Refit on the GPU; no kernel is timed again."""
        device = job.target.place
        if reason := self.missing(device):
            raise RuntimeMissing(reason)
        trt, log = _library(self._is.module), _logger(self._is.module)
        log.clear()
        with border(CompileError, f"TensorRT cannot refit {job.part}", "Build it without --like."):
            if (other / WITHOUT_WEIGHTS).read_text(encoding="utf-8").strip() != without_weights(job.graph, job.weights):
                raise CompileError(f"The graph of {job.part} differs from that of {other} in more than its weights.")
            with _current(device):
                plan = refitted(trt, log, (other / PLAN).read_bytes(), job.graph)
            (out / PLAN).write_bytes(plan)
        for name in (WITHOUT_WEIGHTS, MEMORY):
            shutil.copyfile(other / name, out / name)

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load the plan onto the GPU."""
        del files
        loaded = self._open(artifact, target)
        chained = partial(PlanChain, loaded)
        return HostEngine(target, loaded.call, loaded.release, loaded.use, chained)

    def _open(self, artifact: Path, target: Target) -> LoadedPlan:
        if reason := self.missing(target.place):
            raise RuntimeMissing(reason)
        budget = target.options.get(STREAMED)
        return LoadedPlan(
            _library(self._is.module),
            _logger(self._is.module),
            artifact / PLAN,
            replace(target, device=_chosen(target.place, capabilities())),
            graphed=bool(target.options.get(GRAPH)),
            streamed=None if budget is None else int(budget) << 20,
            compiles=self._is.builds_elsewhere,
        )

    def inspect(self, artifact: Path, job: Job) -> dict[str, Any]:
        """The library's description of the layers, with types and tactics if the option `detailed_layers` is set."""
        target = job.target
        feeds = zeros(target, job.usual)
        loaded = self._open(artifact, target)
        engine = HostEngine(target, loaded.call, loaded.release, loaded.use)
        try:
            for _ in range(INSPECTED_CALLS - 1):
                engine.run(feeds)
            before = loaded.use.replays
            engine.run(feeds)
            return {"layers": loaded.layers(), "replayed": loaded.use.replays > before}
        finally:
            engine.close()


def _advice(target: Target) -> str:
    """What to try where the library refuses a graph."""
    if target.device == JETSON:
        return "Install JetPack 7.2 or later, or try f32 for this part."
    return "Try opset = 18 in the profile, or f32 for this part."


def _install(library: Library) -> str:
    """A sentence on how to install the wheels that the driver supports; those for CUDA 13 without a driver."""
    try:
        newest = driver_version()
    except RuntimeMissing:
        return library.install()
    if newest >= DRIVERS["13"][0]:
        return library.install()
    return (
        f"The driver supports CUDA {newest[0]}.{newest[1]} only. Install: {pip('build')} {library.name}-cu12; or "
        f"update the driver to {DRIVERS['13'][1]} or later. {library.install()}"
    )


def _old_driver(library: Library) -> str | None:
    """Report a driver that is too old for the installed wheels; None where it isn't, and for other installations."""
    for major in DRIVERS:
        try:
            metadata.version(f"{library.name}-cu{major}-bindings")
        except metadata.PackageNotFoundError:
            continue
        older = f", or install {library.name}-cu12 in place of {library.name}-cu{major}"
        return old_driver(f"{library.title}'s wheels", major, older * (driver_version() >= DRIVERS["12"][0]))
    return None


def _chosen(device: str, has: Sequence[str]) -> str:
    """The first capability of a target that this machine has, or that of the GPU with the target's number; empty where
    it has none.
    """
    name, number = numbered(device)
    each = name.split(TOGETHER)
    if number is None:
        return next((one for one in each if one in has), "")
    return next((f"{one}{NUMBERED}{number}" for one in has[number : number + 1] if one in each), "")


@contextmanager
def _current(device: str) -> Generator[None]:
    """Make the context of a GPU current."""
    driver = open_driver(device)
    try:
        with driver.current():
            yield
    finally:
        driver.close()


def _network_flags(trt: Any) -> int:
    """Flags for a strongly typed network, which is the default from TensorRT 11 on."""
    explicit = str(trt.__version__).startswith("10.")
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if explicit else 0


def _configure(trt: Any, config: Any, target: Target) -> None:
    options = target.options
    if not target.recipe.products_in_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default
    if LEVEL in options:
        config.builder_optimization_level = options[LEVEL]
    if WORKSPACE in options:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options[WORKSPACE]) << 20)
    if STREAMED in options:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.get(GRAPH) and hasattr(trt.BuilderFlag, OWN_MEMORY):  # required for capture
        config.set_flag(getattr(trt.BuilderFlag, OWN_MEMORY))
    if options.get(DETAILS):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.get(REFIT):
        config.set_flag(trt.BuilderFlag.REFIT)


def _let_decompose(trt: Any, network: Any) -> None:
    """Allow attention to be decomposed where it has no fused kernel; the parser doesn't allow that."""
    if not hasattr(trt, ATTENTION):
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = getattr(trt, ATTENTION)
            layer.attention.decomposable = True


def _ranges(builder: Any, job: Job) -> Any:
    """The optimization profile of a part with free sizes."""
    profile = builder.create_optimization_profile()
    for tensor in job.target.inputs:
        profile.set_shape(tensor.name, *bounds(tensor, job.target.lengths))
    return profile


def _monitor(trt: Any, part: str, on_progress: Progress) -> Any:
    """A monitor that reports the builder's phases. Its class derives from the library's, so it is defined here."""

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


@cache
def _logger(module: str) -> Any:
    return logger(_library(module))


@cache
def _library(module: str) -> Any:
    return import_module(module)
