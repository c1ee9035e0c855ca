"""TensorRT's engines over a stand-in for the driver: contexts, copies, captured calls, and messages of failures."""

import ctypes
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest

from latentc.core.engine import Clocked
from latentc.core.errors import CompileError, RuntimeMissing
from latentc.core.manifest import TensorInfo
from latentc.runtimes import Target, trt_cache
from latentc.runtimes.cuda import Driver, gpu_name, open_driver
from latentc.runtimes.host import HostEngine
from latentc.runtimes.trt import tensorrt, tensorrt_rtx
from latentc.runtimes.trt_chain import PlanChain
from latentc.runtimes.trt_log import Messages
from latentc.runtimes.trt_plan import ROOMS, LoadedPlan

from .gpu_driver import WORK_MILLISECONDS, Memory


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
    assert library.calls[-2:] == ["cuStreamDestroy_v2", "cuCtxPopCurrent_v2"]
    assert not library.is_current
    library.fails = "cuMemAlloc_v2"
    with pytest.raises(CompileError, match=r"cuMemAlloc_v2 failed \(out of memory\)"):
        driver.allocate(8)


class Later(Memory):
    """A stream whose copies are made when it is waited for, as late as the driver may make them."""

    def __init__(self):
        super().__init__()
        self.work = []

    def do_cuMemcpyHtoDAsync_v2(self, *arguments):  # noqa: N802
        self.work.append((super().do_cuMemcpyHtoDAsync_v2, arguments))
        return 0

    def do_cuMemcpyDtoHAsync_v2(self, *arguments):  # noqa: N802
        self.work.append((super().do_cuMemcpyDtoHAsync_v2, arguments))
        return 0

    def do_cuStreamSynchronize(self, stream):  # noqa: N802
        work, self.work = self.work, []
        for copy, arguments in work:
            copy(*arguments)
        return 0


def test_copies_through_pinned_memory_keep_the_streams_order():
    library = Later()
    driver = Driver(library, 0)
    one, other, found = (np.full(6, value, np.float32) for value in (1, 2, 0))
    address, second = driver.allocate(one.nbytes), np.empty(6, np.float32)
    driver.copy_in(address, one)
    one[:] = 5
    driver.copy_out(found, address)
    assert (found == 0).all(), "it isn't there yet"
    driver.wait()
    assert (found == 1).all(), "what the array was when it was copied"
    driver.copy_in(address, other)
    driver.copy_out(second, address)
    driver.copy_in(address, np.full(3, 7, np.float32))  # a smaller one, before the copies before it were made
    driver.copy_out(found, address)
    driver.wait()
    assert (second == 2).all()
    assert found.tolist() == [7, 7, 7, 2, 2, 2]
    assert len(library.pinned) == 1, "one for each address"
    driver.free(address)
    driver.close()
    assert library.pinned == library.blocks == {}


def test_a_copy_that_fails_fills_no_array_later():
    library = Later()
    driver = Driver(library, 0)
    lost, found = np.zeros(2, np.float32), np.zeros(2, np.float32)
    address = driver.allocate(lost.nbytes)
    driver.copy_in(address, np.ones(2, np.float32))
    driver.copy_out(lost, address)
    library.fails = "cuStreamSynchronize"
    with pytest.raises(CompileError, match="cuStreamSynchronize failed"):
        driver.wait()
    with pytest.raises(CompileError, match="cuStreamSynchronize failed"):
        driver.copy_in(address, found)  # the pinned memory may still be read
    library.fails = None
    driver.copy_in(address, np.full(2, 3, np.float32))
    driver.copy_out(found, address)
    driver.wait()
    assert (lost == 0).all()
    assert (found == 3).all()


