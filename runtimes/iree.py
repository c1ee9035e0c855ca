"""IREE: a compiler that needs no device, for AMD's GPUs, NVIDIA's, any GPU with Vulkan, and the CPU.

An artifact is `engine.vmfb`, the program, `weights.irpa`, its weights as they lie in the graph (f16 stays f16), and
`names.json`: a program's inputs and outputs have an order and no names. A graph is imported at opset 18: 3.13 doesn't
know ONNX's Attention.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.engine import Engine
from ..core.errors import CompileError, RuntimeMissing
from ..core.external import map_values, values_of
from ..core.install import install
from ..core.limits import threads
from ..core.progress import Progress
from ..core.recipes import Precision
from ..core.record import suggest
from ..core.tensors import Array
from .base import COUNTS, MEMORY, Costs, Facts, Job, Option, Runtime, Target
from .border import border, call_program, first_line, rebuild
from .cuda import capabilities
from .host import HostEngine
from .machine import machine, processor
from .order import read_names, write_names
from .weights import read_graph

PROGRAM, WEIGHTS = "engine.vmfb", "weights.irpa"
PLAIN = "plain.onnx"
"""What is imported for Vulkan; removed after."""

IMPORT = """
from iree.compiler.tools.import_onnx import __main__ as tool
asked = tool.parse_arguments()
asked.data_dir = str(asked.data_dir)
tool.main(asked)
"""
"""The importer of 3.13 passes the folder of the weights on as a `Path`, which ONNX 1.23 takes only as a string."""

SCOPE = "model"
INLINE_NUMBERS = 64
"""Weights of fewer numbers stay in the program."""

INSTALL = install("iree")
CPU, VULKAN = "CPU", "Vulkan"
THREADS = "threads"
BASELINE = "vp_android_baseline_2022"
"""The profile of Vulkan that code is made for: what GPUs of the last years have, subgroups and f16 left out."""

DRIVERS = {CPU: "local-task", VULKAN: "vulkan"}
"""Its names of what runs a device, but for AMD's GPUs and NVIDIA's."""

HIP = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1201")
"""AMD architectures that it compiles for: MI200, MI300, MI350, RX 7900, RX 7800, RX 9070."""

LARGE = 1e9
"""Stands for infinity in programs for Vulkan."""

PTX = ("sm_80", "sm_86", "sm_89", "sm_120")
"""Compute capabilities that it writes PTX for, which the driver translates for any GPU from there on. For 7.5 it
crashes, and 9.0 it doesn't know.
"""

PRECISIONS: tuple[Precision, ...] = ("f32", "f16")
OPTIONS: dict[str, tuple[str, ...]] = {"optimization_level": ("O0", "O1", "O2", "O3")}
"""Options, and the values that they take."""

COSTS = Costs(
    per_value=1.5,  # padded copies of what convolutions read, and gaps in one block for all values
    scores={"f32": 2, "f16": 2},
    stores=True,
    build_base=150_000_000,
    build_per_weight=5.0,
    build_seconds=2.5,
    build_seconds_per_gb=55.0,
    on_host=False,
)
CPU_COSTS = replace(COSTS, base=75_000_000, maps=True, on_host=True, flop_per_second={"f32": 0.015e12, "f16": 0.025e12})


class IREE(Runtime):
    """The adapter."""

    facts = Facts(
        title="IREE",
        devices=(CPU, VULKAN, *HIP, *PTX),
        options={**OPTIONS, THREADS: COUNTS},
        at_load=frozenset({THREADS}),
        threads=THREADS,
        newest_opset=18,
        typed=True,
        infers_shapes=False,
        reads_bf16=False,
    )

    def missing(self, device: str) -> str | None:
        """The runtime that isn't installed, an unknown device, or one that isn't here."""
        try:
            runtime = _runtime()
        except ImportError as exc:
            return f"IREE's runtime isn't installed here ({first_line(exc)}). {INSTALL}"
        if reason := _unknown(device):
            return reason
        if device == CPU:
            return None
        if device == VULKAN:
            try:
                found = _vulkan_gpus()
            except RuntimeMissing as exc:
                return str(exc)
            return None if found else "Vulkan finds no GPU here. Install its driver."
        if device in PTX:
            return _no_nvidia(device)
        has = [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD" and gpu.architecture]
        if device not in has:
            return f"There is no {device} here; AMD GPUs found: {', '.join(has) or 'none'}."
        try:
            runtime.get_driver("hip").query_available_devices()
        except Exception as exc:  # whatever the driver says
            return f"ROCm's driver can't be used ({first_line(exc)}). Install ROCm."
        return None

    def unbuildable(self, device: str) -> str | None:
        """The compiler that isn't installed, or an unknown device; the device itself needn't be here, but for Vulkan's,
        whose name is in the key.
        """
        try:
            import_module("iree.compiler")
        except ImportError as exc:
            return f"IREE's compiler isn't installed here ({first_line(exc)}). {INSTALL}"
        versions = {name: metadata.version(f"iree-base-{name}") for name in ("compiler", "runtime")}
        if len(set(versions.values())) > 1:
            return f"IREE's compiler is {versions['compiler']} and its runtime {versions['runtime']}. {INSTALL}"
        return self.missing(device) if device == VULKAN else _unknown(device)

    def versions(self) -> dict[str, str]:
        """Of compiler and runtime, which are released together."""
        with border(RuntimeMissing, "IREE can't be loaded", INSTALL):
            return {"iree": metadata.version("iree-base-runtime")}

    def device(self, device: str) -> dict[str, str]:
        """The GPU's architecture, which is its name; of a CPU instruction sets, and its name for those not listed."""
        if device == VULKAN:
            return {"gpu": "; ".join(str(one["name"]) for one in _vulkan_gpus())}
        if device != CPU:
            return {}
        return {"architecture": platform.machine(), "instructions": processor(), "cpu": machine().cpu}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """It computes in what the graph says: f32 and f16, but for Vulkan, whose f16 not every GPU has."""
        return () if _unknown(device) else PRECISIONS[:1] if device == VULKAN else PRECISIONS

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs:
        """What the compiler plans to hold, and what compiling took."""
        del options, free
        return CPU_COSTS if device == CPU else COSTS

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Import, and compile for the device, which needn't be here. The importer's file is removed after."""
        target = job.target
        if reason := self.unbuildable(target.device):
            raise RuntimeMissing(reason)
        write_names(job, out)
        imported, planned = out / "imported.mlir", out / "planned.json"
        on_progress(f"{job.part}: import", None)
        graph, weights = job.graph, job.weights
        if target.device == VULKAN:
            graph, weights = _plain(graph, weights, out), out
        call_program(
            f"IREE can't import {job.part}",
            *(
                sys.executable,
                "-c",
                IMPORT,
                graph,
                "--data-dir",
                weights,
                "-o",
                imported,
                "--externalize-params",
            ),
            *("--params-scope", SCOPE, "--num-elements-threshold", INLINE_NUMBERS, "--save-params-to", out / WEIGHTS),
        )
        for path in out.glob(f"{PLAIN}*"):
            path.unlink()
        on_progress(f"{job.part}: compile", None)
        level = target.options.get("optimization_level")
        flags = [*_flags(target.device), *([f"--iree-opt-level={level}"] if level else [])]
        call_program(
            f"IREE can't compile {job.part} for {target.device}",
            *(sys.executable, "-m", "iree.compiler.tools.scripts.iree_compile", imported, *flags, "-o", out / PROGRAM),
            *("--iree-scheduling-dump-statistics-format=json", f"--iree-scheduling-dump-statistics-file={planned}"),
        )
        (out / MEMORY).write_text(json.dumps(_memory(planned, out / WEIGHTS, target)) + "\n", encoding="utf-8")
        planned.unlink(missing_ok=True)
        imported.unlink()

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Map the program and its weights onto the device."""
        del files
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        loaded = _Loaded(artifact, target)
        return HostEngine(target, loaded.call, loaded.release)


