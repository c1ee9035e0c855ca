"""A stand-in for NVIDIA's driver, over the host's memory."""

import ctypes
from threading import local


def no_library(module):
    raise FileNotFoundError("libnvinfer.so.11: cannot open shared object file")


DECLARED = {
    *("cuCtxPopCurrent_v2", "cuCtxPushCurrent_v2", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetCount"),
    *("cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuDriverGetVersion", "cuEventCreate", "cuEventDestroy_v2"),
    *("cuEventElapsedTime", "cuEventRecord", "cuEventRecordWithFlags", "cuGetErrorString", "cuGraphDestroy"),
    *("cuGraphExecDestroy", "cuGraphInstantiateWithFlags", "cuGraphLaunch", "cuInit", "cuMemAlloc_v2"),
    *("cuMemFreeHost", "cuMemFree_v2", "cuMemHostAlloc", "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2"),
    *("cuStreamBeginCapture_v2", "cuStreamCreate", "cuStreamDestroy_v2", "cuStreamEndCapture", "cuStreamSynchronize"),
}
"""The driver's functions that latentc calls. Compared with cuda.h of the wheel nvidia-cuda-runtime 13.5.37."""

OUTSIDE_CONTEXTS = {
    *("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetCount"),
    *("cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuDriverGetVersion", "cuGetErrorString"),
}
"""Functions that need no current context."""


WORK_MILLISECONDS = 16


class Memory:
    """The driver's functions over the host's memory: what is copied in comes out."""

    def __init__(self):
        self.blocks, self.pinned, self.calls, self.fails = {}, {}, [], None
        self.captured = self.capturing = None
        self.graphs = {}
        self.entered, self.version = local(), 13000
        self.clock, self.events, self.marks = 0, 0, {}

    @property
    def is_current(self):
        """Whether the GPU's context is current in this thread."""
        return getattr(self.entered, "times", 0) > 0

    def do_cuCtxPushCurrent_v2(self, context):  # noqa: N802
        self.entered.times = getattr(self.entered, "times", 0) + 1
        return 0

    def do_cuCtxPopCurrent_v2(self, context):  # noqa: N802
        assert self.is_current
        self.entered.times -= 1
        return 0

    def __getattr__(self, name):
        if name not in DECLARED:  # as `ctypes` does for a library without the function
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
            assert self.is_current or name in OUTSIDE_CONTEXTS, f"{name} without a current context"
            if self.fails == name:
                return 2
            return getattr(self, f"do_{name}", lambda *_: 0)(*arguments)

        return call

    def do_cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 2
        return 0

    def do_cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal
        return 0

    def do_cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: (7, 8), 76: (5, 9)}[attribute][device.value]
        return 0

    def do_cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = self.version
        return 0

    def do_cuDeviceGetName(self, name, count, device):  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def do_cuStreamBeginCapture_v2(self, stream, mode):  # noqa: N802
        self.capturing = []
        return 0

    def do_cuStreamEndCapture(self, stream, graph):  # noqa: N802
        self.captured, self.capturing = self.capturing, None
        return 0

    def do_cuGraphInstantiateWithFlags(self, ready, graph, flags):  # noqa: N802
        ready._obj.value = 5 + len(self.graphs)
        self.graphs[ready._obj.value] = self.captured
        return 0

    def do_cuGraphLaunch(self, graph, stream):  # noqa: N802
        for work in self.graphs[graph.value]:
            work()
        return 0

    def do_cuEventCreate(self, event, flags):  # noqa: N802
        assert flags == 0, "an event without timing has no time"
        self.events += 1
        event._obj.value = self.events
        return 0

    def do_cuEventRecord(self, event, stream):  # noqa: N802
        assert self.capturing is None, "in a capture this is an order of the work only"
        self.marks[event.value] = self.clock
        return 0

    def do_cuEventRecordWithFlags(self, event, stream, flags):  # noqa: N802
        assert flags == 1
        assert self.capturing is not None, "it is invalid elsewhere"
        self.capturing.append(lambda: self.marks.update({event.value: self.clock}))
        return 0

    def do_cuEventElapsedTime(self, milliseconds, first, last):  # noqa: N802
        milliseconds._obj.value = self.marks[last.value] - self.marks[first.value]
        return 0

    def do_cuMemAlloc_v2(self, address, count):  # noqa: N802
        block = ctypes.create_string_buffer(count.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[address._obj.value] = block
        return 0

    def do_cuMemFree_v2(self, address):  # noqa: N802
        del self.blocks[address.value]
        return 0

    def do_cuMemHostAlloc(self, address, count, flags):  # noqa: N802
        block = ctypes.create_string_buffer(count.value)
        address._obj.value = ctypes.addressof(block)
        self.pinned[address._obj.value] = block
        return 0

    def do_cuMemFreeHost(self, address):  # noqa: N802
        del self.pinned[address.value]
        return 0

    def do_cuMemcpyHtoDAsync_v2(self, to, source, count, _):  # noqa: N802
        return self.copied(to.value, source.value, count.value, source.value)

    def do_cuMemcpyDtoHAsync_v2(self, to, source, count, _):  # noqa: N802
        return self.copied(to.value, source.value, count.value, to.value)

    def copied(self, to, source, count, on_host):
        """Copy now, or in each launch of what is captured; only pinned memory has its place until then."""

        def work():
            self.clock += 1000
            ctypes.memmove(to, source, count)

        assert self.capturing is None or on_host in self.pinned
        work() if self.capturing is None else self.capturing.append(work)
        return 0

    def do_cuGetErrorString(self, _, text):  # noqa: N802
        text._obj.value = b"out of memory"
        return 0
