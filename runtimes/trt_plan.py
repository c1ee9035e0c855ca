"""A plan of either TensorRT library, loaded on the GPU that it was built for.

Execution contexts have no memory of their own: all engines of one GPU share the memory of one `Room`, one call at a
time. It is as large as the requested shapes need, not the largest shapes of the plans.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.engine import DeviceUse
from ..core.errors import CompileError
from ..core.manifest import TensorInfo
from ..core.shapes import shape_of
from ..core.tensors import Array
from .base import Target
from .border import ENOUGH, NO_REASON, border, rebuild, sentence
from .cuda import Driver, Room, open_driver
from .host import Bound
from .ranges import OUTSIDE
from .trt_cache import RuntimeCache

Copies = Mapping[str, tuple[int, Array]]
"""Addresses on the device and arrays on the host, by tensor."""

Places = dict[str, int]
"""Addresses of pinned memory, by tensor; 0 without any."""

ROOMS: defaultdict[int, Room] = defaultdict(Room)
"""The shared memory of each GPU, by the driver's number: a device may have several names, such as sm89 and sm89:0."""

UNCAPTURED = (
    "cannot capture this engine as a CUDA graph. Write cuda_graph = false for its part, for example under "
    "[part_options.text_encoder] of the profile, and build again."
)
"""What a part whose calls can't be captured needs; follows the library's name."""