@pytest.mark.parametrize("limit", ["large", "refused"])
def test_what_cannot_be_pinned_is_copied_directly(monkeypatch, limit):
    library = Later()
    driver = Driver(library, 0)
    if limit == "large":
        monkeypatch.setattr("latentc.runtimes.cuda.PINNED_BYTES", 8)
    else:
        library.fails = "cuMemHostAlloc"
    array, found = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    address = driver.allocate(array.nbytes)
    for _ in range(2):
        driver.copy_in(address, array)
        driver.copy_out(found, address)
        driver.wait()
        assert (found == array).all()
    assert library.calls.count("cuMemHostAlloc") == (limit == "refused"), "it isn't tried for each copy"
    driver.free(address)
    assert library.pinned == library.blocks == {}


def test_a_gpu_has_one_context_until_the_process_ends():
    library = Memory()
    for ordinal in (0, 1, 0):
        Driver(library, ordinal).close()
    assert library.calls.count("cuDevicePrimaryCtxRetain") == 2
    assert not [name for name in library.calls if "Release" in name or "Reset" in name]


class Context:
    """Doubles what it is fed: `sample` [1, 4, height, width] to `out_sample`. Works in as many bytes as it is fed."""

    def __init__(self, memory):
        self.shapes, self.addresses, self.memory, self.room = {}, {}, memory, None
        self.refuses = self.refuses_capture = False

    def __getattribute__(self, name):
        if not name.startswith("_") and callable(getattr(Context, name, None)):
            assert self.memory.is_current, f"{name} without a current context"
        return super().__getattribute__(name)

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return max(shape) <= 16

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        return 4 * int(np.prod(self.shapes["sample"]))

    def set_device_memory(self, address, count):
        self.room = address, count

    def execute_async_v3(self, stream):
        if self.refuses or (self.refuses_capture and self.memory.capturing is not None):
            return False
        assert len(self.memory.blocks[self.room[0]]) >= self.room[1] >= self.update_device_memory_size_for_shapes()
        count, addresses = int(np.prod(self.shapes["sample"])), dict(self.addresses)

        def work():
            read = np.ctypeslib.as_array((ctypes.c_float * count).from_address(addresses["sample"]))
            np.ctypeslib.as_array((ctypes.c_float * count).from_address(addresses["out_sample"]))[:] = 2 * read
            self.memory.clock += WORK_MILLISECONDS

        if self.memory.capturing is None:
            work()
        else:
            self.memory.capturing.append(work)
        return True


class Config:
    """Stands for the configuration of a context of TensorRT for RTX, and for its cache: code is of one version."""

    code, version = b"", b"one "

    def create_runtime_cache(self):
        return self

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def set_runtime_cache(self, cache):
        self.taken = self.code

    def deserialize(self, blob):
        fits = blob.startswith(self.version)
        self.code = blob if fits else b""
        return fits

    def serialize(self):
        return self.code


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Makes an engine over the stand-ins, and its context; they share the device's memory."""
    shape = ("batch", 4, "height", "width")
    sample = (TensorInfo(name="sample", dtype="float32", shape=shape),)
    target = Target("tensorrt-rtx", "sm89", "f16", {}, sample, (sample[0].model_copy(update={"name": "out_sample"}),))
    memory, log = Memory(), Messages()
    monkeypatch.setattr("latentc.runtimes.cuda._library", lambda: memory)
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "state"))
    gpus = (SimpleNamespace(vendor="NVIDIA", driver="nvidia 580.65"),)
    monkeypatch.setattr("latentc.runtimes.trt_cache.machine", lambda: SimpleNamespace(gpus=gpus))
    trt_cache._driver.cache_clear()
    folder = tmp_path / "engines" / "unet-1"
    folder.mkdir(parents=True)
    (folder / "engine.plan").write_bytes(b"plan")
    strategies = SimpleNamespace(USER_MANAGED=2)

    def made(device="sm89", plan=b"plan", **how):
        (folder / "engine.plan").write_bytes(plan)
        context = Context(memory)
        config = Config()
        engine = SimpleNamespace(
            create_execution_context=lambda how: context if how in (config, 2) else None,
            create_runtime_config=lambda: config,
            streamable_weights_size=100,
        )
        library = SimpleNamespace(
            Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
            ExecutionContextAllocationStrategy=strategies,
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(NONE=3),
            __version__="1.7.1",
        )
        opened = LoadedPlan(library, log, folder / "engine.plan", replace(target, device=device), **how)
        context.engine, context.config = engine, config
        return HostEngine(target, opened.call, opened.release, opened.use, partial(PlanChain, opened)), context

    made.memory, made.folder = memory, folder
    yield made
    assert not memory.is_current, "the thread's own context is current again"
    assert memory.blocks == memory.pinned == {}, "all was given back"
    ROOMS.clear()
    trt_cache._driver.cache_clear()


