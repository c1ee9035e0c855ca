"""OpenVINO: CPUs, and Intel's GPUs and NPUs.

An artifact is `engine.blob`, as the plugin exports it. What was learned of it (2026.4.1, on a CPU):

- a blob forgets the precision it is to be computed in, so it is given again at load, and read back;
- f16 is written into the blob's graph when it is compiled, and the property can't tell; the header's key can;
- a blob that is mapped must stay mapped for as long as the engine lives.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..core.engine import Engine
from ..core.errors import CompileError, ProfileError, RuntimeMissing
from ..core.install import install
from ..core.limits import threads
from ..core.progress import Progress
from ..core.recipes import Precision
from ..core.record import suggest
from ..core.tensors import Array
from .base import MOST_THREADS, Costs, Job, Option, Target
from .border import REBUILD, border, first_line, rebuild
from .host import HostEngine
from .weights import in_memory

BLOB = "engine.blob"
ASK = "Are the device and its driver there?"
INSTALL = install("openvino")

CAPABILITIES: dict[Precision, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""Our precisions, and what a device calls them in OPTIMIZATION_CAPABILITIES."""

CHOOSERS = ("AUTO", "MULTI", "HETERO", "BATCH")
"""Devices that pick among devices by themselves."""

DRIVERS = {
    "GPU": "An Intel GPU needs Intel's compute runtime (Debian and Ubuntu: apt install intel-opencl-icd).",
    "NPU": "An Intel NPU needs Intel's NPU driver (github.com/intel/linux-npu-driver).",
}

THREADS = "INFERENCE_NUM_THREADS"
COUNTS = (THREADS, "NUM_STREAMS", "COMPILATION_NUM_THREADS")
CACHE = "CPU_RUNTIME_CACHE_CAPACITY"
"""Of the CPU, and in no list of its properties: how many kernels for sizes that were met are kept for each engine."""

CACHED = 1000
"""How many are, unless a profile says otherwise: those of a few sizes of a large denoiser. OpenVINO keeps 5,000."""

AT_LOAD = frozenset(
    {
        *(THREADS, CACHE, "ENABLE_CPU_PINNING", "ENABLE_CPU_RESERVATION", "ENABLE_HYPER_THREADING", "LOG_LEVEL"),
        *("MODEL_DISTRIBUTION_POLICY", "NUM_STREAMS", "PERF_COUNT", "PERFORMANCE_HINT_NUM_REQUESTS"),
        *("SCHEDULING_CORE_TYPE", "TBB_PARTITIONER"),
    }
)
"""Properties that say where and how work is shared out; they are given at load again, and no blob has them."""

RESERVED = {
    "INFERENCE_PRECISION_HINT": "it is the profile's [precision]",
    "DEVICE_ID": "it is part of the profile's device, as GPU.1",
    "CACHE_DIR": "latentc keeps engines itself",
    "CACHE_MODE": "engines hold their weights",
    "ENABLE_WEIGHTLESS": "engines hold their weights",
    "WEIGHTS_PATH": "engines hold their weights",
}
"""Properties that a profile can't set, and why."""

CPU_COSTS = Costs(
    base=200_000_000,
    per_weight=1.0,
    per_f32=1.05,  # the blob holds f32 whatever is computed in, and the kernels a copy of their own
    per_value=1.6,
    maps=True,
    writes_f32=True,
    build_seconds=1.0,
    build_seconds_per_gb=10.0,
    flop_per_second={"f32": 0.24e12, "bf16": 0.15e12},
)


