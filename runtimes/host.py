"""Engines whose inputs and outputs lie in the host's memory: feeds checked, one call at a time, closed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np

from ..core.engine import Run
from ..core.errors import RuntimeMissing, ShapeError
from ..core.process import check_process, never_freed
from ..core.shapes import sizes_of
from ..core.tensors import Array
from .base import Target

Call = Callable[[Mapping[str, Array], Mapping[str, int]], dict[str, Array]]
"""Computes the outputs from checked feeds and the value of each free size."""


class Bound(np.ndarray[Any, Any]):
    """An array that was bound: nobody else has it, so a device that has it once needn't be given it again."""


def check_feeds(target: Target, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The value of each free size; raises `ShapeError` for feeds that don't fit the target."""
    sizes = sizes_of(target.inputs, {name: array.shape for name, array in feeds.items()})
    for tensor in target.inputs:
        array = feeds[tensor.name]
        if array.dtype != tensor.dtype:
            raise ShapeError(f"{tensor.name!r} is {array.dtype}; it must be {tensor.dtype}. Convert it first.")
        if target.shape is not None and array.shape != target.shape[tensor.name]:
            raise ShapeError(
                f"{tensor.name!r} has shape {list(array.shape)}; this engine was built for "
                f"{list(target.shape[tensor.name])} only. Build one for that size, or one for every size."
            )
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"{name} is {size}; it must be 1 or more.")
    return sizes


_LIVE: WeakSet[HostEngine] = WeakSet()


def _keep_in_fork() -> None:
    """Libraries wait for their threads when they free an engine, and a fork has none of them."""
    for engine in tuple(_LIVE):
        engine.keep()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_fork)


class HostEngine:
    """An engine around one function; fulfils `Engine`. `release` frees what the function held."""

    def __init__(self, target: Target, call: Call, release: Callable[[], None] | None = None) -> None:
        self.target = target
        self._call: Call | None = call
        self._release = release
        self._lock = Lock()
        self._process = os.getpid()
        _LIVE.add(self)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `Engine.run`; threads take turns."""
        check_process(self._process, "This engine was")
        sizes = check_feeds(self.target, feeds)
        with self._lock:
            if self._call is None:
                raise RuntimeMissing("This engine was closed, and its memory given back. Load it again to run it.")
            return self._call(feeds, sizes)

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """As `Engine.bind`: the arrays are copied, and marked for those that keep them on a device."""
        fixed: dict[str, Array] = {name: array.copy().view(Bound) for name, array in feeds.items()}
        known = tuple(tensor for tensor in self.target.inputs if tensor.name in fixed)
        sizes_of(known, {name: array.shape for name, array in fixed.items()})

        def run(others: Mapping[str, Array]) -> dict[str, Array]:
            if twice := sorted(fixed.keys() & others.keys()):
                raise ShapeError(f"{twice} were bound already. Feed the other inputs only.")
            return self.run({**fixed, **others})

        return run

    def keep(self) -> None:
        """Never free what the function holds."""
        never_freed((self._call, self._release))

    def close(self) -> None:
        """As `Engine.close`; waits for a call that is under way. In a fork nothing is given back."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._call = None
            release, self._release = self._release, None
            if release is not None:
                release()
