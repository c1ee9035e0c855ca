"""ONNX Runtime.

An artifact is `engine.onnx`, the graph, and `engine.data`, its weights. For a CPU the graph is the one that ONNX
Runtime optimized: both files are memory-mapped at load, and nothing is optimized again. Weights packed for the CPU's
matrix kernels can be saved too (`session.save_external_prepacked_constant_initializers`), but 1.31.1 then crashes in a
text encoder's first call. For other devices it is the lowered graph, which their providers optimize at load, with
`cache`, the code that they compiled, and `placement.json`, where each node was run. QNN's provider compiles ahead of
time, also for devices that this machine doesn't have: its graph has a few nodes, and their code is stored beside it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.engine import Engine
from ..core.errors import BundleError, CompileError, ProfileError, RuntimeMissing
from ..core.external import map_values
from ..core.files import sha256_json
from ..core.graph_rules import MICROSOFT, check_engine_graph
from ..core.install import install
from ..core.kernels import cpu_kernels
from ..core.limits import threads
from ..core.progress import Progress
from ..core.reading import read_json
from ..core.recipes import Precision
from ..core.tensors import Array
from . import hip, nvidia, vulkan
from .base import (
    MOST_THREADS,
    NUMBERED,
    PLACEMENT,
    Costs,
    Facts,
    Job,
    Kind,
    Option,
    Runtime,
    Target,
    files_in,
    numbered,
)
from .border import ENOUGH, REBUILD, border, rebuild
from .chain import chains
from .compiled_code import CACHE, check_stored, lent, marks
from .cuda import capabilities, forces_tf32, gpu_name, has_tf32
from .host import Call, HostEngine
from .machine import machine, processor
from .placement import (
    ALLOWED,
    SILENT,
    DeviceCall,
    check_capture,
    check_own,
    compile_ahead,
    fault,
    open_session,
    place,
)
from .provider_here import EXTRA, amd_gpu, built_with, capability_of, flavours, why_not
from .provider_here import library as _library
from .providers import DEVICE_ID, PROVIDERS, offered, settings
from .replay import last_call
from .weights import read_graph

GRAPH, DATA = "engine.onnx", "engine.data"
CODE = ".bin"
"""Suffix of files of compiled code."""

WEIGHTS = "session.model_external_initializers_file_folder_path"
"""The configuration entry for the folder of a graph's external data."""

INLINE_BYTES = 1024
"""Weights below this size stay in the graph."""

LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "layout": "ORT_ENABLE_LAYOUT",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}

PATTERN = "enable_mem_pattern"
"""The option that allocates all values of a call in one block, planned from an earlier call; on by default."""

COUNTS = range(MOST_THREADS + 1)
"""Valid numbers of threads; 0 leaves the choice to the library."""

ATTRIBUTES: dict[str, Kind] = {
    "intra_op_num_threads": COUNTS,
    "inter_op_num_threads": COUNTS,
    "enable_cpu_mem_arena": bool,
    PATTERN: bool,
    "use_deterministic_compute": bool,
}
"""Options that are attributes of SessionOptions, by its own names."""

ENTRIES: dict[str, Kind] = {
    "session.intra_op.allow_spinning": bool,
    "session.inter_op.allow_spinning": bool,
    "session.intra_op_thread_affinities": str,
    "session.set_denormal_as_zero": bool,
    "session.dynamic_block_base": range(1 << 31),
    "mlas.enable_gemm_fastmath_arm64_bfloat16": bool,
}
"""Options that are entries of the session's configuration, by its own names; true and false are 1 and 0. The library
takes any string for the switches, and most are false.
"""

PLACEMENT_BYTES = 1 << 20
UNPACKED = "session.disable_prepacking"
UNFUSED = "optimization.disable_specified_optimizers"
LEVEL = "graph_optimization_level"
THREADS = "intra_op_num_threads"
AT_LOAD = frozenset(
    {
        *(THREADS, "inter_op_num_threads", "enable_cpu_mem_arena", PATTERN, "session.dynamic_block_base"),
        *("session.intra_op.allow_spinning", "session.inter_op.allow_spinning", "session.intra_op_thread_affinities"),
        *("arena_extend_strategy", "gpu_mem_limit", "migraphx_arena_extend_strategy", "migraphx_mem_limit"),
    }
)
"""Options of memory and threads, which aren't part of a graph. All others affect what is computed, and how."""

OPTIONS: dict[str, Kind] = {
    **ATTRIBUTES,
    **ENTRIES,
    **{name: kind for provider in PROVIDERS.values() for name, kind in provider.options.items()},
    LEVEL: tuple(LEVELS),
    ALLOWED: bool,
}
"""`ATTRIBUTES`, `ENTRIES` and the providers' options by ONNX Runtime's names, and `ALLOWED`."""