class LoadedPlan:
    """The state of one engine: the plan, its context, and a buffer on the device for each input and output.

    `graphed` captures the work of a call as a CUDA graph, with its copies through pinned memory, and replays it; the
    plan must have fixed shapes.
    `streamed` limits the bytes of weights on the GPU, for a plan that was built for weight streaming; None keeps all
    weights on the GPU. `compiles`: the library compiles the plan for the GPU at load, and the code is kept.
    """

    def __init__(
        self,
        library: Any,
        log: Any,
        path: Path,
        target: Target,
        *,
        graphed: bool = False,
        streamed: int | None = None,
        compiles: bool = False,
    ) -> None:
        log.clear()
        self._library, self._log, self._target, self._graphed = library, log, target, graphed
        self._buffers: dict[str, tuple[int, int]] = {}
        self._there: dict[str, Array] = {}
        """Bound arrays that are on the device."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._needs = 0
        self._place: tuple[int, int] | None = None
        """Address and size of the memory that the context was given."""
        self._graphs: dict[tuple[int, frozenset[str]], tuple[int, Places]] = {}
        """Captured calls, and the pinned memory that they copy through; by way, and inputs that they copy."""
        self._ways = count(1)
        """Numbers of sets of addresses; 0 are the buffers of `call`."""
        self._way = 0
        """The set whose addresses the context has; -1 where they were freed, or not all were set."""
        self._events: tuple[int, ...] = ()
        """Around the work of a call, without its copies."""
        self.use = DeviceUse()
        self._cache: RuntimeCache | None = None
        self._called: set[tuple[tuple[int, ...], ...]] = set()
        """Shapes of inputs that were called; code may be compiled in the first call of each."""
        self._engine: Any = cast("Any", None)
        self._context: Any = cast("Any", None)
        self._driver: Driver | None = open_driver(target.device)
        self._room = ROOMS[self._driver.ordinal]
        self._room.join()
        try:
            with border(CompileError, f"TensorRT cannot load {path}", rebuild(path.parent)), self._driver.current():
                self._open(library, path, streamed=streamed, compiles=compiles)
                for _ in range(2):
                    self._events += (self._driver.event(),)
        except BaseException:
            self.release()
            raise

    def _open(self, library: Any, path: Path, *, streamed: int | None, compiles: bool) -> None:
        """Create the context. Other objects of the library are freed at the end, while the GPU's context is current."""
        self._runtime = library.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is not None:
            if streamed is not None:
                _stream_weights(self._engine, streamed)
            how = library.ExecutionContextAllocationStrategy.USER_MANAGED
            if compiles:
                how = _configured(self._engine, library, how)
                self._cache = RuntimeCache(how, path, str(library.__version__), self._target.device)
            self._context = self._engine.create_execution_context(how)
        if self._context is None:
            worst = self._log.worst or NO_REASON
            raise CompileError(sentence(f"TensorRT cannot load {path}", worst, rebuild(path.parent)))

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Its outputs."""
        return self._target.outputs

    def way(self) -> int:
        """A number for another set of addresses."""
        return next(self._ways)

    @contextmanager
    def working(self) -> Generator[Driver]:
        """The GPU, with its context current and the shared memory held; waits for its work where an error ends it."""
        driver = self._driver
        assert driver is not None
        self._log.clear()
        with border(CompileError, "TensorRT failed while computing", ENOUGH), driver.current(), self._room.lock:
            try:
                yield driver
            except BaseException:
                with suppress(CompileError):  # neither arrays nor the shared memory are free while a call runs
                    driver.wait()
                raise

    def run_at(
        self,
        driver: Driver,
        way: int,
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        feeds: Mapping[str, Array],
    ) -> None:
        """Copy contiguous inputs, run with tensors at these addresses, the same in all calls of a way, and wait.
        `working` must be entered.
        """
        self._shape(shapes)
        self._turn_to(way, addresses)
        self._settle(driver)
        self._work(driver, {name: (addresses[name], array) for name, array in feeds.items()}, {})
        driver.wait()
        self._note(driver, tuple(shapes.values()))

    def leave(self, driver: Driver, way: int) -> None:
        """Free the captured calls of a way whose addresses are freed next."""
        self._drop_graphs(driver, [key for key in self._graphs if key[0] == way])
        self._way = -1 if way == self._way else self._way

    def call(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Copy changed inputs to the device, run, and copy the outputs back, on one stream."""
        shapes = {tensor.name: shape_of(tensor.shape, sizes) for tensor in self.outputs}
        outputs = {tensor.name: np.empty(shapes[tensor.name], np.float32) for tensor in self._target.returned}
        whole = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # until their copies end
        with self.working() as driver:
            self._shape({name: array.shape for name, array in feeds.items()})
            self._turn_to(0, {name: address for name, (address, _) in self._buffers.items()})
            ins = {name: (self._buffer(driver, name, array.nbytes), array) for name, array in whole.items()}
            for name, array in feeds.items():
                if isinstance(array, Bound):
                    self._bind(driver, name, array, *ins.pop(name))
                else:
                    self._there.pop(name, None)
            places = {name: self._buffer(driver, name, 4 * prod(shape)) for name, shape in shapes.items()}
            self._settle(driver)
            self._work(driver, ins, {name: (places[name], array) for name, array in outputs.items()})
            driver.wait()
            self._note(driver, tuple(array.shape for array in feeds.values()))
        return outputs

    def _note(self, driver: Driver, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Count a call that has ended, and keep the code that was compiled in it."""
        self.use.seconds += driver.elapsed(*self._events)
        self.use.calls += 1
        if self._cache is not None and shapes not in self._called:  # a process may end without `release`
            self._cache.save()
            self._called.add(shapes)

    def layers(self) -> Any:
        """What the library says of the engine's layers, in JSON's types: names and, for a plan that was built with
        details, types, formats and tactics. As text where it isn't valid JSON.
        """
        assert self._driver is not None
        with border(CompileError, "TensorRT cannot inspect the engine", ENOUGH), self._driver.current():
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = self._context
            text = str(inspector.get_engine_information(self._library.LayerInformationFormat.JSON))
            del inspector  # while the context is current
        try:  # names of layers may have characters that JSON would escape
            return json.loads(text, strict=False)
        except ValueError:
            return text

    def release(self) -> None:
        """Free the device's memory."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        with ExitStack() as last:  # all are called, even if one fails
            last.callback(driver.close)
            last.enter_context(driver.current())
            last.callback(self._room.leave, driver)
            for address, _ in self._buffers.values():
                last.callback(driver.free, address)
            for event in self._events:
                last.callback(driver.drop, event)
            last.callback(self._forget)
            for key in tuple(self._graphs):
                last.callback(self._drop_graphs, driver, [key])
            if self._cache is not None:
                last.callback(self._cache.save)

    def _forget(self) -> None:
        self._buffers.clear()
        self._context = self._cache = self._engine = self._runtime = None

    def _shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set shapes that changed, and query the memory that they need."""
        changed = False
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                self._shapes.clear()
                raise CompileError(
                    f"{name} {list(shape)} is outside the range that the engine was built for: {OUTSIDE}. "
                    "Request a smaller size, fewer images or a shorter prompt."
                )
            self._shapes[name], changed = shape, True
        if changed:
            self._needs, self._place = self._context.update_device_memory_size_for_shapes(), None

    def _bind(self, driver: Driver, name: str, array: Bound, address: int, whole: Array) -> None:
        """Copy `whole`, a contiguous copy of `array` or the array itself, unless the device has it."""
        if self._there.get(name) is array:
            return
        self._there.pop(name, None)
        driver.copy_in(address, whole)
        self._there[name] = array

    def _buffer(self, driver: Driver, name: str, count: int) -> int:
        """Address of the device memory of a tensor, which grows where needed."""
        address, held = self._buffers.get(name, (0, 0))
        if held < count:
            if address:
                del self._buffers[name]
                self._there.pop(name, None)
                driver.free(address)
            address = driver.allocate(count)
            self._buffers[name] = address, count
            self._place_tensor(name, address)
        return address

    def _turn_to(self, way: int, addresses: Mapping[str, int]) -> None:
        """Give the context the addresses of a way, unless it has them."""
        if way != self._way:
            self._way = -1
            for name, address in addresses.items():
                self._place_tensor(name, address)
            self._way = way

    def _place_tensor(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise CompileError(f"TensorRT refuses the input {name}: {self._log.worst or NO_REASON}.")

    def _settle(self, driver: Driver) -> None:
        """Give the context the shared memory, where it is new or has moved."""
        needs = max(1, self._needs)
        place = self._room.at_least(driver, needs), needs
        if place != self._place:
            self._drop_graphs(driver, tuple(self._graphs))
            self._context.set_device_memory(*place)
            self._place = place

    def _work(self, driver: Driver, ins: Copies, outs: Copies) -> None:
        """Copy, run, and copy back, or replay the captured graph of that. The first run at an address isn't captured:
        it may still load kernels.
        """
        key, places = (self._way, frozenset(ins)), _places(driver, ins, outs)
        if (graph := self._graphs.get(key)) is not None and graph[1] == places:
            for name, (address, array) in ins.items():
                driver.stage(address, array) if places[name] else driver.copy_in(address, array)
            driver.launch(graph[0])
            for name, (address, array) in outs.items():
                driver.expect(array, address) if places[name] else driver.copy_out(array, address)
            self.use.replays += 1
            return
        self._drop_graphs(driver, [key])
        for address, array in ins.values():
            driver.copy_in(address, array)
        before, after = self._events
        driver.record(before)
        self._execute(driver)
        driver.record(after)
        for address, array in outs.values():
            driver.copy_out(array, address)
        if self._graphed:
            driver.wait()
            if self._cache is not None and not self._context.is_stream_capturable(driver.stream):
                raise CompileError(f"TensorRT for RTX {UNCAPTURED}")
            places = _places(driver, ins, outs)
            try:
                self._graphs[key] = driver.capture(lambda: self._submit(driver, ins, outs, places)), places
            except CompileError as exc:
                raise CompileError(f"{exc} So TensorRT {UNCAPTURED}") from exc

    def _submit(self, driver: Driver, ins: Copies, outs: Copies, places: Places) -> None:
        """What is captured: a call with the copies that go through pinned memory, the others are made around it."""
        before, after = self._events
        for name, (address, array) in ins.items():
            if places[name]:
                driver.repeat(address, array.nbytes, back=False)
        driver.repeat_record(before)
        self._execute(driver)
        driver.repeat_record(after)
        for name, (address, array) in outs.items():
            if places[name]:
                driver.repeat(address, array.nbytes, back=True)

    def _execute(self, driver: Driver) -> None:
        if not self._context.execute_async_v3(driver.stream):
            raise CompileError(f"TensorRT failed to run the engine: {self._log.worst or NO_REASON}.")

    def _drop_graphs(self, driver: Driver, keys: Iterable[tuple[int, frozenset[str]]]) -> None:
        for key in keys:
            if (graph := self._graphs.pop(key, None)) is not None:
                driver.forget(graph[0])


def _places(driver: Driver, ins: Copies, outs: Copies) -> Places:
    return {name: driver.pinned(address) for name, (address, _) in (*ins.items(), *outs.items())}


def _configured(engine: Any, library: Any, strategy: Any) -> Any:
    """The configuration of a context that compiles at load."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # By default, code compiled meanwhile takes over at a later call: not proved, and other bits for an equal request.
    config.dynamic_shapes_kernel_specialization_strategy = library.DynamicShapesKernelSpecializationStrategy.NONE
    return config


def _stream_weights(engine: Any, budget: int) -> None:
    """Keep at most `budget` bytes of weights on the GPU."""
    wanted = min(budget, engine.streamable_weights_size)
    engine.weight_streaming_budget_v2 = wanted
    if engine.weight_streaming_budget_v2 != wanted:
        raise CompileError(
            f"TensorRT keeps {engine.weight_streaming_budget_v2:,} bytes of weights on the GPU instead of the "
            f"requested {wanted:,}. Set another weight_streaming_budget_mb."
        )
