"""OpenVINO: CPUs, and Intel's GPUs and NPUs.

An artifact is `engine.blob`, as the plugin exports it, with `late.blob` for an int8 denoiser. Properties of blobs that
are not documented (2026.4.1, on a CPU):

- a blob doesn't store its precision, so it is set again at load, and read back;
- f16 is compiled into the blob's graph, which the precision property doesn't show; the key in the header does;
- a blob that is memory-mapped must stay mapped for as long as the engine exists.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ..core.engine import Engine
from ..core.errors import CompileError, ProfileError, RuntimeMissing
from ..core.graph_rules import MICROSOFT
from ..core.install import install
from ..core.limits import threads
from ..core.progress import Progress
from ..core.reading import read_plain
from ..core.recipes import RECIPES, Precision
from ..core.record import suggest
from ..core.tensors import Array
from . import quantize
from .base import MOST_THREADS, QUANTIZED, Costs, Facts, Job, Option, Quantized, Runtime, Target
from .border import ENOUGH, REBUILD, border, first_line, rebuild
from .host import HostEngine
from .late import ByTimestep
from .machine import shut
from .weights import give_back, in_memory

BLOB = "engine.blob"
LATE = "late.blob"
"""The model that computes the last calls of an int8 denoiser."""
ASK = "Check the device and its driver."
EXTRA = "openvino"

CAPABILITIES: dict[Precision, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""Precisions, and their names in a device's OPTIMIZATION_CAPABILITIES."""

INT8: dict[str, str] = {"CPU": "INT8"}
"""Kinds of devices for which models are quantized (`quantize`), and the capability that it takes."""

DEFAULTS: tuple[Precision, ...] = ("bf16", "f32")
"""What a quantized model computes in beside int8: the first that the device supports, which is OpenVINO's default."""

CHOOSERS = ("AUTO", "MULTI", "HETERO", "BATCH")
"""Virtual devices that select among devices."""

FILES = {"GPU": "dev/dri/renderD*", "NPU": "dev/accel/accel*"}
"""The devices' files on Linux, by kind."""

DRIVER_VERSIONS = ("GPU_DRIVER_VERSION", "NPU_DRIVER_VERSION", "NPU_COMPILER_VERSION")
"""Properties of devices that state what compiles for them; a CPU has none."""

LIMITS = {
    "Exceeded max size of memory": (
        "On a GPU with more memory than one allocation may have, such as an Arc, write GPU_ENABLE_LARGE_ALLOCATIONS = "
        "true under [options]; or request a smaller size or fewer images."
    )
}
"""What the GPU's plugin says where one allocation is too large, and what to do."""

DISCRETE = "DISCRETE"
"""OpenVINO's type of a GPU that is a card."""

DRIVERS = {
    "GPU": "An Intel GPU requires Intel's compute runtime (Debian and Ubuntu: apt install intel-opencl-icd).",
    "NPU": "An Intel NPU requires Intel's NPU driver (github.com/intel/linux-npu-driver).",
}

THREADS = "INFERENCE_NUM_THREADS"
COUNTS = (THREADS, "NUM_STREAMS", "COMPILATION_NUM_THREADS")
CACHE = "CPU_RUNTIME_CACHE_CAPACITY"
"""An unlisted property of the CPU: how many kernels for used sizes each engine caches."""

CACHED = 1000
"""Its default here: enough for a few sizes of a large denoiser. OpenVINO's own default is 5,000."""

AT_LOAD = frozenset(
    {
        *(THREADS, CACHE, "ENABLE_CPU_PINNING", "ENABLE_CPU_RESERVATION", "ENABLE_HYPER_THREADING", "LOG_LEVEL"),
        *("MODEL_DISTRIBUTION_POLICY", "NUM_STREAMS", "PERF_COUNT", "PERFORMANCE_HINT_NUM_REQUESTS"),
        *("SCHEDULING_CORE_TYPE", "TBB_PARTITIONER"),
    }
)
"""Properties that control scheduling and threads; they are set at load, and no blob depends on them."""