@pytest.fixture
def loaded(load):
    return *load(), load.memory


def test_an_engine_copies_in_runs_and_copies_out(loaded):
    engine, _, memory = loaded
    for side in (4, 8, 2):
        feed = np.random.default_rng(side).standard_normal((1, 4, side, side)).astype(np.float32)
        assert (engine.run({"sample": feed})["out_sample"] == 2 * feed).all()
    assert len(memory.blocks) == 3, "a buffer for each tensor and room to compute, made larger where it had to be"
    engine.close()
    assert memory.blocks == {}
    assert memory.calls[-2:] == ["cuStreamDestroy_v2", "cuCtxPopCurrent_v2"]


def test_what_goes_wrong_on_the_device_is_said_and_nothing_is_freed_twice(loaded):
    engine, context, memory = loaded
    feed = np.zeros((1, 4, 4, 4), np.float32)
    engine.run({"sample": feed})
    with pytest.raises(CompileError, match="outside the range that the engine was built for"):
        engine.run({"sample": np.zeros((1, 4, 32, 32), np.float32)})
    memory.fails = "cuMemAlloc_v2"
    with pytest.raises(CompileError, match=r"out of memory.* Request a smaller size"):
        engine.run({"sample": np.zeros((1, 4, 8, 8), np.float32)})
    memory.fails, context.refuses = None, True
    with pytest.raises(CompileError, match="TensorRT failed to run"):
        engine.run({"sample": feed})
    engine.close()
    assert memory.blocks == {}


def test_an_engine_is_called_and_closed_in_other_threads(load, monkeypatch):
    (engine, _), memory, freed = load(graphed=True), load.memory, []
    forget = LoadedPlan._forget
    monkeypatch.setattr(LoadedPlan, "_forget", lambda plan: freed.append(memory.is_current) or forget(plan))
    feed = np.ones((1, 4, 4, 4), np.float32)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in (first, second):
            assert (thread.submit(engine.run, {"sample": feed}).result()["out_sample"] == 2).all()
        second.submit(engine.close).result()
    assert freed == [True]


def test_what_is_copied_in_is_kept_until_the_copy_ends(loaded, monkeypatch):
    engine, _, memory = loaded
    copied = []
    copy = Driver.copy_in
    monkeypatch.setattr(Driver, "copy_in", lambda self, to, array: copied.append(ref(array)) or copy(self, to, array))
    wait = Driver.wait
    monkeypatch.setattr(Driver, "wait", lambda self: [kept.append(one() is not None) for one in copied] + [wait(self)])
    kept = []
    across = np.ones((1, 4, 4, 8), np.float32)[..., ::2]
    assert (engine.run({"sample": across})["out_sample"] == 2).all()
    assert kept == [True]
    monkeypatch.setattr(Driver, "allocate", lambda *_: 1 / 0)  # the second copy isn't begun
    with pytest.raises(CompileError, match="division by zero"):
        engine.run({"sample": np.ones((1, 4, 8, 16), np.float32)[..., ::2]})
    assert memory.calls.count("cuMemcpyHtoDAsync_v2") == 1
    monkeypatch.undo()
    engine.close()


