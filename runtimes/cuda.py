"""NVIDIA's driver library through its C interface: device memory, copies, one stream, its graphs and clock; no
CUDA toolkit.

Source: CUDA Driver API, docs.nvidia.com/cuda/cuda-driver-api. Functions are called by their versioned names (`_v2`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from threading import Lock
from traceback import clear_frames
from typing import Any

from ..core.errors import CompileError, RuntimeMissing
from ..core.recipes import Precision
from ..core.tensors import Array
from .base import numbered

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

OUT_OF_MEMORY = 2
THIS_THREAD = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls of other threads don't invalidate a capture."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: it doesn't synchronize with the default stream, whose work would invalidate a capture."""

EXTERNAL = 1
"""CU_EVENT_RECORD_EXTERNAL: in a capture, the graph records the event; without, it is an order of the work only."""

NAME_BYTES = 256
PINNED_BYTES = 16 << 20
"""The largest array that is copied through pinned memory, which the system can't use otherwise."""

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Environment variable; 0 keeps NVIDIA's libraries from computing f32 in TF32, and 1 makes cuBLAS and cuDNN do so,
whatever their options are.
"""
OVERRIDDEN: frozenset[Precision] = frozenset({"f32"})
"""The precisions that the variable affects."""
AMPERE = 80
"""The first compute capability with TF32."""


DRIVERS = {"13": ((13, 0), 580), "12": ((12, 2), 535)}
"""For wheels of each major version of CUDA: the CUDA version that the driver must support, and the first driver that
does. Source: docs.nvidia.com/deeplearning/tensorrt/11.4.0/installing-tensorrt/prerequisites.html.
"""

RETAINED: dict[int, c_void_p] = {}
"""The primary context of each GPU in use, until the process ends. Releasing the last reference would reset the context
under NVIDIA's other libraries, which keep state in it.
"""
_RETAIN = Lock()


class Driver:
    """One GPU's primary context, and a stream on it."""

    def __init__(self, library: Any, ordinal: int) -> None:
        self._library, self._stream = library, c_void_p()
        self.ordinal = ordinal
        """The GPU's number, by the driver's order."""
        self._pinned: dict[int, tuple[int, int]] = {}
        """Address and size of the pinned memory through which each address of the device is copied; 0 without any."""
        self._copying: set[int] = set()
        """Addresses of the device whose pinned memory is in use until the stream's work is done."""
        self._results: list[tuple[Array, int]] = []
        """Arrays that wait for their content, with the pinned memory that gets it."""
        with _RETAIN:
            if ordinal not in RETAINED:
                device, context = c_int(), c_void_p()
                _call(library, "cuDeviceGet", byref(device), ordinal)
                _call(library, "cuDevicePrimaryCtxRetain", byref(context), device)
                RETAINED[ordinal] = context
        self._context = RETAINED[ordinal]
        self._here("cuStreamCreate", byref(self._stream), NON_BLOCKING)

    @contextmanager
    def current(self) -> Generator[None]:
        """Make the context current in this thread, as other libraries require it, and restore the previous one.

        After an error, the objects that its frames hold are freed while the context is current.
        """
        _call(self._library, "cuCtxPushCurrent_v2", self._context)
        try:
            yield
        except BaseException as exc:
            clear_frames(exc.__traceback__)
            raise
        finally:
            _call(self._library, "cuCtxPopCurrent_v2", byref(c_void_p()))

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return self._stream.value or 0

    def allocate(self, count: int) -> int:
        """Allocate `count` bytes on the device; returns the address."""
        address = c_uint64()
        self._here("cuMemAlloc_v2", byref(address), c_size_t(count))
        return address.value

    def free(self, address: int) -> None:
        """Free memory of `allocate`, and what it was copied through. The stream's work must be done."""
        pinned, _ = self._pinned.pop(address, (0, 0))
        try:
            if pinned:
                self._here("cuMemFreeHost", c_void_p(pinned))
        finally:
            self._here("cuMemFree_v2", c_uint64(address))

    def copy_in(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device, in stream order. It must stay unchanged until `wait`."""
        source = self.stage(address, array) or array.ctypes.data
        self._here("cuMemcpyHtoDAsync_v2", c_uint64(address), c_void_p(source), c_size_t(array.nbytes), self._stream)

    def stage(self, address: int, array: Array) -> int:
        """Put a contiguous array into the pinned memory of an address, from which it is copied next; returns where that
        is, 0 without any.
        """
        pinned = self._staging(address, array.nbytes)
        if pinned:
            ctypes.memmove(pinned, array.ctypes.data, array.nbytes)
            self._copying.add(address)
        return pinned

    def copy_out(self, array: Array, address: int) -> None:
        """Copy from the device to a contiguous array, in stream order. It has its content after `wait`."""
        to = self._staging(address, array.nbytes)
        if to:
            self._copying.add(address)
        target = to or array.ctypes.data
        self._here("cuMemcpyDtoHAsync_v2", c_void_p(target), c_uint64(address), c_size_t(array.nbytes), self._stream)
        if to:
            self._results.append((array, to))

    def expect(self, array: Array, address: int) -> None:
        """Let `wait` fill an array from the pinned memory of an address, to which a launched graph copies."""
        self._copying.add(address)
        self._results.append((array, self.pinned(address)))

    def pinned(self, address: int) -> int:
        """The pinned memory through which an address is copied; 0 where it was not copied yet, or without any."""
        return self._pinned.get(address, (0, 0))[0]

    def repeat(self, address: int, count: int, *, back: bool) -> None:
        """In a capture: copy from the pinned memory of an address to the device, or back, at each launch."""
        device, host = c_uint64(address), c_void_p(self.pinned(address))
        if back:
            self._here("cuMemcpyDtoHAsync_v2", host, device, c_size_t(count), self._stream)
        else:
            self._here("cuMemcpyHtoDAsync_v2", device, host, c_size_t(count), self._stream)

    def _staging(self, address: int, count: int) -> int:
        """Pinned memory for a copy to or from an address, free to use; 0 for large copies, or where none can be had.

        Copies of other memory are not asynchronous, and the driver makes them in pieces.
        """
        if not 0 < count <= PINNED_BYTES:
            return 0
        if address in self._copying:
            self.wait()
        pinned, held = self._pinned.get(address, (0, 0))
        if held < count:
            if pinned:
                del self._pinned[address]
                self._here("cuMemFreeHost", c_void_p(pinned))
            fresh = c_void_p()
            with suppress(CompileError):  # systems limit it; other memory can be copied as well
                self._here("cuMemHostAlloc", byref(fresh), c_size_t(count), 0)
            pinned = fresh.value or 0
            self._pinned[address] = pinned, count
        return pinned

    def wait(self) -> None:
        """Wait until all work on the stream is done, and fill the arrays of `copy_out`."""
        results, self._results = self._results, []
        self._here("cuStreamSynchronize", self._stream)
        self._copying.clear()
        for array, pinned in results:
            ctypes.memmove(array.ctypes.data, pinned, array.nbytes)

    def capture(self, work: Callable[[], None]) -> int:
        """Capture what `work` submits to the stream, without running it; returns the graph's handle."""
        graph, ready = c_void_p(), c_void_p()
        self._here("cuStreamBeginCapture_v2", self._stream, THIS_THREAD)
        try:
            work()
        except BaseException:
            with suppress(CompileError):  # the first error is the one to report
                self._here("cuStreamEndCapture", self._stream, byref(graph))
                self._here("cuGraphDestroy", graph)
            raise
        self._here("cuStreamEndCapture", self._stream, byref(graph))
        try:
            self._here("cuGraphInstantiateWithFlags", byref(ready), graph, c_uint64(0))
        finally:
            self._here("cuGraphDestroy", graph)
        return ready.value or 0

    def launch(self, graph: int) -> None:
        """Run a captured graph, in stream order."""
        self._here("cuGraphLaunch", c_void_p(graph), self._stream)

    def forget(self, graph: int) -> None:
        """Free a captured graph."""
        self._here("cuGraphExecDestroy", c_void_p(graph))

    def event(self) -> int:
        """Create an event: a point in the stream's work at which the GPU reads its clock; returns its handle."""
        event = c_void_p()
        self._here("cuEventCreate", byref(event), 0)
        return event.value or 0

    def record(self, event: int) -> None:
        """Let the GPU reach the event after the work that the stream was given so far."""
        self._here("cuEventRecord", c_void_p(event), self._stream)

    def repeat_record(self, event: int) -> None:
        """In a capture: the same at each launch."""
        self._here("cuEventRecordWithFlags", c_void_p(event), self._stream, EXTERNAL)

    def elapsed(self, first: int, last: int) -> float:
        """Seconds of the GPU between two recorded events; `wait` must have been called since."""
        milliseconds = c_float()
        self._here("cuEventElapsedTime", byref(milliseconds), c_void_p(first), c_void_p(last))
        return milliseconds.value / 1000

    def drop(self, event: int) -> None:
        """Free an event."""
        self._here("cuEventDestroy_v2", c_void_p(event))

    def close(self) -> None:
        """Destroy the stream."""
        self._here("cuStreamDestroy_v2", self._stream)

    def _here(self, name: str, *arguments: object) -> None:
        """Call a function in this context, from any thread."""
        with self.current():
            _call(self._library, name, *arguments)


class Room:
    """Device memory that all engines of one GPU share, one call at a time: as much as the largest of them needs.

    Each engine has its own execution context and stream. All of them use the GPU's primary context, so they can share
    memory.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        """Must be held for a whole call."""
        self._users = 0
        self._address, self._count = 0, 0

    def join(self) -> None:
        """Register a user."""
        with self.lock:
            self._users += 1

    def at_least(self, driver: Driver, count: int) -> int:
        """Grow to at least `count` bytes and return the address, which may change. `lock` must be held."""
        if self._count < count:
            self._free(driver)
            self._address, self._count = driver.allocate(count), count
        return self._address

    def leave(self, driver: Driver) -> None:
        """Unregister a user; the memory is freed with the last one."""
        with self.lock:
            self._users -= 1
            if not self._users:
                self._free(driver)

    def _free(self, driver: Driver) -> None:
        address, self._address, self._count = self._address, 0, 0
        if address:
            driver.free(address)


def capabilities() -> list[str]:
    """Compute capability of each GPU, such as `sm89`; raises `RuntimeMissing` without a driver."""
    library = _library()
    count = c_int()
    _call(library, "cuDeviceGetCount", byref(count))
    return [_capability(library, ordinal) for ordinal in range(count.value)]


def has_tf32(capability: str) -> bool:
    """Whether NVIDIA's libraries may compute in TF32 on GPUs such as `sm89`: from Ampere on, unless the environment
    forbids it.
    """
    return os.environ.get(TF32_OVERRIDE) != "0" and int(capability.removeprefix("sm")) >= AMPERE


def forces_tf32(capability: str) -> bool:
    """Whether the environment may make NVIDIA's libraries compute f32 in TF32 on such a GPU, against their options."""
    return has_tf32(capability) and TF32_OVERRIDE in os.environ


def gpu_name(device: str) -> str:
    """Name of the first GPU of a compute capability, or of the one with the number in `sm89:1`; raises
    `RuntimeMissing` where there is none.
    """
    library, handle, name = _library(), c_int(), ctypes.create_string_buffer(NAME_BYTES)
    _call(library, "cuDeviceGet", byref(handle), _ordinal(device))
    _call(library, "cuDeviceGetName", name, NAME_BYTES, handle)
    return name.value.decode()


def driver_version() -> tuple[int, int]:
    """The newest CUDA version that the driver supports, such as (13, 0); raises `RuntimeMissing` without a driver."""
    version = c_int()
    _call(_library(), "cuDriverGetVersion", byref(version))
    return version.value // 1000, version.value % 1000 // 10


def uncaptured(option: str, part: str) -> str:
    """Advice for a part whose calls can't be captured as a graph: to switch that off for this part alone."""
    return f"Write {option} = false under [part_options.{part}] of the profile, and build again."


def old_driver(wheels: str, major: str, instead: str = "") -> str | None:
    """Report a driver that is too old for wheels of a major version of CUDA; None where it isn't. `instead` is what to
    do other than to update it. Raises `RuntimeMissing` without a driver.
    """
    if major not in DRIVERS:
        return None
    (cuda, driver), newest = DRIVERS[major], driver_version()
    if newest >= cuda:
        return None
    return (
        f"{wheels} for CUDA {major} require an NVIDIA driver {driver} or later; this machine's supports CUDA "
        f"{newest[0]}.{newest[1]} only. Update the driver{instead}."
    )


def open_driver(device: str) -> Driver:
    """Open a GPU, as in `gpu_name`; raises `RuntimeMissing` where there is none."""
    return Driver(_library(), _ordinal(device))


def _ordinal(device: str) -> int:
    (capability, number), found = numbered(device), capabilities()
    places = [place for place, one in enumerate(found) if one == capability and number in (None, place)]
    if not places:
        raise RuntimeMissing(f"This machine has no {device} GPU; NVIDIA GPUs found: {', '.join(found) or 'none'}.")
    return places[0]


def _capability(library: Any, ordinal: int) -> str:
    device, major, minor = c_int(), c_int(), c_int()
    _call(library, "cuDeviceGet", byref(device), ordinal)
    _call(library, "cuDeviceGetAttribute", byref(major), MAJOR, device)
    _call(library, "cuDeviceGetAttribute", byref(minor), MINOR, device)
    return f"sm{major.value}{minor.value}"


def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as exc:
        raise RuntimeMissing(f"NVIDIA's driver cannot be loaded ({exc}). Install it.") from exc
    try:
        _call(library, "cuInit", 0)
    except CompileError as exc:
        raise RuntimeMissing(f"{exc} Check that the driver is running and the GPU is not in use.") from exc
    return library


def _call(library: Any, name: str, *arguments: object) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        text = c_char_p()
        library.cuGetErrorString(code, byref(text))
        reason = text.value.decode() if text.value else f"code {code}"
        advice = " Request a smaller size, or fewer images at once." if code == OUT_OF_MEMORY else ""
        raise CompileError(f"NVIDIA's driver: {name} failed ({reason}).{advice}")
