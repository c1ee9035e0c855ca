"""IREE: a compiler that needs no device, for AMD's and NVIDIA's GPUs, any GPU with Vulkan, and the CPU.

An artifact is `engine.vmfb`, the program, `weights.irpa`, its weights in the types of the graph (f16 stays f16),
`names.json`, because a program's inputs and outputs have an order but no names, and `graph.sha256`, the digest of the
graph without these weights. A program refers to its weights by name, so it runs with those of any graph of the same
digest. Graphs are imported at opset 18: 3.13 doesn't support ONNX's Attention.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
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
from . import hip, vulkan
from .base import COUNTS, MEMORY, NUMBERED, Costs, Facts, Job, Option, Runtime, Target, numbered
from .border import ENOUGH, border, call_program, first_line, rebuild
from .cuda import capabilities, gpu_name
from .host import HostEngine
from .machine import machine, processor
from .order import read_names, write_names
from .weights import WITHOUT_WEIGHTS, read_graph, weights_in, without_weights

PROGRAM, WEIGHTS = "engine.vmfb", "weights.irpa"
PLAIN = "plain.onnx"
"""The rewritten graph that is imported for Vulkan, and then removed."""

IMPORT = """
from iree.compiler.tools.import_onnx import __main__ as tool
asked = tool.parse_arguments()
asked.data_dir = str(asked.data_dir)
tool.main(asked)
"""
"""The importer of 3.13 passes the folder of the weights as a `Path`, but ONNX 1.23 accepts only a string."""

SCOPE = "model"
INLINE_NUMBERS = 64
"""Weights with fewer numbers than this stay in the program."""

EXTRA = "iree"
CPU, VULKAN = "CPU", "Vulkan"
THREADS = "threads"
BASELINE = "vp_android_baseline_2022"
"""The Vulkan profile that code is generated for: features of all recent GPUs, without subgroups and f16."""

NO_DRIVER = "install the GPU's Vulkan driver."

UUID = "GPU-"
"""What precedes a GPU's UUID in IREE's addresses."""

DRIVERS = {CPU: "local-task", VULKAN: "vulkan"}
"""IREE's names of the drivers, except those of AMD's and NVIDIA's GPUs."""

DYLIB = "IREE_HIP_DYLIB_PATH"
"""Environment variable: where IREE looks for HIP's library."""

HIP = (
    *("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1103"),
    *("gfx1150", "gfx1151", "gfx1200", "gfx1201"),
)
"""Supported AMD architectures: MI200, MI300, MI350, RX 7900, RX 7800, Radeon 780M, 890M and 8060S (Ryzen AI Max), RX
9060, RX 9070. The compiler of 3.13 doesn't know gfx1030 (RX 6800) and gfx1102 (RX 7600)."""

LARGE = 1e9
"""Stands for infinity in programs for Vulkan."""

PTX = ("sm_80", "sm_86", "sm_89", "sm_120")
"""Compute capabilities for which it generates PTX, which the driver translates for any GPU of this capability or a
newer one. It crashes for 7.5, and doesn't support 9.0.
"""

PRECISIONS: tuple[Precision, ...] = ("f32", "f16")
OPTIONS: dict[str, tuple[str, ...]] = {"optimization_level": ("O0", "O1", "O2", "O3")}
"""Options and their valid values."""