def test_what_is_bound_is_copied_in_once(loaded):
    engine, _, memory = loaded
    feed = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    run = engine.bind({"sample": feed})
    for _ in range(3):
        assert (run({})["out_sample"] == 2 * feed).all()
    assert memory.calls.count("cuMemcpyHtoDAsync_v2") == 1
    assert (engine.run({"sample": feed + 1})["out_sample"] == 2 * (feed + 1)).all()
    assert (run({})["out_sample"] == 2 * feed).all(), "another feed took its place, so it is copied in again"
    engine.close()


@pytest.mark.parametrize("name", ["sm89", "sm89:1"])
def test_engines_of_a_gpu_take_turns_in_one_room(load, name):
    (small, one), (large, other), memory = load(), load(name), load.memory
    feeds = [np.ones((1, 4, side, side), np.float32) for side in (4, 16)]
    small.run({"sample": feeds[0]})
    large.run({"sample": feeds[1]})
    assert one.room[0] != other.room[0], "it was moved to grow"
    assert (small.run({"sample": feeds[0]})["out_sample"] == 2).all()
    assert one.room == (other.room[0], 4 * feeds[0].size), "each has as much of it as it needs"
    small.close()
    assert other.room[0] in memory.blocks
    assert (large.run({"sample": feeds[1]})["out_sample"] == 2).all()
    large.close()


def test_a_captured_call_is_launched_until_its_room_moves(load):
    (graphed, _), (other, _), memory = load(graphed=True), load(), load.memory
    feed = np.random.default_rng(2).standard_normal((1, 4, 4, 4)).astype(np.float32)
    for factor in (1, 2, 3):
        assert (graphed.run({"sample": factor * feed})["out_sample"] == 2 * factor * feed).all()
    assert memory.calls.count("cuGraphLaunch") == 2
    other.run({"sample": np.ones((1, 4, 16, 16), np.float32)})
    assert (graphed.run({"sample": feed})["out_sample"] == 2 * feed).all()
    assert memory.calls.count("cuGraphExecDestroy") == 1
    assert memory.calls.count("cuGraphLaunch") == 2, "captured where its room was before, it isn't launched again"
    assert memory.calls.count("cuStreamBeginCapture_v2") == 2
    graphed.close()
    other.close()
    assert memory.calls.count("cuGraphExecDestroy") == 2


def copies(memory):
    return memory.calls.count("cuMemcpyHtoDAsync_v2"), memory.calls.count("cuMemcpyDtoHAsync_v2")


def test_a_captured_call_has_its_copies(load):
    """Through the pinned memory of each tensor, which a replay only fills and reads."""
    (engine, _), memory = load(graphed=True), load.memory
    one, other = (np.full((1, 4, 4, 4), value, np.float32) for value in (1, 5))
    engine.run({"sample": other})
    assert copies(memory) == (2, 2), "for the first call, and in the graph"
    across = np.ones((1, 4, 4, 8), np.float32)[..., ::2]
    found = [engine.run({"sample": array})["out_sample"] for array in (one, other, across)]
    assert [array.max() for array in found] == [2, 10, 2], "arrays of their own"
    assert copies(memory) == (2, 2)
    first, second = engine.bind({"sample": one}), engine.bind({"sample": other})
    for run, outputs, copied in ((first, 2, (3, 4)), (first, 2, (3, 4)), (second, 10, (4, 4))):
        assert (run({})["out_sample"] == outputs).all()
        assert copies(memory) == copied, "what is bound is copied once, before the replay"
    assert (engine.run({"sample": one})["out_sample"] == 2).all(), "by the graph that copies it"
    assert (second({})["out_sample"] == 10).all()
    assert engine.device_use.replays == 7
    assert memory.calls.count("cuStreamBeginCapture_v2") == 2
    engine.close()


