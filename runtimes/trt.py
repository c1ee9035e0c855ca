"""TensorRT for RTX: builds engines for NVIDIA GPUs of other machines, and runs them where one is here.

An artifact is `engine.plan`, and `memory.json`, what the builder says it will hold on the device. Networks are strongly
typed: precision is what the graph says. Free sizes get one optimization profile, of the ranges in `ranges.py`.

Device memory and copies go through the driver's own library (`cuda.py`): nothing else of CUDA has to be installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import CompileError, ProfileError, RuntimeMissing
from ..core.progress import Progress
from ..core.record import suggest
from ..core.shapes import shape_of
from ..core.tensors import Array, Precision
from .base import MEMORY, Costs, Engine, Job, Option, Target
from .border import border, first_line
from .cuda import Driver, capabilities, open_driver
from .host import HostEngine
from .ranges import OUTSIDE, bounds
from .stamp import REBUILD, check_stamp, write_stamp

PLAN = "engine.plan"
INSTALL = 'Install it with: pip install ".[tensorrt-rtx]".'
CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Compute capabilities that it builds for: RTX 20, A100, RTX 30, RTX 40, RTX 50, GB10. There is none for Hopper."""

PRECISIONS: tuple[Precision, ...] = ("f32", "f16")
OPTIONS: dict[str, range] = {"builder_optimization_level": range(6)}
TOLD = {
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+)"),
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+)"),
}
"""What the builder's log says of device memory."""

COSTS = Costs(
    base=0,
    engine=14_000_000,
    scores=2,
    fuses=("f16",),
    ranged=True,
    build_base=300_000_000,
    build_per_weight=3.2,
    build_seconds=2.0,
    build_seconds_per_gb=8.0,
    on_host=False,
)


class TensorRTRTX:
    """The adapter."""

    reads_onnx = True
    newest_opset = 23
    typed = True
    infers_shapes = True

    def devices(self) -> tuple[str, ...]:
        """The NVIDIA GPUs that are here."""
        return tuple(device for device in CAPABILITIES if self.missing(device) is None)

    def missing(self, device: str) -> str | None:
        """The library that isn't installed, an unknown device, or one that isn't here."""
        if reason := self.unbuildable(device):
            return reason
        try:
            has = capabilities()
        except RuntimeMissing as exc:
            return f"There is no GPU of {device} here, or no driver for it: {exc}"
        if device not in has:
            return f"There is no GPU of {device} here; NVIDIA GPUs found: {', '.join(has) or 'none'}."
        return None

    def unbuildable(self, device: str) -> str | None:
        """The library that isn't installed, or an unknown device; the device itself needn't be here."""
        try:
            _library()
        except ImportError as exc:
            return f"TensorRT for RTX isn't installed here ({first_line(exc)}). {INSTALL}"
        if device not in CAPABILITIES:
            return f"TensorRT for RTX runs on NVIDIA's {', '.join(CAPABILITIES)}, and builds for them anywhere."
        return None

    def versions(self) -> dict[str, str]:
        """Of the library."""
        with border(RuntimeMissing, "TensorRT for RTX can't be loaded", INSTALL):
            return {"tensorrt-rtx": str(_library().__version__)}

    def device(self, device: str) -> dict[str, str]:
        """The compute capability, which is its name."""
        del device
        return {}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16, everywhere: it computes in what the graph says."""
        return PRECISIONS if device in CAPABILITIES else ()

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Always."""
        del device, options
        return True

    def costs(self, device: str) -> Costs:
        """What the builder reports, and what building took."""
        del device
        return COSTS

    def check(self, options: Mapping[str, Option]) -> None:
        """`builder_optimization_level`, 0 to 5."""
        for name, value in options.items():
            if name not in OPTIONS:
                raise ProfileError(f"TensorRT for RTX has no option {name!r} here. {suggest(name, list(OPTIONS))}")
            if value not in OPTIONS[name] or isinstance(value, bool):
                raise ProfileError(
                    f"{name} is {value!r}; it must be a whole number from 0 to {OPTIONS[name].stop - 1}."
                )

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Parse and build for the device's compute capability. Memory peaks at about three times the weights."""
        target = job.target
        if reason := self.unbuildable(target.device):
            raise RuntimeMissing(reason)
        trt, log = _library(), _logger()
        log.clear()
        with border(CompileError, f"TensorRT can't build {job.part}", "Try opset = 18, or f32 for this part."):
            builder = trt.Builder(log)
            network = builder.create_network(0)
            parser = trt.OnnxParser(network, log)
            if not parser.parse_from_file(str(job.graph)):
                raise CompileError(
                    f"TensorRT can't read {job.part}: {parser.get_error(0).desc()}. Try opset = 18 in the profile."
                )
            _let_decompose(network)
            config = builder.create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.device.upper()), 0)
            for name, value in target.options.items():
                setattr(config, name, value)
            if target.shape is None:
                config.add_optimization_profile(_ranges(builder, job))
            config.progress_monitor = _monitor(job.part, on_progress)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise CompileError(
                    f"TensorRT can't build {job.part} for {target.device}: {log.worst or 'it says no more'}. Try "
                    "opset = 18, or f32 for this part."
                )
            (out / PLAN).write_bytes(plan)
        (out / MEMORY).write_text(json.dumps(log.memory) + "\n", encoding="utf-8")
        write_stamp(out, job, self.versions(), self.device(target.device))

    def load(self, artifact: Path, target: Target) -> Engine:
        """Bring the plan onto the GPU."""
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        check_stamp(artifact, target, self.versions(), self.device(target.device))
        loaded = _Loaded(artifact / PLAN, target)
        return HostEngine(target, loaded.call, loaded.release)