@cache
def _in_threads(count: int) -> Any:
    """A device of this many threads, for all engines that ask for so many; a driver reads the flag when it is made."""
    runtime = _runtime()
    runtime.flags.parse_flags(f"--task_topology_group_count={count}")
    return import_module("iree.runtime._binding").create_hal_driver(DRIVERS[CPU]).create_default_device()


class _Loaded:
    """What one engine holds."""

    def __init__(self, artifact: Path, target: Target) -> None:
        runtime = _runtime()
        with border(CompileError, f"IREE can't load {artifact}", rebuild(artifact)):
            if target.device == CPU and (count := target.options.get(THREADS, threads())) is not None:
                config = runtime.Config(device=_in_threads(int(count)))
            else:
                config = runtime.Config(DRIVERS.get(target.device, "cuda" if target.device in PTX else "hip"))
            weights = runtime.ParameterIndex()
            if (artifact / WEIGHTS).exists():
                weights.load(str(artifact / WEIGHTS))
            parameters = runtime.create_io_parameters_module(config.vm_instance, weights.create_provider(SCOPE))
            program = runtime.VmModule.mmap(config.vm_instance, str(artifact / PROGRAM))
            context = runtime.SystemContext(config=config)
            context.add_vm_modules([parameters, program])
            (entry,) = (name for name in program.function_names if not name.startswith("__") and "$" not in name)
            self._function: Any = context.modules[program.name][entry]
            self._inputs, self._outputs = read_names(artifact)
        self._device, self._vulkan = config.device, target.device == VULKAN
        self._wanted = {tensor.name for tensor in target.outputs}

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Feeds in the graph's order, and of its outputs those that are wanted."""
        del sizes
        with border(CompileError, "IREE failed while computing", "Is there memory enough for this size?"):
            found = self._function(*(self._given(feeds[name]) for name in self._inputs))
            outputs: Any = found if type(found) in (tuple, list) else (found,)
            named = dict(zip(self._outputs, outputs, strict=True))
            return {name: self._read(named[name]) for name in self._wanted}

    def _given(self, array: Array) -> Array:
        narrow = self._vulkan and array.dtype == np.int64
        return np.ascontiguousarray(array, np.int32 if narrow else None)

    def _read(self, array: Any) -> Array:
        """An output. The library's own copy lets the driver write to numpy's memory, which lies on no page's border."""
        if not self._vulkan:
            return np.array(array.to_host(), dtype=np.float32)
        runtime, source = _runtime(), array._buffer_view
        staging = self._device.allocator.allocate_buffer(
            memory_type=int(runtime.MemoryType.HOST_LOCAL | runtime.MemoryType.DEVICE_VISIBLE),
            allowed_usage=int(runtime.BufferUsage.TRANSFER_TARGET | runtime.BufferUsage.MAPPING_SCOPED),
            allocation_size=source.get_buffer().byte_length(),
        )
        semaphore = self._device.create_semaphore(0)
        before, after = (runtime.HalFence.create_at(semaphore, moment) for moment in (0, 1))
        self._device.queue_copy(source.get_buffer(), staging, wait_semaphores=before, signal_semaphores=after)
        after.wait()
        return np.array(staging.map().asarray(source.shape, np.dtype(np.float32)), dtype=np.float32)

    def release(self) -> None:
        """Let go of the program and what it holds."""
        self._function = None