def test_copies_without_pinned_memory_are_made_around_the_replay(load, monkeypatch):
    (engine, _), memory = load(graphed=True), load.memory
    monkeypatch.setattr("latentc.runtimes.cuda.PINNED_BYTES", 8)
    for factor in (1, 2, 3):
        assert (engine.run({"sample": np.full((1, 4, 4, 4), factor, np.float32)})["out_sample"] == 2 * factor).all()
        assert copies(memory) == (factor, factor)
    assert engine.device_use.replays == 2
    engine.close()


@pytest.mark.parametrize("graphed", [False, True])
def test_a_step_of_a_chain_waits_once_and_captures_the_copies_of_its_inputs(load, graphed):
    (engine, _), memory = load(graphed=graphed), load.memory
    with engine.chain({"sample": np.zeros((1, 4, 4, 4), np.float32)}, {"sample": "out_sample"}) as chain:
        for value in range(1, 6):
            made, waits = copies(memory)[0], memory.calls.count("cuStreamSynchronize")
            chain.step({"sample": np.full((1, 4, 8, 4), value, np.float32)[:, :, ::2]})
            captures = graphed and value < 3  # each direction once, after a first run that must end
            assert copies(memory)[0] - made == (2 if captures else int(not graphed))
            assert memory.calls.count("cuStreamSynchronize") - waits == 1 + captures
            assert (chain.read("out_sample") == 2 * value).all()
        chain.step({})
        assert (chain.read("out_sample") == 20).all(), "a step without this input copies nothing over it"
    assert engine.device_use.replays == 3 * graphed
    engine.close()


def test_the_device_s_own_clock_is_read_around_the_work_and_replays_are_counted(load):
    feed = {"sample": np.zeros((1, 4, 4, 4), np.float32)}
    for graphed in (False, True):
        engine, _ = load(graphed=graphed)
        assert isinstance(engine, Clocked)
        found = []
        for _ in range(3):
            engine.run(feed)
            found.append((engine.device_use.seconds, engine.device_use.calls, engine.device_use.replays))
        # the first call of a captured engine runs before the capture, which itself runs nothing
        assert [seconds for seconds, _, _ in found] == pytest.approx([0.016, 0.032, 0.048]), "without the copies"
        assert [(calls, replays) for _, calls, replays in found] == [(1, 0), (2, graphed), (3, 2 * graphed)]
        engine.close()
    created, dropped = load.memory.calls.count("cuEventCreate"), load.memory.calls.count("cuEventDestroy_v2")
    assert created == dropped == 4


@pytest.mark.parametrize("graphed", [False, True])
def test_outputs_of_a_chain_are_inputs_of_its_next_call_without_a_copy(load, graphed):
    (engine, context), memory = load(graphed=graphed), load.memory
    feed, back = np.random.default_rng(3).standard_normal((1, 4, 4, 4)).astype(np.float32), {"sample": "out_sample"}
    for factor in (1, 3):
        with engine.chain({"sample": factor * feed}, back) as chain, engine.chain({"sample": feed}, back) as other:
            copied = memory.calls.count("cuMemcpyHtoDAsync_v2"), memory.calls.count("cuMemcpyDtoHAsync_v2")
            for made in range(1, 6):
                chain.step({})
                if made == 3:
                    other.step({})
                    assert (memory.calls.count("cuMemcpyHtoDAsync_v2"), copied[1]) == copied
                    assert (engine.run({"sample": feed})["out_sample"] == 2 * feed).all(), "calls between those"
            assert (chain.read("out_sample") == 2**5 * factor * feed).all()
            assert (other.read("out_sample") == 2 * feed).all(), "with buffers of its own"
    assert len(memory.blocks) == 7, "two for each chain, which the second pair used again, and those of other calls"
    assert engine.device_use.calls == 2 * 7
    assert engine.device_use.replays == graphed * (3 + 1 + 5 + 1), "each direction was captured once"
    with engine.chain({"sample": np.ones((1, 4, 2, 2), np.float32)}, back) as chain:
        chain.step({})
        assert (chain.read("out_sample") == 2).all()
        chain.step({"sample": np.full((1, 4, 2, 2), 7, np.float32)})
        assert (chain.read("out_sample") == 14).all(), "what is fed replaces what came back"
    context.refuses = True
    large = {"sample": np.ones((1, 4, 8, 8), np.float32)}
    with engine.chain(large, back) as chain, pytest.raises(CompileError, match="TensorRT failed to run"):
        chain.step({})
    context.refuses = False
    assert (engine.run({"sample": feed})["out_sample"] == 2 * feed).all()
    engine.close()
    with pytest.raises(RuntimeMissing, match="This engine is closed"), engine.chain({"sample": feed}, back):
        pass


