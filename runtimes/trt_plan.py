"""A plan of TensorRT's, of either library, on the GPU that it was built for.

A context has no memory of its own to compute in: engines of one GPU take turns in one `Room`, which is as large as the
shapes that were asked for need, and not the largest that they may have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import CompileError
from ..core.shapes import shape_of
from ..core.tensors import Array
from .base import Target
from .border import border, rebuild, sentence
from .cuda import Driver, Room, open_driver
from .host import Bound
from .ranges import OUTSIDE

ROOMS: defaultdict[str, Room] = defaultdict(Room)
"""By device."""


class LoadedPlan:
    """What one engine holds: the plan, its context, and a buffer on the device for each input and output.

    `graphed` captures the work of a call once and launches it from then on, which takes a static plan.
    `streamed` is how many bytes of weights may stay on the GPU, of a plan that was built to bring in the others as they
    are needed; None for one whose weights all stay.
    """

    def __init__(
        self, library: Any, log: Any, path: Path, target: Target, *, graphed: bool = False, streamed: int | None = None
    ) -> None:
        log.clear()
        self._log, self._target, self._graphed = log, target, graphed
        self._buffers: dict[str, tuple[int, int]] = {}
        self._there: dict[str, Array] = {}
        """Bound arrays that are on the device."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._needs = 0
        self._place: tuple[int, int] | None = None
        """Where in the room, and how large, the context was set to compute."""
        self._graph: int | None = None
        self._context: Any = cast("Any", None)
        self._driver: Driver | None = open_driver(target.device)
        self._room = ROOMS[target.device]
        self._room.join()
        try:
            with border(CompileError, f"TensorRT can't load {path}", rebuild(path.parent)):
                self._runtime = library.Runtime(log)
                self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
                if self._engine is not None:
                    if streamed is not None:
                        _stream_weights(self._engine, streamed)
                    strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
                    self._context = self._engine.create_execution_context(strategy)
                if self._context is None:
                    worst = log.worst or "it says no more"
                    raise CompileError(sentence(f"TensorRT can't load {path}", worst, rebuild(path.parent)))
        except BaseException:
            self.release()
            raise

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Copy in what isn't there, run, copy out, on one stream."""
        driver = self._driver
        assert driver is not None
        with border(CompileError, "TensorRT failed while computing", "Is there memory enough for this size?"):
            outputs = {
                tensor.name: np.empty(shape_of(tensor.shape, sizes), np.float32) for tensor in self._target.outputs
            }
            self._shape(feeds)
            with self._room.lock:
                for name, array in feeds.items():
                    self._feed(driver, name, array)
                for name, array in outputs.items():
                    self._buffer(driver, name, array.nbytes)
                self._settle(driver)
                try:
                    self._work(driver)
                    for name, array in outputs.items():
                        driver.copy_out(array, self._buffers[name][0])
                    driver.wait()
                except BaseException:
                    with suppress(CompileError):  # the room isn't free while something runs in it
                        driver.wait()
                    raise
        return outputs

    def release(self) -> None:
        """Give the device's memory back."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        with ExitStack() as last:  # each, whatever the others come to
            last.callback(driver.close)
            last.callback(self._room.leave, driver)
            for address, _ in self._buffers.values():
                last.callback(driver.free, address)
            last.callback(self._forget)
            last.callback(self._drop_graph, driver)

    def _forget(self) -> None:
        self._buffers.clear()
        self._context = self._engine = self._runtime = None

    def _shape(self, feeds: Mapping[str, Array]) -> None:
        """Tell the context of shapes that changed, and ask how much memory they take."""
        changed = False
        for name, array in feeds.items():
            if self._shapes.get(name) == array.shape:
                continue
            if not self._context.set_input_shape(name, array.shape):
                self._shapes.clear()
                raise CompileError(
                    f"{name} {list(array.shape)} is outside what the engine was built for: {OUTSIDE}. Draw within that."
                )
            self._shapes[name], changed = array.shape, True
        if changed:
            self._needs, self._place = self._context.update_device_memory_size_for_shapes(), None

    def _feed(self, driver: Driver, name: str, array: Array) -> None:
        whole = np.ascontiguousarray(array)
        address = self._buffer(driver, name, whole.nbytes)
        if isinstance(array, Bound) and self._there.get(name) is array:
            return
        self._there.pop(name, None)
        driver.copy_in(address, whole)
        if isinstance(array, Bound):
            self._there[name] = array

    def _buffer(self, driver: Driver, name: str, count: int) -> int:
        """Device memory for a tensor, made larger where it has to be."""
        address, held = self._buffers.get(name, (0, 0))
        if held < count:
            if address:
                del self._buffers[name]
                self._there.pop(name, None)
                driver.free(address)
            address = driver.allocate(count)
            self._buffers[name] = address, count
            if not self._context.set_tensor_address(name, address):
                raise CompileError(f"TensorRT wouldn't take {name}: {self._log.worst or 'it says no more'}.")
        return address

    def _settle(self, driver: Driver) -> None:
        """Give the context its place in the room, where it hasn't that yet or the room was moved."""
        needs = max(1, self._needs)
        place = self._room.at_least(driver, needs), needs
        if place != self._place:
            self._drop_graph(driver)
            self._context.set_device_memory(*place)
            self._place = place

    def _work(self, driver: Driver) -> None:
        """Run, or launch what was captured. The first run in a place isn't captured: it may still load kernels."""
        if self._graph is not None:
            driver.launch(self._graph)
            return
        self._execute(driver)
        if self._graphed:
            driver.wait()
            self._graph = driver.capture(lambda: self._execute(driver))

    def _execute(self, driver: Driver) -> None:
        if not self._context.execute_async_v3(driver.stream):
            raise CompileError(f"TensorRT wouldn't run: {self._log.worst or 'it says no more'}.")

    def _drop_graph(self, driver: Driver) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            driver.forget(graph)


def _stream_weights(engine: Any, budget: int) -> None:
    """Keep so many bytes of weights on the GPU at most."""
    wanted = min(budget, engine.streamable_weights_size)
    engine.weight_streaming_budget_v2 = wanted
    if engine.weight_streaming_budget_v2 != wanted:
        raise CompileError(
            f"TensorRT keeps {engine.weight_streaming_budget_v2:,} bytes of weights on the GPU; {wanted:,} were asked "
            "for. Write another weight_streaming_budget_mb."
        )