def _plain(graph: Path, weights: Path, folder: Path) -> Path:
    """A copy of a graph, in `folder`, in what every GPU with Vulkan computes alike: f32, int32, and nothing infinite.

    Compiled for the baseline, 3.13's programs read f16 and 64 bits from weights and inputs wrongly, in silence, and
    what masks attention with minus infinity outputs NaN.
    """
    with border(
        CompileError, f"{graph.name} can't be rewritten for Vulkan", f"Is there space left in {folder.parent}?"
    ):
        import onnx_ir as ir

        library = cast("Any", ir)
        model = read_graph(graph, weights)
        _rewrite(library, model)
        map_values(model)
        library.save(model, folder / PLAIN, external_data=f"{PLAIN}.data")
    return folder / PLAIN


def _rewrite(library: Any, model: Any) -> None:
    kinds = library.DataType
    for weight in model.graph.initializers.values():
        array = _finite(values_of(weight.const_value))
        if array.dtype == np.int64 and array.size >= INLINE_NUMBERS:  # smaller ones are in the program, and right
            if np.abs(array).max() > np.iinfo(np.int32).max:
                raise CompileError(f"{weight.name} holds numbers that take 64 bits, which Vulkan's baseline hasn't.")
            array = array.astype(np.int32)
            _cast(library, model.graph, weight, kinds.INT32, kinds.INT64)
        weight.const_value = library.tensor(array, name=weight.name)
        weight.dtype = weight.const_value.dtype
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            constant = library.tensor(_finite(node.attributes["value"].value.numpy()))
            node.attributes["value"] = library.AttrTensor("value", constant)
        for value in node.outputs:
            if value.dtype == kinds.FLOAT16:
                value.dtype = kinds.FLOAT
    for value in model.graph.inputs:
        if value.dtype == kinds.INT64:
            _cast(library, model.graph, value, kinds.INT32, kinds.INT64)


