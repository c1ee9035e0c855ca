"""Chains of calls of an ONNX Runtime session, whose outputs stay in the device's memory: see `core.engine.Chains`.

What a call reads and what it writes are two sets of buffers, which change places after each call. A recorded call has
fixed addresses, so each of the two directions is a recording of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, cast

import numpy as np

from ..core.errors import CompileError
from ..core.shapes import shape_of
from ..core.tensors import Array
from .base import Target
from .border import ENOUGH, border
from .provider_here import library

RECORDING = "gpu_graph_id"
"""The entry of a call's options that names its recording; calls without it have the number 0."""


def chains(session: Any, target: Target, memory: str, *, records: bool) -> Callable[[], SessionChain]:
    """A function that makes the buffers of a chain; `records` tells whether the session records its calls."""
    numbers = count(1)

    def options() -> Any:
        chosen = library().RunOptions()
        if records:
            chosen.add_run_config_entry(RECORDING, str(next(numbers)))
        return chosen

    return lambda: SessionChain(session, target, memory, (options(), options()))


class SessionChain:
    """The buffers of a chain; implements `host.ChainCall`. They are allocated again when shapes change."""

    def __init__(self, session: Any, target: Target, memory: str, options: tuple[Any, Any]) -> None:
        self._session, self._target, self._options = session, target, options
        self._memory = memory, target.number or 0
        self._made_for: tuple[object, object] = (None, None)
        self._inputs: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        """What is read in either direction."""
        self._outputs: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._bindings: list[Any] = []
        self._way = 0
        """The direction of the next call."""

    def start(self, feeds: Mapping[str, Array], sizes: Mapping[str, int], back: Mapping[str, str]) -> None:
        """Copy all inputs to the device."""
        wanted = {name: array.shape for name, array in feeds.items()}, dict(back)
        with border(CompileError, "ONNX Runtime failed while copying", ENOUGH):
            if self._made_for != wanted:
                self._make_room(feeds, sizes, back)
                self._made_for = wanted
        self._way = 0
        self._copy(feeds)

    def step(self, feeds: Mapping[str, Array]) -> None:
        """Copy the inputs that change, and run."""
        self._copy(feeds)
        with border(CompileError, "ONNX Runtime failed while computing", ENOUGH):
            self._session.run_with_iobinding(self._bindings[self._way], self._options[self._way])
        self._way = 1 - self._way

    def read(self, name: str) -> Array:
        """A copy of an output of the last call, in float32."""
        with border(CompileError, "ONNX Runtime failed while copying", ENOUGH):
            return np.array(self._outputs[1 - self._way][name].numpy(), dtype=np.float32)

    def _copy(self, feeds: Mapping[str, Array]) -> None:
        with border(CompileError, "ONNX Runtime failed while copying", ENOUGH):
            for name, array in feeds.items():
                self._inputs[self._way][name].update_inplace(np.ascontiguousarray(array))

    def _make_room(self, feeds: Mapping[str, Array], sizes: Mapping[str, int], back: Mapping[str, str]) -> None:
        self.release_buffers()
        make = library().OrtValue.ortvalue_from_shape_and_type
        for name, array in feeds.items():
            value = make(array.shape, array.dtype.type, *self._memory)
            other = make(array.shape, array.dtype.type, *self._memory) if name in back else value
            self._inputs[0][name], self._inputs[1][name] = value, other
        for tensor in self._target.outputs:
            value = make(shape_of(tensor.shape, sizes), np.float32, *self._memory)
            self._outputs[0][tensor.name] = self._outputs[1][tensor.name] = value
        for name, output in back.items():
            self._outputs[0][output], self._outputs[1][output] = self._inputs[1][name], self._inputs[0][name]
        for way in (0, 1):
            binding = self._session.io_binding()
            for name, value in self._inputs[way].items():
                binding.bind_ortvalue_input(name, value)
            for name, value in self._outputs[way].items():
                binding.bind_ortvalue_output(name, value)
            self._bindings.append(binding)

    def release_buffers(self) -> None:
        """Free the buffers; `start` allocates others."""
        self._bindings, self._made_for = [], (None, None)
        for values in (*self._inputs, *self._outputs):
            values.clear()

    def release(self) -> None:
        """See `host.ChainCall.release`."""
        self.release_buffers()
        self._session = cast("Any", None)