RESERVED = {
    "INFERENCE_PRECISION_HINT": "set the profile's [precision] instead",
    "DEVICE_ID": "make it part of the profile's device instead, such as GPU.1",
    "CACHE_DIR": "latentc stores engines itself",
    "CACHE_MODE": "engines contain their weights",
    "ENABLE_WEIGHTLESS": "engines contain their weights",
    "WEIGHTS_PATH": "engines contain their weights",
}
"""Properties that a profile can't set, and why."""

CPU_COSTS = Costs(
    base=200_000_000,
    per_weight=1.0,
    per_f32=1.05,  # the blob holds f32 in any precision, and the kernels hold their own copy
    per_value=1.6,
    maps=True,
    writes_f32=True,
    build_seconds=1.0,
    build_seconds_per_gb=10.0,
    flop_per_second={"f32": 0.24e12, "bf16": 0.15e12},
)


OTHERS = frozenset(
    f"{MICROSOFT}.{name}"
    for name in (
        *("Attention", "BiasAdd", "BiasGelu", "BifurcationDetector", "DequantizeLinear", "DynamicQuantizeLSTM"),
        "DynamicQuantizeMatMul",
        *("EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized"),
        *("GatherND", "Gelu", "GroupNorm", "GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits"),
        *("MultiHeadAttention", "Pad", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearLeakyRelu"),
        *("QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear"),
        *("QuickGelu", "Range", "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        "Trilu",
    )
)
"""Microsoft's operators that its ONNX frontend converts, in 2026.4.1; a test asks the installed one."""


class OpenVINO(Runtime):
    """The adapter to OpenVINO."""

    facts = Facts(
        title="OpenVINO",
        variables=("DNNL_", "ONEDNN_", "OV_"),
        revision=2,
        at_load=AT_LOAD,
        threads=THREADS,
        others=OTHERS,
        partial=frozenset({"CPU"}),
        transposes=frozenset({"CPU"}),
    )

    def devices(self) -> tuple[str, ...]:
        """Devices by OpenVINO's names: CPU, GPU, GPU.1, NPU."""
        try:
            return tuple(_core().available_devices)
        except Exception:  # a library that can't be loaded has no devices; `missing` reports why
            return ()

    def missing(self, device: str) -> str | None:
        """Report a library that can't be loaded, a missing device, and virtual devices."""
        try:
            has = tuple(_core().available_devices)
        except ImportError as exc:
            return f"OpenVINO is not installed ({first_line(exc)}). {install(EXTRA)}"
        except Exception as exc:  # a damaged installation may raise anything
            return f"OpenVINO cannot be loaded ({first_line(exc)}). {install(EXTRA)}"
        kind = device.split(".")[0].split(":")[0]
        if kind in CHOOSERS:
            return f"{device} selects a device automatically. Name one device; OpenVINO has: {', '.join(has)}."
        if device in has or any(name.split(".")[0] == device for name in has):
            try:
                _opened(device)
            except RuntimeMissing as exc:
                return str(exc)
            return None
        if kind in FILES and (reason := shut(FILES[kind])):
            return f"OpenVINO finds no {device}: {reason}"
        hint = f" {DRIVERS[kind]}" if kind in DRIVERS else ""
        return f"OpenVINO finds no {device}; devices found: {', '.join(has) or 'none'}.{hint}"

    def uncompilable(self, target: Target) -> str | None:
        """Quantizing requires NNCF."""
        return quantize.missing() if target.recipe.int8_weights else None

    def versions(self) -> dict[str, str]:
        """The library's version."""
        return {"openvino": _version()}

    def device(self, device: str) -> dict[str, str]:
        """Architecture, capabilities, versions of the driver and its compiler, and the plugin's requirements of a blob,
        or the device's model without those.
        """
        return dict(_facts(device))

    def kinds(self, device: str) -> tuple[str, ...]:
        """The name without a number, as in `GPU.1`."""
        return (device.partition(".")[0],)

    def places(self, device: str) -> dict[int, str]:
        """OpenVINO's devices of this kind; with a single one, its name has no number."""
        with border(RuntimeMissing, "OpenVINO cannot be loaded", install(EXTRA)):
            has = [one.partition(".") for one in _core().available_devices]
        return {int(number or 0): f"{kind}{dot}{number}" for kind, dot, number in has if kind == self.kinds(device)[0]}

    def model(self, device: str) -> dict[str, str]:
        """The device's full name."""
        return {"model": str(_property(device, "FULL_DEVICE_NAME"))}

    def drivers(self, device: str) -> dict[str, str]:
        """The GPU's driver, and its model: the key is that of every device of its kind."""
        if device == "CPU":
            return {}
        with suppress(RuntimeMissing):  # the device isn't here
            return super().drivers(device) | self.model(device)
        return super().drivers(device)

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """From the device's capabilities. f16 is not listed for a CPU without FP16, which would compute in bf16; models
        are quantized for CPUs only.
        """
        has = _capabilities(device)
        found: tuple[Precision, ...] = tuple(one for one, name in CAPABILITIES.items() if name in has)
        if INT8.get(device) not in has:
            return found
        quantized: tuple[Precision, ...] = tuple(one for one, recipe in RECIPES.items() if recipe.int8_weights)
        return found + quantized

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Except on an NPU, whose compiler requires fixed sizes."""
        del options
        return device.split(".")[0] != "NPU"

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """Costs on a CPU; other devices were not measured."""
        del options, free
        return CPU_COSTS if device == "CPU" else None

    def check(self, options: Mapping[str, Option], device: str | None = None) -> None:
        """Options are OpenVINO's writable properties, by their own names. Values are tried on a tiny model.

        Without the device, which knows its properties, they can't be checked, except those that are reserved.
        """
        here = self.devices() if device is None else (device,) if self.missing(device) is None else ()
        for name, value in options.items():
            if name in RESERVED:
                raise ProfileError(f"{name} cannot be set under [options]: {RESERVED[name]}.")
            holders = [one for one in here if name in _settable(one)]
            if not here:
                continue
            if not holders:
                known = sorted({key for one in here for key in _settable(one)} - RESERVED.keys())
                where = "" if device is None else f" for {device}"
                raise ProfileError(f"OpenVINO has no option {name!r}{where}. {suggest(name, known)}")
            if name in COUNTS and type(value) is int and not -2 <= value <= MOST_THREADS:
                raise ProfileError(
                    f"{name} is {value!r}; it must be {MOST_THREADS:,} or less. Correct it under [options]."
                )
            with border(ProfileError, f"OpenVINO refuses {name} = {value!r}", "Correct it under [options]."):
                _core().compile_model(_small_model(), _opened(holders[0]), {name: value})

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile, check the precision, and stream the blob to its file, without a second copy in memory."""
        self._require(job.target.device)
        how = _write(job, out / BLOB, on_progress)
        if how is not None:
            (out / QUANTIZED).write_text(how.model_dump_json() + "\n", encoding="utf-8", newline="\n")
            if how.exact_below is not None:
                _write(replace(job, target=_unquantized(job.target)), out / LATE, on_progress)

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Map the blob and set its precision again. Weights that the plugin doesn't repack stay in the file."""
        self._require(target.device)
        if LATE not in files:
            return _mapped(artifact / BLOB, target)
        below = read_plain(artifact / QUANTIZED, Quantized).exact_below
        if below is None:
            raise CompileError(f"{artifact / QUANTIZED} does not state which calls are exact. {rebuild(artifact)}")
        late = _mapped(artifact / LATE, _unquantized(target))
        try:
            return ByTimestep(_mapped(artifact / BLOB, target), late, below)
        except BaseException:
            late.close()
            raise

    def fixed(self, device: str) -> str | None:
        """On the CPU, compiling takes seconds; other devices take longer."""
        return None if device == "CPU" else f"OpenVINO compiles graph and weights together for {device}."

    def open(self, job: Job, artifact: Callable[[], Path]) -> Engine:
        """Compile as `compile` does, without writing the blob."""
        del artifact
        self._require(job.target.device)
        compiled, mapped, _ = _compiled(job)
        return _engine(compiled, mapped, mapped, job.target, job.graph)

    def _require(self, device: str) -> None:
        if reason := self.missing(device):
            raise RuntimeMissing(reason)


def _write(job: Job, path: Path, on_progress: Progress) -> Quantized | None:
    """Compile a job and write its blob; returns how it was quantized."""
    compiled, _memory, how = _compiled(job)
    on_progress(f"{job.part}: write", None)
    with (
        border(CompileError, f"{path} cannot be written", "Free space there, or choose another folder."),
        path.open("w+b") as file,
    ):
        pipe = _Pipe(file)
        compiled.export_model(pipe)
        if pipe.failure is not None:
            raise pipe.failure
    return how


def _mapped(path: Path, target: Target) -> Engine:
    """The engine of a blob."""
    with border(CompileError, f"OpenVINO cannot load {path}", rebuild(path.parent), LIMITS):
        # Private pages: the library accepts writable memory only, and never writes.
        blob = np.memmap(path, dtype=np.uint8, mode="c")
        tensor = _library().Tensor(blob, shared_memory=True)
        compiled = _core().import_model(tensor, _opened(target.device), _config(target))
    _check_precision(compiled, target, str(path))
    return _engine(compiled, (tensor, blob), [cast("mmap", blob.base)], target, path)


def _unquantized(target: Target) -> Target:
    """The target in which an int8 denoiser computes its last calls."""
    return replace(target, precision=_computes_in(target))


class _Pipe(io.BytesIO):
    """A file as a BytesIO, which `export_model` requires; a real BytesIO would hold the whole blob in memory."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.failure: OSError | None = None
        """The first failed write; the library ignores it."""

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
    """The state of one engine. The order of the fields is the order in which Python frees them."""

    def __init__(self, compiled: Any, owned: object, mapped: Sequence[mmap], target: Target) -> None:
        self.request: Any = compiled.create_infer_request()
        self.compiled: Any = compiled
        self.owned = owned
        """The memory that the compiled model refers to."""
        self.mapped = mapped
        self.called: set[tuple[tuple[str, int], ...]] = set()
        self.outputs = tuple(tensor.name for tensor in target.outputs)

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Run the engine: inputs are shared with the library for the call, outputs are copied.

        The first call of each size makes the kernels' own copies of most weights, whose pages are then given back.
        """
        with border(CompileError, "OpenVINO failed while computing", ENOUGH, LIMITS):
            self.request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            outputs = {name: self.request.get_tensor(name).data.astype(np.float32) for name in self.outputs}
        if (asked := tuple(sizes.items())) not in self.called:
            self.called.add(asked)
            give_back(self.mapped)
        return outputs

    def release(self) -> None:
        """Free everything, the mapped weights last."""
        self.request = None
        self.compiled = None
        self.mapped = ()
        self.owned = None


def _engine(compiled: Any, owned: object, mapped: Sequence[mmap], target: Target, path: Path) -> Engine:
    """The engine of a compiled model. `owned` is the memory that it refers to, with the `mapped` files."""
    _check_names(compiled, target, path)
    with border(CompileError, f"OpenVINO cannot load {path}", ENOUGH, LIMITS):
        loaded = _Loaded(compiled, owned, mapped, target)
    return HostEngine(target, loaded.call, loaded.release)


def _compiled(job: Job) -> tuple[Any, list[mmap], Quantized | None]:
    """A job's model, compiled in the target's precision, the mapped weights that it refers to, and how it was
    quantized.
    """
    target, how = job.target, None
    with border(
        CompileError, f"OpenVINO refuses {job.part} on {target.device}", "Try opset = 18 in the profile.", LIMITS
    ):
        model, mapped = _read(job)
        if target.recipe.int8_weights:
            model = _core().read_model(model) if isinstance(model, str) else model
            if target.recipe.calibrated:
                assert job.calibration is not None
                model, how = quantize.quantized(model, job.calibration, _opened_in_f32)
            else:
                model = quantize.compressed(model)
        compiled = _core().compile_model(model, _opened(target.device), _config(target))
    _check_precision(compiled, target, job.part)
    return compiled, mapped, how


def _opened_in_f32(model: Any) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function that runs a model on the CPU."""
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {port.get_any_name(): array for port, array in compiled(dict(feeds)).items()}

    return run


def _config(target: Target) -> dict[str, Any]:
    own: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if target.device == "CPU":
        own[CACHE] = CACHED
        if (limit := threads()) is not None:
            own[THREADS] = limit
    return {**own, **target.options, "INFERENCE_PRECISION_HINT": _computes_in(target)}


def _computes_in(target: Target) -> Precision:
    """The type of everything that is not int8."""
    if not target.recipe.int8_weights:
        return target.precision
    return next(one for one in DEFAULTS if CAPABILITIES[one] in _capabilities(target.device))


def _check_precision(compiled: Any, target: Target, what: str) -> None:
    """Raise `CompileError` where the device chose another precision than the requested one."""
    types, asked = _library().Type, _computes_in(target)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT")
    if taken != getattr(types, asked):
        names = {getattr(types, precision): precision for precision in CAPABILITIES}
        raise CompileError(
            f"{what} should be computed in {asked} on {target.device}, but OpenVINO chose "
            f"{names.get(taken, taken)}. Set a supported precision under [precision]."
        )


def _check_names(compiled: Any, target: Target, path: Path) -> None:
    inputs = {name for port in compiled.inputs for name in port.get_names()}
    outputs = {name for port in compiled.outputs for name in port.get_names()}
    wanted = {tensor.name for tensor in target.inputs}
    lacking = sorted((wanted - inputs) | ({tensor.name for tensor in target.outputs} - outputs))
    if lacking or len(compiled.inputs) != len(wanted):
        raise CompileError(
            f"{path} has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}, but the bundle expects the "
            f"inputs {sorted(wanted)}{f'; missing: {lacking}' if lacking else ''}. {REBUILD}"
        )


def _read(job: Job) -> tuple[Any, list[mmap]]:
    """The model to compile, and the mapped weights that it refers to, which must outlive its use."""
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
    with border(RuntimeMissing, "OpenVINO cannot be loaded", install(EXTRA)):
        return _library().get_version().split("-")[0]


def _opened(device: str) -> str:
    """The device that a name means: `GPU` is the only GPU, or the only one that is a card, whatever its number.

    To OpenVINO itself it is `GPU.0`, the integrated one where there is one. Raises `RuntimeMissing` where several fit.
    """
    several = [name for name in _core().available_devices if name.startswith(f"{device}.")]
    if len(several) < 2:
        return device
    kinds = {name: _core().get_property(name, "DEVICE_TYPE").name for name in several}
    cards = [name for name, kind in kinds.items() if kind == DISCRETE]
    if len(cards) == 1:
        return cards[0]
    found = ", ".join(f"{name} ({_core().get_property(name, 'FULL_DEVICE_NAME')})" for name in several)
    raise RuntimeMissing(f"OpenVINO has several devices called {device}: {found}. Name one as the profile's device.")


def _property(device: str, name: str) -> Any:
    with border(RuntimeMissing, f"OpenVINO does not report {name} of {device}", ASK):
        return _core().get_property(_opened(device), name)


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
    known: set[str] = {str(name) for name in _property(device, "SUPPORTED_PROPERTIES")}
    facts |= {name.lower(): str(_property(device, name)) for name in DRIVER_VERSIONS if name in known}
    with border(RuntimeMissing, f"OpenVINO cannot compile for {device}", ASK):
        compiled = _core().compile_model(_small_model(), _opened(device), {})
    if "RUNTIME_REQUIREMENTS" in compiled.get_property("SUPPORTED_PROPERTIES"):
        return facts | {"requirements": str(compiled.get_property("RUNTIME_REQUIREMENTS"))}
    return facts | {"model": str(_property(device, "FULL_DEVICE_NAME"))}


@cache
def _small_model() -> Any:
    """The smallest model that compiles, for querying a plugin."""
    operators = _library().opset15
    parameter = operators.parameter([1], np.float32)
    return _library().Model([operators.relu(parameter)], [parameter], "small")