CPU_COSTS = Costs(
    base=110_000_000,
    per_value=1.6,
    scores={"f32": 1, "f16": 1, "bf16": 1},
    maps=True,
    build_base=100_000_000,
    build_per_weight=2.3,  # of weights that are stored narrower; 0.2 of f32
    build_seconds=1.0,
    build_seconds_per_gb=10.0,
    flop_per_second={"f32": 0.17e12},
)
"""Costs with free sizes and without `PATTERN`, as in the shipped profiles."""
HUNGRY = 2.7
"""`per_value` with `PATTERN`, and with fixed sizes."""
UNFOLDED: Mapping[str, Any] = {"stores": True, "per_weight": 1.1, "build_per_weight": 0.2}
"""Costs of a graph that isn't optimized: its weights stay as narrow as they are stored, and each is cast to f32 where
it is used.
"""
UNFUSED_VALUES = 2.2
"""`per_value` of such a graph at least: norms are several operators, so that more values are alive."""

KINDS = {"NVIDIA": ("cuda",), "AMD": ("hip",)}
"""What the GPUs of a vendor are also called."""


class ONNXRuntime(Runtime):
    """The adapter to ONNX Runtime."""

    facts = Facts(
        title="ONNX Runtime",
        revision=2,
        variables=("ORT_",),
        devices=tuple(PROVIDERS),
        options=OPTIONS,
        at_load=AT_LOAD,
        numbered=True,
        threads=THREADS,
        typed=True,
        sums_in_a_row=frozenset({"CPU"}),
        sums_in_f32=frozenset({"CPU", "CUDA", "QNN", "QNN-simulator", "WebGPU"}),  # WebGPU: by its shaders (1.27.0)
        whole_norms=frozenset({"QNN", "QNN-simulator"}),
        chains=frozenset({"CPU", "CUDA"}),  # TensorRT's provider has one recording, not one for each direction
        lacks={"CUDA": frozenset({"ArgMax", "Attention", "GroupNormalization"})},
    )

    def missing(self, device: str) -> str | None:
        """Report a missing or broken library, flavours that overwrote each other, and an unusable device."""
        return why_not(device, elsewhere=False)

    def unbuildable(self, device: str) -> str | None:
        """The same as `missing`, except for providers that compile ahead of time, without the device."""
        provider = PROVIDERS.get(device)
        return why_not(device, elsewhere=provider is not None and provider.ahead)

    def unsupported(self, device: str, operators: Iterable[str]) -> tuple[str, ...]:
        """On the CPU, operators without a kernel, by the library's own list where it is installed. Other providers may
        lack kernels too: a build refuses nodes that they leave to the CPU.
        """
        own = {one for one in operators if one.startswith(f"{MICROSOFT}.")}
        kernels = cpu_kernels() if numbered(device)[0] == "CPU" else None
        return tuple(sorted((set(operators) - own) | (own - kernels if kernels is not None else set())))

    def extra(self, device: str) -> str:
        """The provider's."""
        return PROVIDERS[numbered(device)[0]].extra

    def versions(self) -> dict[str, str]:
        """The library's version, and the flavour's name where it isn't the default one."""
        with border(RuntimeMissing, "ONNX Runtime cannot be loaded", install(EXTRA)):
            version = str(_library().__version__)
        flavour = next(iter(flavours()), "onnxruntime")
        return {"onnxruntime": version} | ({} if flavour == "onnxruntime" else {"flavour": flavour})

    def device(self, device: str) -> dict[str, str]:
        """Instruction sets of a CPU, for which the graph's layout is optimized; model and driver of an NVIDIA GPU, with
        the version of TensorRT where it compiles;
        architecture and driver of other GPUs, with ROCm's version for AMD's; the version of a plugin, with which a
        context has to be loaded again.
        """
        name, number = numbered(device)
        provider = PROVIDERS[name]
        if plugin := provider.plugin:
            return {plugin: metadata.version(plugin.replace("_", "-"))}
        if name == "CPU":
            return {"architecture": platform.machine(), "instructions": processor()}
        if provider.system == "Darwin":  # one chip is both
            return {"gpu": machine().cpu}
        if provider.vendor == "AMD":
            return {"gpu": amd_gpu(provider, number)} | hip.versions() | hip.loaded() | hip.environment()
        gpus = [gpu for gpu in machine().gpus if provider.vendor in (None, gpu.vendor)]
        if provider.vendor == "NVIDIA" and (capability := capability_of(number or 0)):
            driver = next((str(gpu.driver) for gpu in gpus), "")
            fault(device, provider.precisions[0])  # it loads the libraries
            compiler = nvidia.tensorrt() if provider.loads else {}
            opened = f"{gpu_name(f'{capability}{NUMBERED}{number or 0}')} {capability} {driver}".strip()
            return {"gpu": opened} | compiler
        found = "; ".join(f"{gpu.architecture or gpu.name} {gpu.driver}" for gpu in gpus)
        return {"gpu": found or f"unknown, of {platform.node()}"}

    def kinds(self, device: str) -> tuple[str, ...]:
        """The provider's short name, and `cuda` for NVIDIA's GPUs or `hip` for AMD's."""
        name = numbered(device)[0]
        return name, *KINDS.get(PROVIDERS[name].vendor or "", ())

    def places(self, device: str) -> dict[int, str] | None:
        """All NVIDIA GPUs, as CUDA numbers them; AMD's of the provider's architecture, as HIP does."""
        name, provider = numbered(device)[0], PROVIDERS[numbered(device)[0]]
        if provider.vendor == "NVIDIA":
            return {number: f"{name}{NUMBERED}{number}" for number in range(len(capabilities()))}
        if provider.vendor == "AMD":
            return {number: f"{name}{NUMBERED}{number}" for number in hip.numbers_of(provider.architecture)}
        return None if provider.numbered else {0: name}

    def model(self, device: str) -> dict[str, str]:
        """The kernel's name and the memory of an AMD GPU; `device` has the names of others."""
        name, number = numbered(device)
        provider = PROVIDERS[name]
        return hip.model(provider.architecture, number) if provider.vendor == "AMD" else {}

    def drivers(self, device: str) -> dict[str, str]:
        """The GPU's driver, and the model of AMD's; versions of NVIDIA's libraries, which are installed separately;
        Vulkan's drivers, or the GPU's number, where a provider makes code through Vulkan or DirectX; the system's
        version for Core ML, which is part of it.
        """
        name, number = numbered(device)
        provider = PROVIDERS[name]
        if provider.vendor == "AMD":
            return hip.drivers() | self.model(device)
        if provider.system == "Darwin":
            return {"macos": platform.mac_ver()[0]}
        if provider.vendor == "NVIDIA":
            fault(device, provider.precisions[0])  # it loads the libraries
            return super().drivers(device) | nvidia.versions(built_with())
        more = {} if number is None or provider.vendor else {DEVICE_ID: str(number)}
        return super().drivers(device) | more | (vulkan.drivers() if provider.nodes else {})

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """Precisions in which a trial graph runs on the device; for ahead-of-time compilers, those of `PROVIDERS`."""
        name, number = numbered(device)
        if name not in PROVIDERS:
            return ()
        provider = PROVIDERS[name]
        known = name == "CPU" or provider.ahead
        gpu = capability_of(number or 0) if provider.vendor == "NVIDIA" else None
        tf32, forced = (has_tf32(gpu), forces_tf32(gpu)) if gpu else (False, False)
        return tuple(one for one in offered(provider, tf32=tf32, forced=forced) if known or fault(device, one) is None)

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Unless its provider compiles each shape separately, or replays a recorded call."""
        provider = PROVIDERS.get(numbered(device)[0])
        return provider is None or (provider.free_sizes and not (provider.captures and options.get(provider.captures)))

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """Costs on a CPU; other devices were not measured."""
        if device != "CPU":
            return None
        costs = CPU_COSTS if free and not options.get(PATTERN, True) else replace(CPU_COSTS, per_value=HUNGRY)
        if options.get(LEVEL) != "off":
            return costs
        return replace(costs, per_value=max(costs.per_value, UNFUSED_VALUES), **UNFOLDED)

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Optimize and write; for devices other than the CPU, write and call once. Memory peaks at about the weights.
        A graph that is not optimized is written as it is, with its weights in the type in which they are stored.

        Raises `CompileError` where the device leaves work to the CPU.
        """
        target = job.target
        self._require(target, self.unbuildable(target.place))
        options = _building(job)
        chosen = settings(target, out / CACHE)
        advice = f"Check that {out.parent} has space left, or try opset = 18 in the profile."
        with border(CompileError, f"ONNX Runtime refuses {job.part} on {target.device}", advice):
            if target.device == "CPU" and target.options.get(LEVEL) == "off":
                on_progress(f"{job.part}: write", None)
                _write(job, out)  # ONNX Runtime would reorder it, and load casts of most weights long before their use
                written = _options(target, LEVELS["off"])
                written.add_session_config_entry(UNPACKED, "1")
                open_session(str(out / GRAPH), written, "CPU", {})  # a graph that it can't load is refused now
            elif target.device == "CPU":
                on_progress(f"{job.part}: optimize", None)
                options.optimized_model_filepath = str(out / GRAPH)
                options.add_session_config_entry(UNPACKED, "1")  # packed copies aren't written, and take as much again
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA)
                options.add_session_config_entry(
                    "session.optimized_model_external_initializers_min_size_in_bytes", str(INLINE_BYTES)
                )
                open_session(str(job.graph), options, "CPU", {})
            elif PROVIDERS[target.device].ahead:
                on_progress(f"{job.part}: compile", None)
                placed = compile_ahead(job.graph, out / GRAPH, options, target, chosen)
                (out / PLACEMENT).write_text(json.dumps(placed, indent=1) + "\n", encoding="utf-8", newline="\n")
            else:
                _write(job, out)
                if PROVIDERS[target.device].caches:
                    (out / CACHE).mkdir()
                on_progress(f"{job.part}: compile and place", None)
                records = chosen.pop(PROVIDERS[target.device].captures or "", None)  # needs tensors on the device
                placed = place(out / GRAPH, options, target, chosen, job.usual)
                (out / PLACEMENT).write_text(json.dumps(placed, indent=1) + "\n", encoding="utf-8", newline="\n")
                check_stored(out / CACHE, PROVIDERS[target.device])
                if records == PROVIDERS[target.device].switches[True]:
                    options.enable_profiling = False
                    check_capture(job.part, out / GRAPH, options, target, settings(target, out / CACHE))

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Map the graph and its weights. On the CPU the graph is not optimized again."""
        self._require(target, self.missing(target.place))
        path, on_cpu = artifact / GRAPH, target.device == "CPU"
        level = "off" if on_cpu else str(target.options.get(LEVEL, "all"))
        try:
            check_engine_graph(path, _named(files, target), rebuild(artifact))
        except BundleError as exc:
            raise CompileError(str(exc)) from exc
        if not on_cpu:
            _check_placed(artifact, target)
        provider = PROVIDERS[target.device]
        with ExitStack() as opening:
            cache = opening.enter_context(lent(artifact, files)) if provider.caches else artifact / CACHE
            before = marks(cache)
            with border(CompileError, f"ONNX Runtime cannot load {path}", rebuild(artifact)):
                options = _options(target, LEVELS[level])
                session = open_session(str(path), options, target.device, settings(target, cache))
            _check_names(session, target, path)
            if fresh := [one.name for one, mark in marks(cache).items() if before.get(one) != mark]:
                raise CompileError(
                    f"{provider.name} did not accept its compiled code of {artifact.name} and recompiled "
                    f"{', '.join(fresh)}, which is not proved. {rebuild(artifact)}"
                )
            kept = opening.pop_all()
        if memory := provider.memory:
            call = DeviceCall(session, target, memory)
            kept.callback(call.release)
            records = bool(provider.captures and target.options.get(provider.captures))
            return HostEngine(target, call, kept.close, chained=chains(session, target, memory, records=records))
        chained = chains(session, target, "cpu", records=False) if on_cpu else None
        return HostEngine(target, _on_host(session, target), kept.close, chained=chained)

    def fixed(self, device: str) -> str | None:
        """On the CPU, optimizing a graph takes little longer than loading an optimized one; providers take longer."""
        if numbered(device)[0] == "CPU":
            return None
        return f"ONNX Runtime compiles graph and weights together for {device}."

    def open(self, job: Job, artifact: Callable[[], Path]) -> Engine:
        """Optimize the graph as `compile` does, in memory."""
        del artifact
        target = job.target
        self._require(target, self.missing(target.place))
        options = _building(job)
        with border(CompileError, f"ONNX Runtime refuses {job.part} on {target.device}", ENOUGH):
            session = open_session(str(job.graph), options, target.device, {})
        _check_names(session, target, job.graph)
        chained = chains(session, target, "cpu", records=False)
        return HostEngine(target, _on_host(session, target), chained=chained)

    def inspect(self, artifact: Path, job: Job) -> dict[str, Any]:
        """The nodes that were run one by one in the last call, by provider and operator; none where it was replayed."""
        target = job.target
        self._require(target, self.missing(target.place))
        level = "off" if target.device == "CPU" else str(target.options.get(LEVEL, "all"))
        with (
            lent(artifact, files_in(artifact)) as cache,
            border(CompileError, f"ONNX Runtime cannot profile {artifact / GRAPH}", rebuild(artifact)),
        ):
            options, chosen = _options(target, LEVELS[level]), settings(target, cache)
            nodes = last_call(artifact / GRAPH, options, target, chosen, job.usual)
        return {"nodes_of_last_call": nodes, "replayed": not nodes}

    def _require(self, target: Target, reason: str | None) -> None:
        if reason:
            raise RuntimeMissing(reason)
        if target.precision not in self.precisions(target.place):
            has = ", ".join(self.precisions(target.place))
            raise CompileError(
                f"ONNX Runtime does not compute in {target.precision} on {target.device}; it supports: {has}. "
                "Set one of them under [precision]."
            )


def _building(job: Job) -> Any:
    """Options of the session that optimizes a job's graph."""
    target = job.target
    with border(ProfileError, f"ONNX Runtime refuses the options of {job.part}", "Correct them under [options]."):
        options = _options(target, LEVELS[str(target.options.get(LEVEL, "all"))])
    in_place = target.device == "CPU" or PROVIDERS[target.device].ahead
    if in_place and job.weights != job.graph.parent:  # for others the weights are written beside the graph
        options.add_session_config_entry(WEIGHTS, str(job.weights))
    return options


