"""Where ONNX Runtime computes what: whether a provider works at all, and which nodes it leaves to the CPU.

A provider whose libraries can't be loaded, or that doesn't know an operator, is passed over in silence: the WebGPU
provider of 1.27 computes opset 23's Attention on the CPU, between two copies. The library's own list of assignments
isn't whole, so a call is profiled: that names the provider of each node that was run.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import CompileError, RuntimeMissing
from ..core.recipes import Precision
from ..core.shapes import shape_of, sizes_of
from ..core.telemetry import switch_off_events
from ..core.tensors import Array
from .base import Target
from .border import border, first_line
from .host import Bound
from .providers import PROVIDERS, Provider

Placement = dict[str, dict[str, int]]
"""Nodes by provider and operator."""

SILENT = 4  # errors come as exceptions; the library's own log goes to stderr

SMALL_BYTES = 16 * 2**10
"""What a node on the CPU may give: sizes, indices, a timestep's phases."""

RECORDED_CALLS = 2
"""The first is recorded, the second replayed."""

HEAVY = frozenset(
    {
        *("Attention", "Conv", "ConvTranspose", "Gemm", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "MatMul", "Resize", "Softmax"),
    }
)
"""Operators that have no business on the CPU, however little they give."""

ALLOWED = "allow_nodes_on_cpu"
"""The option with which nodes may stay on the CPU."""

TRIAL = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Mul\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08%c\x12\x04\n\x02\x08\x02'
    b"b\x0f\n\x01y\x12\n\n\x08\x08%c\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x12"
)
"""An ONNX model, y = x * x of two numbers, but for its type."""

TYPES: dict[Precision, tuple[bytes, type[np.generic]]] = {"f32": (b"\x01", np.float32), "f16": (b"\x0a", np.float16)}


@cache
def fault(device: str, precision: Precision) -> str | None:
    """None where a device multiplies two numbers through its provider; else what the library says."""
    code, dtype = TYPES[precision]
    library, provider = _library(), PROVIDERS[device]
    found = np.zeros(2)
    try:
        if provider.vendor == "NVIDIA":
            with _hushed():  # it prints what it can't load; the session below says it better
                library.preload_dlls()  # CUDA and cuDNN as pip installs them, which nothing else finds
            library.set_default_logger_severity(SILENT)  # a line for each way to compute a convolution that isn't there
        for alone in (False, True):  # a library that can't be loaded is only reported where the CPU may step in
            options = library.SessionOptions()
            options.log_severity_level = SILENT
            if alone:
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            for name, value in provider.attributes.items():
                setattr(options, name, value)
            session = open_session(TRIAL % (code, code), options, device, provider.fixed)
            found = session.run(None, {"x": np.array([3, -4], dtype)})[0]
    except Exception as exc:  # whatever the driver says
        return first_line(exc)
    return None if found.tolist() == [9, 16] else f"it answers {found.tolist()} to 3 and -4 squared"


def open_session(graph: str | bytes, options: Any, device: str, settings: Mapping[str, str]) -> Any:
    """A session on a device; raises `RuntimeMissing` where another provider stepped in."""
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
    beside = [(PROVIDERS[other].name, dict(PROVIDERS[other].fixed)) for other in provider.beside]
    asked: list[Any] = [(provider.name, given), *beside] if device != "CPU" else [provider.name]
    return _taken(_library().InferenceSession(graph, options, providers=asked, enable_fallback=0), provider)


@contextmanager
def _hushed() -> Generator[None]:
    """Keep from standard output what a library writes there: QNN's simulator greets, between lines of JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        if sys.platform != "win32":  # where it is another C library's buffer
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _taken(session: Any, provider: Provider) -> Any:
    taken = session.get_providers()
    if taken[0] != provider.name:
        raise RuntimeMissing(
            f"{provider.name} was asked for, and ONNX Runtime took {', '.join(taken)}: a library of the provider's "
            f"can't be loaded. It needs {provider.needs}."
        )
    return session


@cache
def _register(name: str, plugin: str) -> None:
    _library().register_execution_provider_library(name, import_module(plugin).get_library_path())


@cache
def plugged(device: str, *, elsewhere: bool = False) -> list[Any]:
    """What a plugin finds of a device here; or, `elsewhere`, all that it can compile on. Raises ImportError."""
    provider = PROVIDERS[device]
    assert provider.plugin is not None
    _register(provider.name, provider.plugin)
    found = [one for one in _library().get_ep_devices() if one.ep_name == provider.name]
    return found if elsewhere else [one for one in found if one.device.type.name == provider.hardware]


def compile_ahead(graph: Path, context: Path, options: Any, target: Target, settings: Mapping[str, str]) -> Placement:
    """Compile into a graph of contexts, beside which lies their code; the device needn't be here, and nothing is run.

    What isn't in a context is left to the CPU.
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
        if node.op_type in HEAVY or not all(map(_small, node.outputs)):
            large[node.op_type] += 1
    _check_left(target, large)
    placed: Placement = {PROVIDERS[target.device].name: {"EPContext": contexts}}
    return placed | ({"CPUExecutionProvider": dict(left.most_common())} if left else {})