def test_a_capture_that_fails_says_why(load):
    (engine, context), memory = load(graphed=True), load.memory
    context.refuses_capture = True
    feed = np.ones((1, 4, 4, 4), np.float32)
    with pytest.raises(CompileError, match="TensorRT failed to run .* cannot capture this .* Write cuda_graph = false"):
        engine.run({"sample": feed})
    assert memory.calls.count("cuStreamEndCapture") == memory.calls.count("cuGraphDestroy") == 1
    context.refuses_capture = False
    assert (engine.run({"sample": feed})["out_sample"] == 2).all()
    engine.close()


def test_what_fails_while_closing_keeps_nothing_else(load):
    (engine, _), memory = load(), load.memory
    engine.run({"sample": np.ones((1, 4, 4, 4), np.float32)})
    memory.fails = "cuMemFree_v2"
    with pytest.raises(CompileError, match="cuMemFree_v2 failed"):
        engine.close()
    assert memory.calls[-2:] == ["cuStreamDestroy_v2", "cuCtxPopCurrent_v2"]
    memory.fails = None
    memory.blocks.clear()
    assert memory.pinned == {}
    other, _ = load()
    assert (other.run({"sample": np.ones((1, 4, 4, 4), np.float32)})["out_sample"] == 2).all(), "in a room of its own"
    other.close()


def test_what_cannot_be_captured_is_refused_in_words(load):
    (engine, context), memory = load(graphed=True, compiles=True), load.memory
    feed = np.ones((1, 4, 4, 4), np.float32)
    context.is_stream_capturable = lambda stream: False
    with pytest.raises(
        CompileError, match=r"cannot capture this .* Write cuda_graph = false for its part, .*\[part_options\."
    ):
        engine.run({"sample": feed})
    assert "cuStreamBeginCapture_v2" not in memory.calls
    context.is_stream_capturable = lambda stream: True
    assert (engine.run({"sample": feed})["out_sample"] == 2).all()
    assert "cuStreamBeginCapture_v2" in memory.calls
    engine.close()


def test_compiled_code_is_kept_by_gpu_and_driver_outside_the_bundle(load, tmp_path, monkeypatch):
    feed = {"sample": np.ones((1, 4, 4, 4), np.float32)}
    kept = tmp_path / "state" / "compiled"
    brought = load.folder.parent / ".timing"

    def called(compiled):
        engine, context = load(compiles=True)
        assert (context.config.strategy, context.config.dynamic_shapes_kernel_specialization_strategy) == (2, 3)
        taken, context.config.code = context.config.taken, context.config.code or compiled
        assert (engine.run(feed)["out_sample"] == 2).all()
        engine.close()
        return taken

    assert called(b"one code") == b""
    (cache,) = kept.iterdir()
    assert cache.name.startswith("rtx-1.7.1-sm89-GPU-1-nvidia-580.65-")
    assert cache.read_bytes() == b"one code"
    assert called(b"") == b"one code"
    cache.write_bytes(b"code of another version")
    with pytest.raises(CompileError, match="refuses the code that was compiled .* It was removed: run again"):
        load(compiles=True)
    assert called(b"one other code") == b""
    assert cache.read_bytes() == b"one other code"
    brought.mkdir()
    cache.rename(brought / cache.name)
    assert called(b"one code") == b"", "code that a bundle brings is not run"
    gpus = (SimpleNamespace(vendor="NVIDIA", driver="nvidia"),)  # as in a container that hides the driver's version
    monkeypatch.setattr("latentc.runtimes.trt_cache.machine", lambda: SimpleNamespace(gpus=gpus))
    trt_cache._driver.cache_clear()
    assert called(b"one newer") == b""
    assert len(list(kept.iterdir())) == 2
    assert any("-CUDA-13.0-" in path.name for path in kept.iterdir())
    assert [path.name for path in load.folder.iterdir()] == ["engine.plan"], "the artifact is as it was"
    shutil.rmtree(kept)
    kept.write_text("not a folder")
    assert called(b"one code") == b"", "what can't be kept is compiled again"