class OpenVINO:
    """The adapter."""

    revision = 1
    reads_onnx = True
    newest_opset = 23
    typed = False
    infers_shapes = True
    sums_in_a_row: frozenset[str] = frozenset()
    lacks: Mapping[str, frozenset[str]] = {}
    at_load: frozenset[str] = AT_LOAD
    reads_bf16 = True

    def devices(self) -> tuple[str, ...]:
        """As OpenVINO names them: CPU, GPU, GPU.1, NPU."""
        try:
            return tuple(_core().available_devices)
        except Exception:  # a library that can't be loaded has no devices; `missing` says why
            return ()

    def missing(self, device: str) -> str | None:
        """A library that can't be loaded, a device that isn't there, or one that picks by itself."""
        try:
            has = tuple(_core().available_devices)
        except ImportError as exc:
            return f"OpenVINO isn't installed here ({first_line(exc)}). {INSTALL}"
        except Exception as exc:  # a damaged installation raises whatever it likes
            return f"OpenVINO can't be loaded ({first_line(exc)}). {INSTALL}"
        kind = device.split(".")[0].split(":")[0]
        if kind in CHOOSERS:
            return f"{device} picks a device by itself; name the one you want. OpenVINO has: {', '.join(has)}."
        if device in has or any(name.split(".")[0] == device for name in has):
            return None
        hint = f" {DRIVERS[kind]}" if kind in DRIVERS else ""
        return f"OpenVINO finds no {device} here; it has: {', '.join(has) or 'no device at all'}.{hint}"

    def unbuildable(self, device: str) -> str | None:
        """It compiles where it runs."""
        return self.missing(device)

    def versions(self) -> dict[str, str]:
        """The library's version."""
        return {"openvino": _version()}

    def device(self, device: str) -> dict[str, str]:
        """Architecture, capabilities, and what the plugin says a blob requires; where it doesn't, the model."""
        return dict(_facts(device))

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """By the device's capabilities. A CPU without FP16 computes in bf16 when f16 is asked: it isn't listed."""
        return tuple(precision for precision, name in CAPABILITIES.items() if name in _capabilities(device))

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Always."""
        del device, options
        return True

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """Of CPUs; no other device was measured."""
        del options, free
        return CPU_COSTS if device == "CPU" else None

    def threads_option(self, device: str) -> str | None:
        """Of the CPU."""
        return THREADS if device == "CPU" else None

    def check(self, options: Mapping[str, Option]) -> None:
        """Options are OpenVINO's writable properties, by their own names. Values are tried on an empty model."""
        for name, value in options.items():
            if name in RESERVED:
                raise ProfileError(f"{name} isn't set under [options]: {RESERVED[name]}.")
            holders = [device for device in self.devices() if name in _settable(device)]
            if not holders:
                known = sorted({key for device in self.devices() for key in _settable(device)} - RESERVED.keys())
                raise ProfileError(f"OpenVINO has no option {name!r}. {suggest(name, known)}")
            if name in COUNTS and type(value) is int and not -2 <= value <= MOST_THREADS:
                raise ProfileError(f"{name} is {value!r}; {MOST_THREADS:,} is the most. Correct it under [options].")
            with border(ProfileError, f"OpenVINO refuses {name} = {value!r}", "Correct it under [options]."):
                _core().compile_model(_small_model(), holders[0], {name: value})

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile, check the precision, and write the blob as the plugin produces it: there is no second copy."""
        target = job.target
        self._require(target.device)
        advice = "Try opset = 18 in the profile; if that fails too, the library's words say what it lacks."
        with border(CompileError, f"OpenVINO refuses {job.part} on {target.device}", advice):
            model, _mapped = _read(job)
            compiled = _core().compile_model(model, target.device, _config(target))
        _check_precision(compiled, target, job.part)
        on_progress(f"{job.part}: write", None)
        with (
            border(CompileError, f"{out / BLOB} can't be written", "Free space there, or choose another folder."),
            (out / BLOB).open("w+b") as file,
        ):
            pipe = _Pipe(file)
            compiled.export_model(pipe)
            if pipe.failure is not None:
                raise pipe.failure

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Map the blob and give it its precision again. Weights that the plugin doesn't repack stay in the file."""
        del files
        self._require(target.device)
        loaded = _Loaded(artifact / BLOB, target)
        return HostEngine(target, loaded.call, loaded.release)

    def _require(self, device: str) -> None:
        if reason := self.missing(device):
            raise RuntimeMissing(reason)


class _Pipe(io.BytesIO):
    """A file in the form that `export_model` insists on; a real BytesIO would hold the whole blob."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.failure: OSError | None = None
        """The library takes no notice of a piece that couldn't be written."""

    def write(self, piece: Any) -> int:
        try:
            return self._file.write(piece)
        except OSError as exc:
            self.failure = self.failure or exc
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


