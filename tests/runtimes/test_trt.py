"""TensorRT for RTX: plans for GPUs that aren't here, and the driver's interface by a stand-in."""

import ctypes
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.compiler.lower import lowered
from latentc.core.bundle import TensorInfo
from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.core.progress import quiet
from latentc.runtimes import Job, Target
from latentc.runtimes.cuda import Driver, open_driver
from latentc.runtimes.host import HostEngine
from latentc.runtimes.trt import CAPABILITIES, TensorRTRTX, _Loaded

installed = pytest.mark.skipif(
    TensorRTRTX().unbuildable("sm89") is not None, reason=str(TensorRTRTX().unbuildable("sm89"))
)


@pytest.fixture
def case(make_case):
    """The small part, as TensorRT is given it."""
    other = make_case("onnxruntime")
    target = replace(other.target, runtime="tensorrt-rtx", device="sm89")
    return replace(other, adapter=TensorRTRTX(), target=target)


@installed
@pytest.mark.parametrize("device", CAPABILITIES)
def test_plans_are_built_for_gpus_that_are_not_here(case, tmp_path, device):
    out = tmp_path / "out"
    told = []
    out.mkdir()
    target = replace(case.target, device=device, precision="f16")
    with lowered(case.bundle.graph("unet"), "half", 23, None, half=True) as graph:  # sm75 multiplies no f32 matrices
        job = Job(case.bundle, "unet", graph, target)
        case.adapter.compile(job, out, lambda what, share: told.append((what, share)))
    assert (out / "engine.plan").stat().st_size > 100_000
    memory = json.loads((out / "memory.json").read_text())
    assert memory["weights_bytes"] > 0
    assert memory["activation_bytes"] > 0
    assert told, "the builder's phases are told of"
    assert all(what.startswith("unet: ") and 0 < share <= 1 for what, share in told)


@installed
def test_a_static_plan_and_a_broken_graph(case, tmp_path):
    case.static(tmp_path / "out", case.feeds())
    assert (tmp_path / "out" / "engine.plan").exists()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    (tmp_path / "other").mkdir()
    with pytest.raises(CompileError, match="TensorRT can't read unet"):
        case.adapter.compile(Job(case.bundle, "unet", broken, case.target), tmp_path / "other", quiet)


@installed
def test_options_and_devices_are_strict(monkeypatch):
    adapter = TensorRTRTX()
    adapter.check({"builder_optimization_level": 5})
    for value in (6, True, "3"):
        with pytest.raises(ProfileError, match="from 0 to 5"):
            adapter.check({"builder_optimization_level": value})
    with pytest.raises(ProfileError, match="Did you mean 'builder_optimization_level'"):
        adapter.check({"builder_optimisation_level": 5})
    assert "runs on NVIDIA's sm75" in adapter.unbuildable("sm90")
    assert adapter.precisions("sm90") == ()
    monkeypatch.setattr("latentc.runtimes.cuda._library", Memory)
    assert adapter.missing("sm89") is None
    assert adapter.missing("sm86") == "There is no GPU of sm86 here; NVIDIA GPUs found: sm75, sm89."
    assert adapter.devices() == ("sm75", "sm89")