def test_compiled_code_is_kept_after_the_first_call_of_each_shape(load, tmp_path, monkeypatch):
    """A server that is killed never releases its engines."""
    written = []
    write = trt_cache.write_bytes
    monkeypatch.setattr(trt_cache, "write_bytes", lambda path, code: written.append(code) or write(path, code))
    engine, context = load(compiles=True)
    calls = [(4, b"one a"), (4, b"one x"), (8, b"one b"), (4, b"one y"), (2, b"one b")]
    for side, code in calls:  # code of the same length was changed too
        context.config.code = code
        engine.run({"sample": np.ones((1, 4, side, side), np.float32)})
    assert written == [b"one a", b"one b"], "each once, and not what didn't change"
    engine.close()
    assert written == [b"one a", b"one b"]
    assert load(compiles=True, plan=b"plaN")[1].config.taken == b"", "code of another plan, of equal length"
    (cache,) = (tmp_path / "state" / "compiled").iterdir()
    assert cache.read_bytes() == b"one b"


def test_a_proof_is_of_the_compiled_code_that_is_kept(load, tmp_path, monkeypatch):
    """Its digest changes with the file, and a later load, of which nothing is proved again, adds nothing to it."""
    feed = {"sample": np.ones((1, 4, 4, 4), np.float32)}
    adapter = tensorrt_rtx()
    monkeypatch.setattr("latentc.runtimes.trt.capabilities", lambda: ["sm89"])
    monkeypatch.setattr(type(adapter), "versions", lambda self: {self._is.name: "1.7.1"})
    assert adapter.compiled(load.folder, "sm86+sm89") == ""
    for code in (b"one proved", b"one later"):
        engine, context = load(compiles=True)
        context.config.code = code
        engine.run(feed)
        engine.close()
        assert adapter.compiled(load.folder, "sm86+sm89") == hashlib.sha256(b"one proved").hexdigest()
    (cache,) = (tmp_path / "state" / "compiled").iterdir()
    cache.write_bytes(b"one replaced")
    assert adapter.compiled(load.folder, "sm89") == hashlib.sha256(b"one replaced").hexdigest()
    assert adapter.compiled(load.folder, "sm120") == "", "a GPU that isn't here"
    assert tensorrt().compiled(load.folder, "sm89") == "", "its plans have all their code"


def test_weights_that_are_streamed_have_a_budget(load):
    (engine, context), (ample, other) = load(streamed=30), load(streamed=300)
    assert context.engine.weight_streaming_budget_v2 == 30
    assert other.engine.weight_streaming_budget_v2 == 100, "no more than there are"
    engine.close()
    ample.close()


def test_without_a_driver_that_is_said(monkeypatch):
    monkeypatch.setattr("latentc.runtimes.cuda.LIBRARY", "libnowhere.so.1")
    for ask in (open_driver, gpu_name):
        with pytest.raises(RuntimeMissing, match="NVIDIA.s driver cannot be loaded .libnowhere"):
            ask("sm89")