COSTS = Costs(
    per_value=1.5,  # padded copies of inputs of convolutions, and gaps in the block that holds all values
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
    """The adapter to IREE."""

    facts = Facts(
        title="IREE",
        revision=2,
        devices=(CPU, VULKAN, *HIP, *PTX),
        options={**OPTIONS, THREADS: COUNTS},
        at_load=frozenset({THREADS}),
        numbered=True,
        threads=THREADS,
        newest_opset=18,
        typed=True,
        infers_shapes=False,
        reads_bf16=False,
        inline_numbers=INLINE_NUMBERS,
        sums_in_f32=frozenset({CPU, VULKAN, *HIP, *PTX}),  # its importer follows `stash_type`
    )

    def missing(self, device: str) -> str | None:
        """Report a runtime that is not installed, and an unknown or missing device."""
        try:
            _runtime()
        except ImportError as exc:
            return f"IREE's runtime is not installed ({first_line(exc)}). {install(EXTRA)}"
        if reason := _unknown(device):
            return reason
        if device == CPU:
            return None
        if _is_vulkan(device):
            try:
                _vulkan_gpu(device)
            except RuntimeMissing as exc:
                return str(exc)
            return None
        if numbered(device)[0] in PTX:
            return _no_nvidia(device)
        name, number = numbered(device)
        has = [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD" and gpu.architecture]
        if name not in has:
            return f"This machine has no {name} GPU; AMD GPUs found: {', '.join(has) or 'none'}."
        if reason := hip.denied(name):
            return reason
        try:
            _hip_driver().query_available_devices()
            hip.number_of(name, number)
        except RuntimeMissing as exc:
            return str(exc)
        except Exception as exc:  # the driver may raise anything
            return f"ROCm's driver cannot be used ({first_line(exc)}). {hip.INSTALL}"
        return None

    def unbuildable(self, device: str) -> str | None:
        """Report a compiler that is not installed, and an unknown device. The device itself is needed only for Vulkan,
        because its name is in the key.
        """
        try:
            import_module("iree.compiler")
        except ImportError as exc:
            return f"IREE's compiler is not installed ({first_line(exc)}). {install(EXTRA)}"
        versions = {name: metadata.version(f"iree-base-{name}") for name in ("compiler", "runtime")}
        if len(set(versions.values())) > 1:
            return (
                f"IREE's compiler has version {versions['compiler']} and its runtime {versions['runtime']}; both must "
                f"be the same. {install(EXTRA)}"
            )
        return self.missing(device) if _is_vulkan(device) else _unknown(device)

    def versions(self) -> dict[str, str]:
        """The version of compiler and runtime, which are released together."""
        with border(RuntimeMissing, "IREE cannot be loaded", install(EXTRA)):
            return {"iree": metadata.version("iree-base-runtime")}

    def device(self, device: str) -> dict[str, str]:
        """Name of the opened Vulkan GPU; instruction sets and name of a CPU; empty for others, whose name is enough."""
        if _is_vulkan(device):
            return {"gpu": _vulkan_gpu(device).name}
        if device != CPU:
            return {}
        return {"architecture": platform.machine(), "instructions": processor(), "cpu": machine().cpu}

    def kinds(self, device: str) -> tuple[str, ...]:
        """The device's name, and `cuda` for NVIDIA's GPUs or `hip` for AMD's."""
        found = super().kinds(device)
        return (*found, *(kind for kind, names in (("cuda", PTX), ("hip", HIP)) if found[0] in names))

    def places(self, device: str) -> dict[int, str]:
        """Vulkan's GPUs; NVIDIA's that can run the PTX, as CUDA numbers them; AMD's of the architecture, as HIP."""
        name = numbered(device)[0]
        if name == VULKAN:
            return {number: f"{name}{NUMBERED}{number}" for number in range(len(_vulkan_gpus()))}
        if name in PTX:
            each = {number: f"{name}{NUMBERED}{number}" for number in range(len(capabilities()))}
            return {number: one for number, one in each.items() if _nvidia(one) is not None}
        if name in HIP:
            return hip.places(name)
        return {0: name}

    def model(self, device: str) -> dict[str, str]:
        """The name of an NVIDIA GPU; the kernel's name and the memory of an AMD GPU."""
        return {name: one for name, one in self.drivers(device).items() if name == "gpu"}

    def drivers(self, device: str) -> dict[str, str]:
        """The driver that translates SPIR-V or PTX when a program is loaded, and the name of the NVIDIA GPU that it is
        translated for; ROCm's versions and the model of an AMD GPU.
        """
        if _is_vulkan(device):
            return {"vulkan": _vulkan_gpu(device).driver}
        if numbered(device)[0] in HIP:
            return hip.drivers() | hip.model(*numbered(device))
        found = super().drivers(device)
        if device != CPU:
            with suppress(RuntimeMissing):  # the device isn't here
                if (place := _nvidia(device)) is not None:
                    return found | {"gpu": gpu_name(f"{capabilities()[place]}{NUMBERED}{place}")}
        return found

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16, the types of the graph; on Vulkan f32 only, because not every GPU supports f16."""
        return () if _unknown(device) else PRECISIONS[:1] if _is_vulkan(device) else PRECISIONS

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs:
        """Costs from the memory that the compiler plans, and from measured builds."""
        del options, free
        return CPU_COSTS if device == CPU else COSTS

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Import the graph and compile it for the device, which isn't needed. The imported file is then removed."""
        target = job.target
        if reason := self.unbuildable(target.place):
            raise RuntimeMissing(reason)
        write_names(job, out)
        (out / WITHOUT_WEIGHTS).write_text(_digest(job) + "\n", encoding="utf-8", newline="\n")
        imported, planned = out / "imported.mlir", out / "planned.json"
        on_progress(f"{job.part}: import", None)
        graph, weights = job.graph, job.weights
        if target.device == VULKAN:
            graph, weights = _plain(graph, weights, out), out
        call_program(
            f"IREE cannot import {job.part}",
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
            f"IREE cannot compile {job.part} for {target.device}",
            *(sys.executable, "-m", "iree.compiler.tools.scripts.iree_compile", imported, *flags, "-o", out / PROGRAM),
            *("--iree-scheduling-dump-statistics-format=json", f"--iree-scheduling-dump-statistics-file={planned}"),
        )
        (out / MEMORY).write_text(
            json.dumps(_memory(planned, out / WEIGHTS, target)) + "\n", encoding="utf-8", newline="\n"
        )
        planned.unlink(missing_ok=True)
        imported.unlink()

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load the program, and map its weights onto the device."""
        del files
        return self._loaded(artifact, target)

    def fixed(self, device: str) -> str | None:
        """On the CPU weights can be exchanged; on GPUs that was never tried."""
        return None if device == CPU else f"IREE exchanges weights on CPUs only; {device} was not tried."

    def open(self, job: Job, artifact: Callable[[], Path]) -> Engine:
        """Load the part's program with the graph's weights."""
        folder = artifact()
        with border(CompileError, f"The weights of {job.part} cannot be exchanged", rebuild(folder)):
            if (folder / WITHOUT_WEIGHTS).read_text(encoding="utf-8").strip() != _digest(job):
                raise CompileError(
                    f"The adapters change weights of {job.part} that IREE compiled into its program, those with fewer "
                    f"than {INLINE_NUMBERS} numbers. Use `latentc fuse`, and build the new bundle."
                )
            weights = weights_in(job.graph, job.weights)
            return self._loaded(
                folder, job.target, {name: one for name, one in weights.items() if one.size >= INLINE_NUMBERS}
            )

    def _loaded(self, artifact: Path, target: Target, weights: Mapping[str, Array] | None = None) -> Engine:
        if reason := self.missing(target.place):
            raise RuntimeMissing(reason)
        loaded = _Loaded(artifact, target, weights)
        return HostEngine(target, loaded.call, loaded.release)


def _digest(job: Job) -> str:
    return without_weights(job.graph, job.weights, least=INLINE_NUMBERS)


@cache
def _in_threads(count: int) -> Any:
    """A device with `count` threads, shared by all engines with that setting; a driver reads the flag when created."""
    runtime = _runtime()
    runtime.flags.parse_flags(f"--task_topology_group_count={count}")
    return import_module("iree.runtime._binding").create_hal_driver(DRIVERS[CPU]).create_default_device()


class _Loaded:
    """The state of one engine, with these weights instead of the artifact's if there are any."""

    def __init__(self, artifact: Path, target: Target, own: Mapping[str, Array] | None) -> None:
        runtime = _runtime()
        with border(CompileError, f"IREE cannot load {artifact}", rebuild(artifact)):
            if target.device == CPU and (count := target.options.get(THREADS, threads())) is not None:
                config = runtime.Config(device=_in_threads(int(count)))
            else:
                config = runtime.Config(_place(target.place))
            weights = runtime.ParameterIndex()
            if own is not None:
                for name, values in own.items():
                    weights.add_buffer(_key(name), np.ascontiguousarray(values))
            elif (artifact / WEIGHTS).exists():
                weights.load(str(artifact / WEIGHTS))
            parameters = runtime.create_io_parameters_module(config.vm_instance, weights.create_provider(SCOPE))
            code = (artifact / PROGRAM).read_bytes()  # small; the library would open the file for writing to map it
            program = runtime.VmModule.copy_buffer(config.vm_instance, code)
            context = runtime.SystemContext(config=config)
            context.add_vm_modules([parameters, program])
            (entry,) = (name for name in program.function_names if not name.startswith("__") and "$" not in name)
            self._function: Any = context.modules[program.name][entry]
            self._inputs, self._outputs = read_names(artifact)
        self._device, self._vulkan = config.device, target.device == VULKAN
        self._wanted = {tensor.name for tensor in target.outputs}

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Call the program with inputs in the graph's order; returns the target's outputs."""
        del sizes
        with border(CompileError, "IREE failed while computing", ENOUGH):
            found = self._function(*(self._given(feeds[name]) for name in self._inputs))
            outputs: Any = found if type(found) in (tuple, list) else (found,)
            named = dict(zip(self._outputs, outputs, strict=True))
            return {name: self._read(named[name]) for name in self._wanted}

    def _given(self, array: Array) -> Array:
        narrow = self._vulkan and array.dtype == np.int64
        return np.ascontiguousarray(array, np.int32 if narrow else None)

    def _read(self, array: Any) -> Array:
        """Read an output. On Vulkan IREE's own copy fails, as it lets the driver write to unaligned numpy memory."""
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
        """Free the program and its memory."""
        self._function = None


def _key(name: str) -> str:
    """The importer's name of a weight in an archive."""
    return name.replace(":", "_")


def _plain(graph: Path, weights: Path, folder: Path) -> Path:
    """Write a copy of a graph to `folder` with what every GPU with Vulkan supports: f32, int32, and no infinities.

    Compiled for the baseline, programs of 3.13 silently read f16 and 64-bit weights and inputs wrongly, and attention
    masks of minus infinity give NaN.
    """
    with border(
        CompileError, f"{graph.name} cannot be rewritten for Vulkan", f"Check that {folder.parent} has space left."
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
        if array.dtype == np.int64 and array.size >= INLINE_NUMBERS:  # smaller ones are in the program, and correct
            if np.abs(array).max() > np.iinfo(np.int32).max:
                raise CompileError(
                    f"{weight.name} contains 64-bit integers, which the Vulkan baseline does not support. Use another "
                    "device or runtime."
                )
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
    """Change a value's type to `given`, and cast it to `used` for its users."""
    node = library.node("Cast", [value], {"to": used.value})
    made = node.outputs[0]
    value.replace_all_uses_with(made)
    node.replace_input_with(0, value)
    made.dtype, made.shape, value.dtype = used, value.shape, given
    graph.insert_before(graph[0], node)


def _finite(array: Array) -> Array:
    """Convert floats to f32, and clip them to `LARGE`, which a softmax can't tell from infinity."""
    if array.dtype.kind != "f":
        return array
    return np.clip(array.astype(np.float32), -LARGE, LARGE)


def _memory(planned: Path, weights: Path, target: Target) -> dict[str, int]:
    """Memory that the compiler plans, in bytes; activations are planned for fixed sizes only."""
    held = {"weights_bytes": weights.stat().st_size if weights.exists() else 0}
    if target.shape is not None:
        with suppress(OSError, ValueError, KeyError):  # the format of the statistics isn't documented
            counted = json.loads(planned.read_text(encoding="utf-8"))["stream-aggregate"]
            held["activation_bytes"] = counted["execution"]["transient-memory-size"]
    return held


def _is_vulkan(device: str) -> bool:
    return numbered(device)[0] == VULKAN


def _vulkan_gpu(device: str) -> vulkan.VulkanGpu:
    """The GPU that `Vulkan` or `Vulkan:1` means: the one with this number, or the only one of the best kind that there
    is. To IREE itself, `vulkan` is the first one, often an integrated GPU or a CPU.

    Raises `RuntimeMissing` where there is none, or several are equally good.
    """
    found, number = _vulkan_gpus(), numbered(device)[1]
    listed = ", ".join(f"{VULKAN}{NUMBERED}{place} ({gpu.name}, {gpu.kind})" for place, gpu in enumerate(found))
    if not found:
        raise RuntimeMissing(f"Vulkan finds no GPU: {vulkan.denied() or NO_DRIVER}")
    if number is not None:
        if number >= len(found):
            raise RuntimeMissing(f"Vulkan has no GPU with number {number}; it has: {listed}.")
        return found[number]
    best = min((gpu.kind for gpu in found), key=vulkan.PREFERENCE.index)
    same = [gpu for gpu in found if gpu.kind == best]
    if len(same) > 1:
        raise RuntimeMissing(f"Vulkan has several GPUs: {listed}. Name one as the profile's device.")
    if reason := vulkan.denied():
        raise RuntimeMissing(f"Vulkan has only {same[0].name}, which computes on the CPU: {reason}")
    return same[0]


@cache
def _vulkan_gpus() -> tuple[vulkan.VulkanGpu, ...]:
    """IREE's devices, in its order, with what Vulkan states of them."""
    stated = {gpu.uuid: gpu for gpu in reversed(vulkan.gpus())}  # of two drivers the first, which IREE opens
    try:
        found = _runtime().get_driver("vulkan").query_available_devices()
    except Exception as exc:  # the loader may raise anything
        hint = "Install the loader (libvulkan1 on Debian and Ubuntu) and the GPU's driver."
        if "libvulkan" in str(exc):  # IREE's own message has nine lines
            raise RuntimeMissing(f"Vulkan's loader (libvulkan.so.1) was not found or cannot be loaded. {hint}") from exc
        raise RuntimeMissing(f"Vulkan cannot be used ({first_line(exc)}). {hint}") from exc
    named: dict[str, str] = {}
    for one in found:
        named.setdefault(str(one["path"]).removeprefix(UUID), str(one["name"]))
    return tuple(stated.get(uuid) or vulkan.VulkanGpu(name, "other", "", uuid) for uuid, name in named.items())


def _place(device: str) -> str:
    """IREE's address of a device: the driver, and which GPU of Vulkan, of an AMD architecture or for NVIDIA's code."""
    if _is_vulkan(device):
        return f"{DRIVERS[VULKAN]}://{UUID}{_vulkan_gpu(device).uuid}"
    name, number = numbered(device)
    if name in HIP:
        _hip_driver()
        return f"hip://{hip.number_of(name, number)}"
    return DRIVERS[device] if device in DRIVERS else f"cuda://{_nvidia(device)}"


@cache
def _hip_driver() -> Any:
    """The driver for AMD GPUs. IREE itself finds HIP's library only by its name without a version."""
    path = hip.shared_library()
    if path and DYLIB not in os.environ:
        _runtime().flags.parse_flags(f"--hip_dylib_path=file:{path}")
    return _runtime().get_driver("hip")


def _nvidia(device: str) -> int | None:
    """CUDA's number of the first GPU that can run the PTX of `sm_80`, or of the one with the number in `sm_80:1`; None
    where that can't. Raises `RuntimeMissing` without a driver.
    """
    (name, number), has = numbered(device), capabilities()
    least = int(name.removeprefix("sm_"))
    fits = (place for place, one in enumerate(has) if int(one.removeprefix("sm")) >= least)
    return next((place for place in fits if number in (None, place)), None)


def _no_nvidia(device: str) -> str | None:
    """Why no GPU can run the PTX of a compute capability; None where one can."""
    try:
        has = capabilities()
        if _nvidia(device) is not None:
            return None
    except RuntimeMissing as exc:
        return f"No GPU is available for {device} code: {exc}"
    name, number = numbered(device)
    which = "" if number is None else f" with number {number}"
    return f"This machine has no GPU{which} for {name} code; NVIDIA GPUs found: {', '.join(has) or 'none'}."


def _flags(device: str) -> tuple[str, ...]:
    if device == CPU:
        local = ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu")
        return (*local, "--iree-llvmcpu-target-cpu=host")
    if device == VULKAN:
        target = ("--iree-hal-target-device=vulkan", f"--iree-vulkan-target={BASELINE}")
        return (*target, "--iree-input-demote-i64-to-i32")  # not all GPUs support 64-bit integers
    if device in PTX:
        return ("--iree-hal-target-device=cuda", f"--iree-cuda-target={device}")
    return ("--iree-hal-target-device=hip", f"--iree-rocm-target={device}")


def _unknown(device: str) -> str | None:
    known, (name, number) = [CPU, VULKAN, *HIP, *PTX], numbered(device)
    if name in known and (number is None or name != CPU):
        return None
    if name in known:
        return f"IREE's CPU has no number. Write device = {name!r}."
    return f"latentc does not support device {device!r} through IREE. {suggest(device, known)}"


@cache
def _runtime() -> Any:
    return import_module("iree.runtime")
