"""Placement of nodes in ONNX Runtime: whether a provider works at all, and which nodes it leaves to the CPU.

ONNX Runtime silently skips a provider whose libraries can't be loaded, or that doesn't support an operator: the WebGPU
provider of 1.27 computes opset 23's Attention on the CPU, between two copies. The library's own list of assignments
isn't complete, so a call is profiled, which gives the provider of each node that was run.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import CompileError, RuntimeMissing
from ..core.recipes import RECIPES, Precision
from ..core.shapes import shape_of, sizes_of
from ..core.telemetry import switch_off_events
from ..core.tensors import Array
from . import hip
from .base import Target, numbered
from .border import ENOUGH, border, first_line
from .cuda import uncaptured
from .host import Bound, zeros
from .providers import DEVICE_ID, PROVIDERS, Provider, fixed

Placement = dict[str, dict[str, int]]
"""Counts of nodes, by provider and operator."""

SILENT = 4  # errors are raised as exceptions; the library's own log would go to stderr

SMALL_BYTES = 16 * 2**10
"""The largest output of a node that may run on the CPU: sizes, indices, the phases of a timestep."""

RECORDED_CALLS = 2
"""The first call is recorded, the second replayed."""

HEAVY = re.compile("Attention|Conv|Einsum|Gemm|MatMul|Norm|Resize|Softmax")
"""In the names of operators that only the device's own provider may run, with outputs of any size. ONNX Runtime fuses
others into operators such as FusedConv and SkipLayerNormalization.
"""

ALLOWED = "allow_nodes_on_cpu"
"""The option that allows nodes on the CPU."""

TRIAL = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Mul\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08%c\x12\x04\n\x02\x08\x02'
    b"b\x0f\n\x01y\x12\n\n\x08\x08%c\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x12"
)
"""A serialized ONNX model that computes y = x * x for two numbers; the bytes of the type are left out."""

TYPES: dict[Precision, tuple[bytes, type[np.generic]]] = {"f32": (b"\x01", np.float32), "f16": (b"\x0a", np.float16)}


@cache
def fault(device: str, precision: Precision) -> str | None:
    """The library's error for a trial graph on a device; None where the device computes it."""
    code, dtype = TYPES[RECIPES[precision].graph]
    name, number = numbered(device)
    library, provider = _library(), PROVIDERS[name]
    found = np.zeros(2)
    try:
        if provider.vendor == "NVIDIA":
            with _hushed():  # it prints what it can't load; the session below raises a better error
                library.preload_dlls()  # CUDA and cuDNN from pip, which are not found otherwise
            if provider.loads:
                with suppress(Exception):  # what is missing then, the session reports
                    import_module(provider.loads[0])
            library.set_default_logger_severity(SILENT)  # else it logs each unavailable convolution algorithm
        for alone in (False, True):  # a library that can't be loaded is only reported if the CPU is allowed too
            options = library.SessionOptions()
            options.log_severity_level = SILENT
            if alone:
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            for attribute, value in provider.attributes.items():
                setattr(options, attribute, value)
            session = open_session(TRIAL % (code, code), options, name, fixed(provider, number), alone=alone)
            found = session.run(None, {"x": np.array([3, -4], dtype)})[0]
    except Exception as exc:  # the driver may raise anything
        return first_line(exc)
    return None if found.tolist() == [9, 16] else f"it computes {found.tolist()} for the squares of 3 and -4"


def open_session(
    graph: str | bytes, options: Any, device: str, settings: Mapping[str, str], *, alone: bool = False
) -> Any:
    """Open a session on a device; raises `RuntimeMissing` where ONNX Runtime fell back to another provider.

    `alone`: without the providers that run what the device's own doesn't support.
    """
    provider = PROVIDERS[device]
    given = dict(settings)
    if provider.plugin:
        options.add_provider_for_devices(plugged(device) or plugged(device, elsewhere=True), given)
        with _hushed():
            session = _library().InferenceSession(graph, options, enable_fallback=0)
        return _taken(session, provider)
    if provider.entries is not None:
        for name, value in settings.items():
            options.add_session_config_entry(provider.entries + name, value)
        given = {}
    elif provider.vendor == "AMD" and DEVICE_ID not in given:
        given[DEVICE_ID] = str(hip.number_of(provider.architecture))  # its default is often an integrated GPU
    number = int(settings[DEVICE_ID]) if DEVICE_ID in settings else None
    others = [PROVIDERS[other] for other in provider.beside if not alone]
    beside = [(other.name, fixed(other, number)) for other in others]
    asked: list[Any] = [(provider.name, given), *beside] if device != "CPU" else [provider.name]
    return _taken(_library().InferenceSession(graph, options, providers=asked, enable_fallback=0), provider)


