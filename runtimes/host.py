"""Engines with inputs and outputs in the host's memory: they check their inputs, and run one call at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np

from ..core.engine import Chain, DeviceUse, Run
from ..core.errors import RuntimeMissing, ShapeError
from ..core.process import check_process, never_freed
from ..core.shapes import FREE, filled, is_of, shape_of, sizes_of
from ..core.tensors import Array
from .base import Target

Call = Callable[[Mapping[str, Array], Mapping[str, int]], dict[str, Array]]
"""A function that computes the outputs from checked feeds and the value of each free size."""


class ChainCall(Chain, Protocol):
    """The buffers of a chain of calls, for one chain at a time; see `Chains.chain`."""

    def start(self, feeds: Mapping[str, Array], sizes: Mapping[str, int], back: Mapping[str, str]) -> None:
        """Begin a chain with checked feeds and the value of each free size."""
        ...

    def release(self) -> None:
        """Free the buffers."""
        ...


class Bound(np.ndarray[Any, Any]):
    """A private copy of a bound input: it never changes, so it has to be copied to a device only once."""


def check_feeds(target: Target, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The value of each free size; raises `ShapeError` for feeds that don't fit the target."""
    sizes = sizes_of(target.inputs, {name: array.shape for name, array in feeds.items()})
    for tensor in target.inputs:
        array = feeds[tensor.name]
        if array.dtype != tensor.dtype:
            raise ShapeError(f"{tensor.name!r} is {array.dtype}; it must be {tensor.dtype}. Convert it first.")
        if target.shape is not None and not is_of(array.shape, target.shape[tensor.name]):
            built = ["any" if size == FREE else size for size in target.shape[tensor.name]]
            raise ShapeError(
                f"{tensor.name!r} has shape {list(array.shape)}, but this engine was built for "
                f"[{', '.join(map(str, built))}] only. Build an engine for this size, or one for every size."
            )
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"{name} is {size}; it must be 1 or more.")
    return sizes


def zeros(target: Target, usual: Mapping[str, int]) -> dict[str, Array]:
    """Inputs of an engine for a trial call; free sizes have their `usual` values."""
    shapes = target.shape
    if shapes is None or any(FREE in shape for shape in shapes.values()):
        free = {tensor.name: shape_of(tensor.shape, usual) for tensor in target.inputs}
        shapes = free if shapes is None else filled(shapes, free)
    return {tensor.name: np.zeros(shapes[tensor.name], tensor.dtype) for tensor in target.inputs}


_LIVE: WeakSet[HostEngine] = WeakSet()


def _keep_in_fork() -> None:
    """Never free engines in a fork: libraries would wait for threads that only the parent process has."""
    for engine in tuple(_LIVE):
        engine.keep()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_fork)


class HostEngine:
    """An engine that calls one function; implements `Engine`. `release` frees the function's resources.

    `device_use` is what the function counts of its calls on the device, if it does. `chained` makes the buffers of a
    chain of calls, which are used again by later ones.
    """

    def __init__(
        self,
        target: Target,
        call: Call,
        release: Callable[[], None] | None = None,
        device_use: DeviceUse | None = None,
        chained: Callable[[], ChainCall] | None = None,
    ) -> None:
        self.target, self.device_use = target, device_use
        self._call: Call | None = call
        self._release = release
        self._chained = chained
        self._chains: list[ChainCall] = []
        self._idle: list[ChainCall] = []
        """Those of `_chains` that no chain uses now."""
        self._lock = Lock()
        self._process = os.getpid()
        _LIVE.add(self)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine.run`. Calls of several threads run one after another."""
        check_process(self._process, "This engine was")
        sizes = check_feeds(self.target, feeds)
        with self._lock:
            return self._open()(feeds, sizes)

    def _open(self) -> Call:
        if self._call is None:
            raise RuntimeMissing("This engine is closed and its memory is freed. Load it again to run it.")
        return self._call

    @contextmanager
    def chain(self, feeds: Mapping[str, Array], back: Mapping[str, str]) -> Generator[Chain]:
        """See `Chains.chain`. Chains of several threads have buffers of their own; their calls run one after another.

        Raises `RuntimeMissing` for an engine that can't keep outputs on its device.
        """
        check_process(self._process, "This engine was")
        sizes = check_feeds(self.target, feeds)
        with self._lock:
            self._open()
            if self._chained is None:
                raise RuntimeMissing(f"{self.target.runtime} copies every output to the host. Call `run` instead.")
            if not self._idle:
                self._idle.append(self._chained())
                self._chains += self._idle
            call = self._idle.pop()
        try:
            with self._lock:
                self._open()
                call.start(feeds, sizes, back)
            yield _InTurn(call, self._lock, self._open)
        finally:
            with self._lock:
                if self._call is not None:  # not closed meanwhile
                    self._idle.append(call)

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """See `Engine.bind`. The arrays are copied, and marked as `Bound` for runtimes that keep them on a device."""
        fixed: dict[str, Array] = {name: array.copy().view(Bound) for name, array in feeds.items()}
        known = tuple(tensor for tensor in self.target.inputs if tensor.name in fixed)
        sizes_of(known, {name: array.shape for name, array in fixed.items()})

        def run(others: Mapping[str, Array]) -> dict[str, Array]:
            if twice := sorted(fixed.keys() & others.keys()):
                raise ShapeError(f"{twice} are already bound. Give the other inputs only.")
            return self.run({**fixed, **others})

        return run

    def keep(self) -> None:
        """Never free the function's resources."""
        never_freed((self._call, self._release, self._chains))

    def close(self) -> None:
        """See `Engine.close`. Waits for a running call; does nothing in a forked process."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._call = None
            with ExitStack() as last:  # all are called, even if one fails
                if self._release is not None:
                    last.callback(self._release)
                for chain in self._chains:
                    last.callback(chain.release)
                self._release, self._chained, self._chains, self._idle = None, None, [], []


class _InTurn:
    """A chain whose calls wait for other calls of its engine."""

    def __init__(self, call: ChainCall, lock: Lock, check: Callable[[], object]) -> None:
        self._call, self._lock, self._check = call, lock, check

    def step(self, feeds: Mapping[str, Array]) -> None:
        """See `Chain.step`; raises `RuntimeMissing` once the engine is closed."""
        with self._lock:
            self._check()
            self._call.step(feeds)

    def read(self, name: str) -> Array:
        """See `Chain.read`; raises as `step`."""
        with self._lock:
            self._check()
            return self._call.read(name)