def _on_host(session: Any, target: Target) -> Call:
    """A session's call with tensors in the host's memory."""
    names = [tensor.name for tensor in target.returned]

    def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        del sizes
        with border(CompileError, "ONNX Runtime failed while computing", ENOUGH):
            outputs: list[Array] = session.run(names, dict(feeds))
        return {name: output.astype(np.float32, copy=False) for name, output in zip(names, outputs, strict=True)}

    return call


def _check_placed(artifact: Path, target: Target) -> None:
    """Raise `CompileError` for an engine that was built before placements were refused as they are now."""
    advice = rebuild(artifact)
    placed = read_json(artifact / PLACEMENT, PLACEMENT_BYTES, CompileError, advice)
    with border(CompileError, f"{artifact / PLACEMENT} is not a list of nodes by provider", advice):
        try:
            check_own(target, placed)
        except CompileError as exc:
            raise CompileError(f"{exc} {advice}") from exc


def _write(job: Job, out: Path) -> None:
    """Write a graph, with its weights in one file beside it.

    Core ML's provider caches compiled code by the graph's path, which changes, unless the graph states a key.
    """
    import onnx_ir as ir

    library = cast("Any", ir)
    model = read_graph(job.graph, job.weights)
    shape = None if job.target.shape is None else {name: list(sides) for name, sides in job.target.shape.items()}
    key = sha256_json([job.digest, job.target.precision, shape])
    model.metadata_props["COREML_CACHE_KEY"] = key[:40]
    map_values(model)
    library.save(model, out / GRAPH, external_data=DATA, size_threshold_bytes=INLINE_BYTES)