@contextmanager
def _hushed() -> Generator[None]:
    """Discard what a library writes to standard output: QNN's simulator would print a banner among lines of JSON.

    Python's own standard output is discarded as well: in a notebook, it isn't the descriptor.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        with redirect_stdout(StringIO()):
            yield
    finally:
        sys.stdout.flush()
        if sys.platform != "win32":  # there the buffer belongs to another C library
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _taken(session: Any, provider: Provider) -> Any:
    taken = session.get_providers()
    if taken[0] != provider.name:
        raise RuntimeMissing(
            f"ONNX Runtime fell back from {provider.name} to {', '.join(taken)}, because a library of the provider "
            f"cannot be loaded. The provider requires {provider.needs}."
        )
    return session


@cache
def _register(name: str, plugin: str) -> None:
    _library().register_execution_provider_library(name, import_module(plugin).get_library_path())


@cache
def plugged(device: str, *, elsewhere: bool = False) -> list[Any]:
    """Devices that a plugin finds on this machine; with `elsewhere`, also those that it can compile for. Raises
    ImportError.
    """
    provider = PROVIDERS[device]
    assert provider.plugin is not None
    _register(provider.name, provider.plugin)
    found = [one for one in _library().get_ep_devices() if one.ep_name == provider.name]
    return found if elsewhere else [one for one in found if one.device.type.name == provider.hardware]


def compile_ahead(graph: Path, context: Path, options: Any, target: Target, settings: Mapping[str, str]) -> Placement:
    """Compile into a graph of contexts, with their code beside it; the device isn't needed, and nothing is run.

    Nodes that aren't in a context are left to the CPU.
    """
    import onnx_ir as ir

    for name, value in (("enable", "1"), ("file_path", str(context)), ("embed_mode", "0")):
        options.add_session_config_entry(f"ep.context_{name}", value)
    open_session(str(graph), options, target.device, settings)
    contexts, left, large = 0, Counter[str](), Counter[str]()
    for node in cast("Any", ir).load(context).graph:
        if node.op_type == "EPContext":
            contexts += 1
            continue
        left[node.op_type] += 1
        if HEAVY.search(node.op_type) or not all(map(_small, node.outputs)):
            large[node.op_type] += 1
    _check_left(target, large)
    placed: Placement = {PROVIDERS[target.device].name: {"EPContext": contexts}}
    placed |= {"CPUExecutionProvider": dict(left.most_common())} if left else {}
    check_own(target, placed)
    return placed


def _small(value: Any) -> bool:
    """Whether a value is known to be small enough to be computed on the CPU."""
    shape, kind = value.shape, value.dtype
    if shape is None or kind is None or not shape.is_static():
        return False
    return math.prod(shape.numpy()) * kind.itemsize <= SMALL_BYTES


def place(
    graph: Path, options: Any, target: Target, settings: Mapping[str, str], usual: Mapping[str, int]
) -> Placement:
    """Call a graph once with zeros, and return where each node was run. Providers compile during this call.

    Free sizes have their `usual` values.
    """
    feeds = zeros(target, usual)
    with tempfile.TemporaryDirectory() as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "call")
        session = open_session(str(graph), options, target.device, settings)
        session.run([tensor.name for tensor in target.outputs], feeds)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    nodes = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    large = Counter(
        node["op_name"]
        for node in nodes
        if node["provider"] == "CPUExecutionProvider"
        and (HEAVY.search(node["op_name"]) or int(node["output_size"]) > SMALL_BYTES)
    )
    _check_left(target, large)
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(node["provider"], Counter())[node["op_name"]] += 1
    placed = {name: dict(ops.most_common()) for name, ops in counts.items()}
    check_own(target, placed)
    return placed


def check_capture(part: str, graph: Path, options: Any, target: Target, settings: Mapping[str, str]) -> None:
    """Record a call of a part with zeros and replay it; raises `CompileError`, with the library's message, where that
    fails.

    A provider refuses to record a call if a node is computed elsewhere, such as on the CPU between two copies.
    """
    provider = PROVIDERS[target.device]
    assert target.shape is not None
    assert provider.memory is not None
    feeds = {tensor.name: np.zeros(target.shape[tensor.name], tensor.dtype) for tensor in target.inputs}
    assert provider.captures is not None
    with border(CompileError, f"{provider.name} cannot record a call as a graph", uncaptured(provider.captures, part)):
        call = DeviceCall(open_session(str(graph), options, target.device, settings), target, provider.memory)
        try:
            for _ in range(RECORDED_CALLS):
                call(feeds, sizes_of(target.inputs, {name: array.shape for name, array in feeds.items()}))
        finally:
            call.release()


def _check_left(target: Target, large: Counter[str]) -> None:
    """Raise `CompileError` for nodes that must not run on the CPU."""
    if large and not target.options.get(ALLOWED):
        raise CompileError(
            f"On {target.device}, ONNX Runtime leaves these nodes to the CPU: "
            f"{', '.join(f'{count} {name}' for name, count in large.most_common())}. Try opset = 18 in the profile, "
            f"or set {ALLOWED} = true under [options] to allow this."
        )


def check_own(target: Target, placed: Placement) -> None:
    """Raise `CompileError` where a device's own provider ran nothing, and for heavy operators that it left to others.

    Their graphs are not rewritten for the provider beside it (`Facts.lacks`): CUDA's f16 Attention is inaccurate.
    """
    provider = PROVIDERS[target.device]
    if not any(placed.get(provider.name, {}).values()):
        others = sorted(placed.keys() - {provider.name})
        raise CompileError(
            f"{provider.name} runs none of this part's nodes; ONNX Runtime leaves them to "
            f"{', '.join(others) or 'no provider that it reports'}. Try opset = 18 in the profile, or use "
            f"another profile for this device."
        )
    for other in provider.beside:
        ran = placed.get(PROVIDERS[other].name, {})
        if heavy := {name: count for name, count in ran.items() if HEAVY.search(name)}:
            raise CompileError(
                f"{provider.name} does not support these nodes, and ONNX Runtime leaves them to "
                f"{PROVIDERS[other].name}: {', '.join(f'{count} {name}' for name, count in heavy.items())}. Try "
                f"opset = 18 in the profile, or write device = {other!r}, for which the graphs are rewritten."
            )


class DeviceCall:
    """Calls a session with inputs and outputs in the device's memory, which is allocated again when shapes change.

    Bound inputs that are on the device since the last call are not copied again.
    """

    def __init__(self, session: Any, target: Target, memory: str) -> None:
        self._session: Any = session
        self._target, self._memory = target, (memory, target.number or 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._binding: Any = cast("Any", None)
        self._values: dict[str, Any] = {}
        self._there: dict[str, Array] = {}

    def __call__(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Copy changed inputs to the device, run, and copy the outputs back."""
        with border(CompileError, "ONNX Runtime failed while computing", ENOUGH):
            shapes = {name: array.shape for name, array in feeds.items()}
            if shapes != self._shapes:
                self._make_room(feeds, sizes)
                self._shapes = shapes
            for name, array in feeds.items():
                if isinstance(array, Bound) and self._there.get(name) is array:
                    continue
                self._there.pop(name, None)  # a copy that fails leaves a part of it
                self._values[name].update_inplace(np.ascontiguousarray(array))
                if isinstance(array, Bound):
                    self._there[name] = array
            self._session.run_with_iobinding(self._binding)
            outputs = ((tensor.name, self._values[tensor.name].numpy()) for tensor in self._target.returned)
            return {name: np.array(output, dtype=np.float32) for name, output in outputs}

    def _make_room(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
        library = _library()
        self._shapes, self._values, self._there = {}, {}, {}
        self._binding = self._session.io_binding()
        make = library.OrtValue.ortvalue_from_shape_and_type
        for name, array in feeds.items():
            self._values[name] = make(array.shape, array.dtype.type, *self._memory)
            self._binding.bind_ortvalue_input(name, self._values[name])
        for tensor in self._target.outputs:
            self._values[tensor.name] = make(shape_of(tensor.shape, sizes), np.float32, *self._memory)
            self._binding.bind_ortvalue_output(tensor.name, self._values[tensor.name])

    def release(self) -> None:
        """Free the memory."""
        self._binding = self._session = cast("Any", None)
        self._values, self._there, self._shapes = {}, {}, {}


def _library() -> Any:
    library = import_module("onnxruntime")
    switch_off_events(library)
    return library
