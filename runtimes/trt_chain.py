"""Chains of calls of a TensorRT plan, whose outputs stay in the GPU's memory: see `core.engine.Chains`.

What a call reads and what it writes are two sets of buffers, which change places after each call. A captured call has
fixed addresses, so each of the two directions is captured by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..core.shapes import shape_of
from ..core.tensors import Array

if TYPE_CHECKING:
    from .cuda import Driver
    from .trt_plan import LoadedPlan


class PlanChain:
    """The buffers of a chain; implements `host.ChainCall`. They are allocated again when shapes change."""

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._ways = plan.way(), plan.way()
        self._addresses: tuple[dict[str, int], dict[str, int]] = ({}, {})
        """Of each tensor, in either direction."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Of inputs."""
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._back: dict[str, str] = {}
        self._next = 0
        """The direction of the next call."""

    def start(self, feeds: Mapping[str, Array], sizes: Mapping[str, int], back: Mapping[str, str]) -> None:
        """Copy all inputs to the device."""
        shapes = {name: array.shape for name, array in feeds.items()}
        with self._plan.working() as driver:
            if (shapes, dict(back)) != (self._shapes, self._back):
                self._free(driver)
                self._outputs = {one.name: shape_of(one.shape, sizes) for one in self._plan.outputs}
                self._make_room(driver, {name: array.nbytes for name, array in feeds.items()}, back)
                self._shapes, self._back = shapes, dict(back)
            self._next = 0
            staged = _contiguous(feeds)
            for name, array in staged.items():
                driver.copy_in(self._addresses[0][name], array)
            driver.wait()

    def step(self, feeds: Mapping[str, Array]) -> None:
        """Copy the inputs that change, and run."""
        staged = _contiguous(feeds)
        with self._plan.working() as driver:
            self._plan.run_at(driver, self._ways[self._next], self._addresses[self._next], self._shapes, staged)
            self._next = 1 - self._next

    def read(self, name: str) -> Array:
        """A copy of an output of the last call, in float32."""
        found = np.empty(self._outputs[name], np.float32)
        with self._plan.working() as driver:
            driver.copy_out(found, self._addresses[1 - self._next][name])
            driver.wait()
        return found

    def release(self) -> None:
        """See `host.ChainCall.release`."""
        with self._plan.working() as driver:
            self._free(driver)

    def _make_room(self, driver: Driver, sizes: Mapping[str, int], back: Mapping[str, str]) -> None:
        one, other = self._addresses
        for name, count in sizes.items():
            one[name] = other[name] = driver.allocate(count)
            if name in back:
                other[name] = driver.allocate(count)
        for name, shape in self._outputs.items():
            if name not in back.values():
                one[name] = other[name] = driver.allocate(4 * prod(shape))
        for name, output in back.items():
            one[output], other[output] = other[name], one[name]

    def _free(self, driver: Driver) -> None:
        for way in self._ways:
            self._plan.leave(driver, way)
        held = {address for addresses in self._addresses for address in addresses.values()}
        for addresses in self._addresses:
            addresses.clear()
        self._shapes = {}
        for address in held:
            driver.free(address)


def _contiguous(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays that can be copied, to be kept until then."""
    return {name: np.ascontiguousarray(array) for name, array in feeds.items()}