def _named(files: Mapping[str, int], target: Target) -> dict[str, int]:
    """The files of an artifact that its graph may refer to: weights, and code that was compiled ahead of time."""
    ahead = PROVIDERS[target.device].ahead
    return {name: size for name, size in files.items() if name == DATA or (ahead and name.endswith(CODE))}


def _options(target: Target, level: str) -> Any:
    library = _library()
    options = library.SessionOptions()
    options.log_severity_level = SILENT
    options.graph_optimization_level = getattr(library.GraphOptimizationLevel, level)
    if target.device == "CPU" and (limit := threads()) is not None:
        setattr(options, THREADS, limit)
    if target.device == "CPU" and target.options.get(LEVEL) == "off":
        # In the order of the graph, each weight is cast where it is used; by default, many are cast before that.
        options.execution_order = library.ExecutionOrder.PRIORITY_BASED
    for name, value in PROVIDERS[target.device].attributes.items():
        setattr(options, name, value)
    if unfused := PROVIDERS[target.device].unfused.get(target.precision):
        options.add_session_config_entry(UNFUSED, unfused)
    for name, value in target.options.items():
        if name in ATTRIBUTES:
            setattr(options, name, value)
        elif name in ENTRIES:
            options.add_session_config_entry(name, str(int(value)) if isinstance(value, bool) else str(value))
    return options


def _check_names(session: Any, target: Target, path: Path) -> None:
    inputs = {tensor.name for tensor in session.get_inputs()}
    outputs = {tensor.name for tensor in session.get_outputs()}
    wanted = {tensor.name for tensor in target.inputs}
    if inputs != wanted or not {tensor.name for tensor in target.outputs} <= outputs:
        raise CompileError(
            f"{path} has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}, but the bundle expects "
            f"{sorted(wanted)} and {[tensor.name for tensor in target.outputs]}. {REBUILD}"
        )
