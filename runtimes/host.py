"""Engines with inputs and outputs in the host's memory: they check their inputs, and run one call at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np

from ..core.engine import DeviceUse, Run
from ..core.errors import RuntimeMissing, ShapeError
from ..core.process import check_process, never_freed
from ..core.shapes import FREE, filled, is_of, shape_of, sizes_of
from ..core.tensors import Array
from .base import Target

Call = Callable[[Mapping[str, Array], Mapping[str, int]], dict[str, Array]]
"""A function that computes the outputs from checked feeds and the value of each free size."""


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

    `device_use` is what the function counts of its calls on the device, if it does.
    """

    def __init__(
        self,
        target: Target,
        call: Call,
        release: Callable[[], None] | None = None,
        device_use: DeviceUse | None = None,
    ) -> None:
        self.target, self.device_use = target, device_use
        self._call: Call | None = call
        self._release = release
        self._lock = Lock()
        self._process = os.getpid()
        _LIVE.add(self)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine.run`. Calls of several threads run one after another."""
        check_process(self._process, "This engine was")
        sizes = check_feeds(self.target, feeds)
        with self._lock:
            if self._call is None:
                raise RuntimeMissing("This engine is closed and its memory is freed. Load it again to run it.")
            return self._call(feeds, sizes)

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
        never_freed((self._call, self._release))

    def close(self) -> None:
        """See `Engine.close`. Waits for a running call; does nothing in a forked process."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._call = None
            release, self._release = self._release, None
            if release is not None:
                release()