def _small(value: Any) -> bool:
    """Whether a value is known to be no larger than what may be computed on the CPU."""
    shape, kind = value.shape, value.dtype
    if shape is None or kind is None or not shape.is_static():
        return False
    return math.prod(shape.numpy()) * kind.itemsize <= SMALL_BYTES


def place(
    graph: Path, options: Any, target: Target, settings: Mapping[str, str], usual: Mapping[str, int]
) -> Placement:
    """Call a graph once on zeros, and say where each node was run. What a provider compiles, it compiles here.

    Free sizes are the `usual` ones.
    """
    feeds = {
        tensor.name: np.zeros(
            target.shape[tensor.name] if target.shape else shape_of(tensor.shape, usual), tensor.dtype
        )
        for tensor in target.inputs
    }
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
        and (node["op_name"] in HEAVY or int(node["output_size"]) > SMALL_BYTES)
    )
    _check_left(target, large)
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(node["provider"], Counter())[node["op_name"]] += 1
    return {name: dict(ops.most_common()) for name, ops in counts.items()}


def check_capture(graph: Path, options: Any, target: Target, settings: Mapping[str, str]) -> None:
    """Record a call on zeros and replay it; raises `CompileError`, with the library's words, where that can't be done.

    A provider refuses to record where one node is computed elsewhere, as on the CPU between two copies.
    """
    provider = PROVIDERS[target.device]
    assert target.shape is not None
    assert provider.memory is not None
    feeds = {tensor.name: np.zeros(target.shape[tensor.name], tensor.dtype) for tensor in target.inputs}
    advice = f"Write {provider.captures} = false under [options] of the profile, and build again."
    with border(CompileError, f"{provider.name} can't record a call as a graph", advice):
        call = DeviceCall(open_session(str(graph), options, target.device, settings), target, provider.memory)
        try:
            for _ in range(RECORDED_CALLS):
                call(feeds, sizes_of(target.inputs, {name: array.shape for name, array in feeds.items()}))
        finally:
            call.release()


def _check_left(target: Target, large: Counter[str]) -> None:
    """Refuse what has no business on the CPU."""
    if large and not target.options.get(ALLOWED):
        raise CompileError(
            f"On {target.device}, ONNX Runtime leaves to the CPU: "
            f"{', '.join(f'{count} {name}' for name, count in large.most_common())}. Try opset = 18 in the profile; "
            f"or, if that is what you want, write {ALLOWED} = true under [options]."
        )


class DeviceCall:
    """Calls a session with inputs and outputs that stay in the device's memory. Shapes that change are made room for.

    What was bound, and lies there from the last call, isn't copied again.
    """

    def __init__(self, session: Any, target: Target, memory: str) -> None:
        self._session: Any = session
        self._target, self._memory = target, (memory, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._binding: Any = cast("Any", None)
        self._values: dict[str, Any] = {}
        self._there: dict[str, Array] = {}

    def __call__(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Copy in what is new, run, copy out."""
        with border(CompileError, "ONNX Runtime failed while computing", "Is there memory enough for this size?"):
            shapes = {name: array.shape for name, array in feeds.items()}
            if shapes != self._shapes:
                self._make_room(feeds, sizes)
                self._shapes = shapes
            for name, array in feeds.items():
                if not isinstance(array, Bound) or self._there.get(name) is not array:
                    self._values[name].update_inplace(np.ascontiguousarray(array))
                self._there[name] = array
            self._session.run_with_iobinding(self._binding)
            outputs = ((tensor.name, self._values[tensor.name].numpy()) for tensor in self._target.outputs)
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
        """Give the memory back."""
        self._binding = self._session = cast("Any", None)
        self._values, self._there, self._shapes = {}, {}, {}


def _library() -> Any:
    library = import_module("onnxruntime")
    switch_off_events(library)
    return library