class Memory:
    """The driver's functions over the host's memory: what is copied in comes out."""

    def __init__(self):
        self.blocks, self.calls, self.fails = {}, [], None

    def __getattr__(self, name):
        if name.startswith("do_"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
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

    def do_cuMemAlloc_v2(self, address, count):  # noqa: N802
        block = ctypes.create_string_buffer(count.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[address._obj.value] = block
        return 0

    def do_cuMemFree_v2(self, address):  # noqa: N802
        del self.blocks[address.value]
        return 0

    def do_cuMemcpyHtoDAsync_v2(self, to, source, count, _):  # noqa: N802
        ctypes.memmove(to.value, source.value, count.value)
        return 0

    def do_cuMemcpyDtoHAsync_v2(self, to, source, count, _):  # noqa: N802
        ctypes.memmove(to.value, source.value, count.value)
        return 0

    def do_cuGetErrorString(self, _, text):  # noqa: N802
        text._obj.value = b"out of memory"
        return 0


def test_the_driver_copies_and_says_what_failed():
    library = Memory()
    driver = Driver(library, 0)
    array = np.arange(6, dtype=np.float32)
    address = driver.allocate(array.nbytes)
    driver.copy_in(address, array)
    found = np.empty_like(array)
    driver.copy_out(found, address)
    driver.wait()
    assert (found == array).all()
    driver.free(address)
    driver.close()
    assert library.blocks == {}
    assert library.calls[-2:] == ["cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"]
    library.fails = "cuMemAlloc_v2"
    with pytest.raises(CompileError, match=r"cuMemAlloc_v2 failed \(out of memory\)"):
        driver.allocate(8)


class Context:
    """Doubles what it is fed: `sample` [1, 4, height, width] to `out_sample`."""

    def __init__(self):
        self.shapes, self.addresses, self.refuses = {}, {}, False

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return max(shape) <= 16

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        if self.refuses:
            return False
        count = int(np.prod(self.shapes["sample"]))
        read = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["sample"]))
        np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["out_sample"]))[:] = 2 * read
        return True


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """An engine over the stand-ins, its context and its device's memory."""
    shape = ("batch", 4, "height", "width")
    sample = (TensorInfo(name="sample", dtype="float32", shape=shape),)
    target = Target("tensorrt-rtx", "sm89", "f16", {}, sample, (sample[0].model_copy(update={"name": "out_sample"}),))
    context, memory = Context(), Memory()
    engine = SimpleNamespace(create_execution_context=lambda: context)
    library = SimpleNamespace(Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine))
    monkeypatch.setattr("latentc.runtimes.trt._library", lambda: library)
    monkeypatch.setattr("latentc.runtimes.trt._logger", lambda: SimpleNamespace(worst="", clear=lambda: None))
    monkeypatch.setattr("latentc.runtimes.cuda._library", lambda: memory)
    (tmp_path / "engine.plan").write_bytes(b"plan")
    found = _Loaded(tmp_path / "engine.plan", target)
    return HostEngine(target, found.call, found.release), context, memory


def test_an_engine_copies_in_runs_and_copies_out(loaded):
    engine, _, memory = loaded
    for side in (4, 8, 2):
        feed = np.random.default_rng(side).standard_normal((1, 4, side, side)).astype(np.float32)
        assert (engine.run({"sample": feed})["out_sample"] == 2 * feed).all()
    assert len(memory.blocks) == 2, "a buffer for each tensor, made larger where it had to be"
    engine.close()
    assert memory.blocks == {}
    assert memory.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_what_goes_wrong_on_the_device_is_said_and_nothing_is_freed_twice(loaded):
    engine, context, memory = loaded
    feed = np.zeros((1, 4, 4, 4), np.float32)
    engine.run({"sample": feed})
    with pytest.raises(CompileError, match="outside what the engine was built for"):
        engine.run({"sample": np.zeros((1, 4, 32, 32), np.float32)})
    memory.fails = "cuMemAlloc_v2"
    with pytest.raises(CompileError, match=r"out of memory.* Draw a smaller size"):
        engine.run({"sample": np.zeros((1, 4, 8, 8), np.float32)})
    memory.fails, context.refuses = None, True
    with pytest.raises(CompileError, match="TensorRT wouldn't run"):
        engine.run({"sample": feed})
    engine.close()
    assert memory.blocks == {}


def test_without_a_driver_that_is_said(monkeypatch):
    monkeypatch.setattr("latentc.runtimes.cuda.LIBRARY", "libnowhere.so.1")
    with pytest.raises(RuntimeMissing, match="Install NVIDIA's driver"):
        open_driver("sm89")