class _Loaded:
    """What one engine holds. The order of the fields is the order in which Python lets go of them."""

    def __init__(self, path: Path, target: Target) -> None:
        with border(CompileError, f"OpenVINO can't load {path}", rebuild(path.parent)):
            # Private pages: the library takes writable memory only, and never writes.
            blob = np.memmap(path, dtype=np.uint8, mode="c")
            tensor = _library().Tensor(blob, shared_memory=True)
            compiled = _core().import_model(tensor, target.device, _config(target))
            self.request: Any = compiled.create_infer_request()
            self.compiled: Any = compiled
            self.blob: object = (tensor, blob)
        _check_precision(compiled, target, str(path))
        _check_names(compiled, target, path)
        self.outputs = tuple(tensor.name for tensor in target.outputs)

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Inputs are lent to the library for the call; outputs are copied out of it."""
        del sizes
        with border(CompileError, "OpenVINO failed while computing", "Is there memory enough for this size?"):
            self.request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            return {name: self.request.get_tensor(name).data.astype(np.float32) for name in self.outputs}

    def release(self) -> None:
        """Let go of everything; of the mapped weights last."""
        self.request = None
        self.compiled = None
        self.blob = None


def _config(target: Target) -> dict[str, Any]:
    own: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if target.device == "CPU":
        own[CACHE] = CACHED
        if (limit := threads()) is not None:
            own[THREADS] = limit
    return {**own, **target.options, "INFERENCE_PRECISION_HINT": target.precision}


def _check_precision(compiled: Any, target: Target, what: str) -> None:
    """Raise `CompileError` where the device took another precision than it was asked for."""
    types = _library().Type
    taken = compiled.get_property("INFERENCE_PRECISION_HINT")
    if taken != getattr(types, target.precision):
        names = {getattr(types, precision): precision for precision in CAPABILITIES}
        raise CompileError(
            f"{what} was to be computed in {target.precision} on {target.device}, and OpenVINO takes "
            f"{names.get(taken, taken)}. Ask for one that it has, under [precision]."
        )


def _check_names(compiled: Any, target: Target, path: Path) -> None:
    inputs = {name for port in compiled.inputs for name in port.get_names()}
    outputs = {name for port in compiled.outputs for name in port.get_names()}
    wanted = {tensor.name for tensor in target.inputs}
    lacking = sorted((wanted - inputs) | ({tensor.name for tensor in target.outputs} - outputs))
    if lacking or len(compiled.inputs) != len(wanted):
        raise CompileError(
            f"{path} takes {sorted(inputs)} and gives {sorted(outputs)}; the bundle says {sorted(wanted)}"
            f"{f' and lacks {lacking}' if lacking else ''}. {REBUILD}"
        )


def _read(job: Job) -> tuple[Any, list[mmap]]:
    """What is compiled, and the mapped weights that it refers to: keep them for as long as it is used."""
    if job.weights == job.graph.parent:
        return str(job.graph), []
    graph, mapped = in_memory(job.graph, job.weights)
    return _core().read_model(io.BytesIO(graph)), mapped


def _library() -> Any:
    import openvino

    return openvino


@cache
def _core() -> Any:
    return _library().Core()


@cache
def _version() -> str:
    with border(RuntimeMissing, "OpenVINO can't be loaded", INSTALL):
        return _library().get_version().split("-")[0]


def _property(device: str, name: str) -> Any:
    with border(RuntimeMissing, f"OpenVINO doesn't tell {name} of {device}", ASK):
        return _core().get_property(device, name)


def _capabilities(device: str) -> tuple[str, ...]:
    return tuple(_property(device, "OPTIMIZATION_CAPABILITIES"))


@cache
def _settable(device: str) -> frozenset[str]:
    properties: dict[str, str] = _property(device, "SUPPORTED_PROPERTIES")
    hidden = {CACHE} if device == "CPU" else set[str]()
    return frozenset(hidden) | frozenset(str(name) for name, access in properties.items() if access == "RW")


@cache
def _facts(device: str) -> dict[str, str]:
    facts = {
        "architecture": str(_property(device, "DEVICE_ARCHITECTURE")),
        "capabilities": " ".join(sorted(_capabilities(device))),
    }
    with border(RuntimeMissing, f"OpenVINO can't compile for {device}", ASK):
        compiled = _core().compile_model(_small_model(), device, {})
    if "RUNTIME_REQUIREMENTS" in compiled.get_property("SUPPORTED_PROPERTIES"):
        return facts | {"requirements": str(compiled.get_property("RUNTIME_REQUIREMENTS"))}
    return facts | {"model": str(_property(device, "FULL_DEVICE_NAME"))}


@cache
def _small_model() -> Any:
    """The smallest model that compiles: what it takes to ask a plugin something."""
    operators = _library().opset15
    parameter = operators.parameter([1], np.float32)
    return _library().Model([operators.relu(parameter)], [parameter], "small")