class _Loaded:
    """What one engine holds: the plan, its context, and a buffer on the device for each input and output."""

    def __init__(self, path: Path, target: Target) -> None:
        log = _logger()
        log.clear()
        self._target = target
        self._buffers: dict[str, tuple[int, int]] = {}
        self._driver: Driver | None = open_driver(target.device)
        self._runtime: Any = cast("Any", None)
        self._engine: Any = cast("Any", None)
        self._context: Any = cast("Any", None)
        try:
            with border(CompileError, f"TensorRT can't load {path}", REBUILD):
                self._runtime = _library().Runtime(log)
                self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
                self._context = self._engine and self._engine.create_execution_context()
                if self._context is None:
                    raise CompileError(f"TensorRT can't load {path}: {log.worst or 'it says no more'}. {REBUILD}")
        except BaseException:
            self.release()
            raise

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Copy in, run, copy out, on one stream."""
        driver = self._driver
        assert driver is not None
        with border(CompileError, "TensorRT failed while computing", "Is there memory enough for this size?"):
            for name, array in feeds.items():
                whole = np.ascontiguousarray(array)
                if not self._context.set_input_shape(name, whole.shape):
                    raise CompileError(
                        f"{name} {list(whole.shape)} is outside what the engine was built for: {OUTSIDE}. "
                        "Draw within that."
                    )
                driver.copy_in(self._buffer(driver, name, whole.nbytes), whole)
            outputs: dict[str, Array] = {}
            for tensor in self._target.outputs:
                outputs[tensor.name] = np.empty(shape_of(tensor.shape, sizes), np.float32)
                self._buffer(driver, tensor.name, outputs[tensor.name].nbytes)
            if not self._context.execute_async_v3(driver.stream):
                raise CompileError(f"TensorRT wouldn't run: {_logger().worst or 'it says no more'}.")
            for name, array in outputs.items():
                driver.copy_out(array, self._buffers[name][0])
            driver.wait()
        return outputs

    def _buffer(self, driver: Driver, name: str, count: int) -> int:
        """Device memory for a tensor, made larger where it has to be."""
        address, held = self._buffers.get(name, (0, 0))
        if held < count:
            if address:
                del self._buffers[name]
                driver.free(address)
            address = driver.allocate(count)
            self._buffers[name] = address, count
        self._context.set_tensor_address(name, address)
        return address

    def release(self) -> None:
        """Give the device's memory back."""
        driver, self._driver = self._driver, None
        self._context = self._engine = self._runtime = None
        if driver is not None:
            try:
                while self._buffers:
                    driver.free(self._buffers.popitem()[1][0])
            finally:
                driver.close()


def _let_decompose(network: Any) -> None:
    """Let attention without a kernel of its own be computed in pieces; the parser leaves that forbidden."""
    trt = _library()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _ranges(builder: Any, job: Job) -> Any:
    """The optimization profile of a part whose sizes are free."""
    profile = builder.create_optimization_profile()
    for tensor in job.target.inputs:
        profile.set_shape(tensor.name, *bounds(job.part, tensor))
    return profile


def _monitor(part: str, on_progress: Progress) -> Any:
    """Tells of the builder's phases. Its class can't be ours before the library is there."""

    class Monitor(_library().IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()  # pyright: ignore[reportUnknownMemberType]
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_progress(f"{part}: {phase_name.lower()}", (step + 1) / max(1, self.steps.get(phase_name, 1)))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


@cache
def _logger() -> Any:
    """Remembers the last error, and what is said of memory; prints nothing. The library keeps the first one it gets."""
    trt = _library()

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
def _library() -> Any:
    """The bindings; the metapackage beside them only imports these."""
    return import_module("tensorrt_rtx_bindings")