def _cast(library: Any, graph: Any, value: Any, given: Any, used: Any) -> None:
    """Take a value as one type, and use it as another."""
    node = library.node("Cast", [value], {"to": used.value})
    made = node.outputs[0]
    value.replace_all_uses_with(made)
    node.replace_input_with(0, value)
    made.dtype, made.shape, value.dtype = used, value.shape, given
    graph.insert_before(graph[0], node)


def _finite(array: Array) -> Array:
    """f16 as f32, and what is infinite, or as good as, near enough to it for a softmax."""
    if array.dtype.kind != "f":
        return array
    return np.clip(array.astype(np.float32), -LARGE, LARGE)


def _memory(planned: Path, weights: Path, target: Target) -> dict[str, int]:
    """What the compiler plans to hold; of free sizes it plans nothing."""
    held = {"weights_bytes": weights.stat().st_size if weights.exists() else 0}
    if target.shape is not None:
        with suppress(OSError, ValueError, KeyError):  # the statistics' form isn't promised
            counted = json.loads(planned.read_text(encoding="utf-8"))["stream-aggregate"]
            held["activation_bytes"] = counted["execution"]["transient-memory-size"]
    return held


def _vulkan_gpus() -> list[Any]:
    try:
        return _runtime().get_driver("vulkan").query_available_devices()
    except Exception as exc:  # whatever the loader says
        hint = "Install libvulkan1 (Debian's and Ubuntu's name for it) and the GPU's driver."
        if "libvulkan" in str(exc):  # IREE's words for that are nine lines
            raise RuntimeMissing(f"Vulkan's loader (libvulkan.so.1) isn't here or can't be loaded. {hint}") from exc
        raise RuntimeMissing(f"Vulkan can't be used here ({first_line(exc)}). {hint}") from exc


def _no_nvidia(device: str) -> str | None:
    """None where a GPU runs the PTX of a compute capability."""
    least = int(device.removeprefix("sm_"))
    try:
        has = capabilities()
    except RuntimeMissing as exc:
        return f"There is no GPU for the PTX of {device} here, or no driver for it: {exc}"
    if not has or int(has[0].removeprefix("sm")) < least:  # the first one is what it runs on
        return f"There is no GPU for the PTX of {device} here; NVIDIA GPUs found: {', '.join(has) or 'none'}."
    return None


def _flags(device: str) -> tuple[str, ...]:
    if device == CPU:
        local = ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu")
        return (*local, "--iree-llvmcpu-target-cpu=host")
    if device == VULKAN:
        target = ("--iree-hal-target-device=vulkan", f"--iree-vulkan-target={BASELINE}")
        return (*target, "--iree-input-demote-i64-to-i32")  # GPUs need not know 64 bits
    if device in PTX:
        return ("--iree-hal-target-device=cuda", f"--iree-cuda-target={device}")
    return ("--iree-hal-target-device=hip", f"--iree-rocm-target={device}")


def _unknown(device: str) -> str | None:
    known = [CPU, VULKAN, *HIP, *PTX]
    return None if device in known else f"latentc drives no {device} through IREE. {suggest(device, known)}"


@cache
def _runtime() -> Any:
    return import_module("iree.runtime")
