"""Memory: what won't fit is refused before it is drawn, and what runs out is said to have run out."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from latentc.compiler import room
from latentc.compiler.build import build
from latentc.compiler.engines import Engines
from latentc.compiler.plan import plan
from latentc.compiler.predict import drawing_bytes
from latentc.compiler.priced import shape_in
from latentc.compiler.targets import wanted
from latentc.core.errors import CompileError, LatentcError, RequestError
from latentc.core.limits import is_out_of_memory
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import onnxruntime as ort_adapter
from latentc.runtimes import openvino as ov_adapter
from latentc.runtimes.border import border


@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32", "null", "torch-f32"])
def test_the_models_own_picture_takes_what_the_plan_says(bundle, name):
    opened, profile = bundle("sd1"), load_profile(name)
    _, engines = wanted(opened, profile, to_run=True)
    side = opened.manifest.model.default_size // opened.manifest.model.downscale
    found, planned = drawing_bytes(opened, engines, 2, side, side), plan(opened, profile)
    assert found == ((planned.held_bytes or None) if planned.measured else None)
    if planned.measured and name != "null":
        assert drawing_bytes(opened, engines, 2, 8 * side, 8 * side) > 2 * found


@pytest.mark.slow
def test_a_picture_that_wont_fit_is_refused_before_a_step(bundle, monkeypatch):
    opened, profile, steps = bundle("sd1"), load_profile("cpu-onnxruntime"), []
    build(opened, profile)
    with Pipeline.open(opened, profile) as pipeline:
        monkeypatch.setattr(room, "memory", lambda: (2_000_000_000, 1_000_000_000))
        monkeypatch.setattr(room, "swap", lambda: 0)
        for size, count in ((4096, 1), (512, 64)):
            with pytest.raises(RequestError, match=r"predicted to take \d+\.\d\d GB of memory, and this process"):
                pipeline(Request(prompt="x", width=size, height=size, count=count), steps.append)
        assert steps == []
        pipeline(Request(prompt="x", steps=1))
        monkeypatch.setattr(room, "memory", lambda: (None, None))
        assert room._room() is None


def test_what_a_process_holds_already_is_room_too(monkeypatch):
    monkeypatch.setattr(room, "swap", lambda: 500)
    monkeypatch.setattr(room, "memory", lambda: (10**15, 0))
    assert 10_000_000 < room._room() < 10**12
    monkeypatch.setattr(room, "memory", lambda: (1000, 10**15))
    assert room._room() == 1500


WORDS = [
    "std::bad_alloc",
    "Exception during initialization: Failed to allocate memory for requested buffer of size 41943040",
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "CUDA failure 2: out of memory ; GPU=0",
    "[GPU] CL_OUT_OF_RESOURCES error executing",
    "hipErrorOutOfMemory",
    "Unable to allocate 5.00 GiB for an array with shape (1, 2) and data type float32",
    "[Errno 12] Cannot allocate memory",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 17179869184 bytes",
    "RESOURCE_EXHAUSTED; while invoking native function hal.device.queue.alloca",
    "VK_ERROR_OUT_OF_DEVICE_MEMORY",
]


@pytest.mark.parametrize("words", WORDS)
def test_libraries_words_for_too_little_memory(words):
    with pytest.raises(CompileError) as caught, border(CompileError, "It can't be loaded", "Remove it."):
        raise RuntimeError(words)
    assert "memory ran out" in str(caught.value)
    assert "Remove it" not in str(caught.value)
    assert not is_out_of_memory("it is damaged: a Git LFS pointer")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32"])
def test_an_engine_that_finds_no_memory_is_not_said_to_be_damaged(bundle, monkeypatch, name):
    opened, profile = bundle("sd1"), load_profile(name)
    build(opened, profile)

    def no_memory(*_, **__):
        raise MemoryError if name == "cpu-onnxruntime" else RuntimeError("std::bad_alloc")

    monkeypatch.setattr(ort_adapter, "open_session", no_memory)
    real = ov_adapter._core()
    core = type("Core", (), {"import_model": no_memory, "__getattr__": lambda _, name: getattr(real, name)})
    monkeypatch.setattr(ov_adapter, "_core", core)
    with pytest.raises(LatentcError) as caught:
        Engines(opened, profile).preload(["unet"])
    assert "memory ran out" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("damaged", "Remove", "again"))
    monkeypatch.undo()
    with Pipeline.open(opened, profile) as pipeline:
        pipeline(Request(prompt="x", steps=1))


MANY_SIZES = """
import sys
import numpy as np
from pathlib import Path
from latentc.compiler.engines import Engines
from latentc.core.bundle import open_bundle
from latentc.core.shapes import shape_of
from latentc.profiles import load_profile

folder, name, capacity = sys.argv[1:]
profile = load_profile(name)
if capacity:
    profile = profile.with_options({"CPU_RUNTIME_CACHE_CAPACITY": int(capacity)})
opened = open_bundle(folder)
inputs = opened.part("unet").inputs

def run(height, width):
    sizes = {"batch": 2, "height": height, "width": width, "length": 77}
    feeds = {one.name: np.zeros(shape_of(one.shape, sizes), one.dtype) for one in inputs}
    engines.engine("unet", {name: array.shape for name, array in feeds.items()}).run(feeds)

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

with Engines(opened, profile) as engines:
    run(32, 32)
    for height in range(8, 12):
        for width in range(8, 20, 2):
            run(height, width)
    before = megabytes()
    for height in range(12, 16):
        for width in range(8, 20, 2):
            run(height, width)
    print(megabytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not room.STATUS.exists(), reason="no such account of memory here")
@pytest.mark.parametrize(("name", "capacity"), [("cpu-openvino-f32", "0"), ("cpu-onnxruntime", "")])
def test_a_long_life_of_many_sizes_takes_no_more_memory(bundle, name, capacity):
    """OpenVINO's unbounded cache takes 47 MB for the second 24 sizes of this model."""
    opened = bundle("sd1")
    build(opened, load_profile(name))
    command = [sys.executable, "-c", MANY_SIZES, str(opened.folder), name, capacity]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 25


def test_only_the_models_own_picture_is_passed_unseen(bundle, monkeypatch):
    opened, seen = bundle("sd1"), []
    model = opened.manifest.model.model_copy(update={"default_size": 128, "default_height": 64})
    wide = replace(opened, manifest=opened.manifest.model_copy(update={"model": model}))
    monkeypatch.setattr(room, "drawing_bytes", lambda *size, tile, **_: seen.append((size[2:], tile)))
    for more in ({}, {"guidance": 1.0, "count": 2}, {"width": 64, "height": 128}, {"height": 128, "vae_tile": 64}):
        room.check_room(wide, (), Request(prompt="x", **more), sequential=False)
    assert seen == [((2, 16, 16), 8)]


@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32"])
def test_tiles_take_less_memory(bundle, name):
    opened = bundle("sd1")
    _, engines = wanted(opened, load_profile(name), to_run=True)
    whole, tiled = (drawing_bytes(opened, engines, 2, 64, 64, tile=tile) for tile in (None, 16))
    decoder = [want for want in engines if want.part == "vae_decoder"]
    decoded = [drawing_bytes(opened, decoder, 2, side, side) for side in (64, 16)]
    assert whole - tiled == decoded[0] - decoded[1] > 0


@pytest.mark.parametrize(("part", "scale"), [("unet", 8), ("vae_decoder", 8), ("vae_encoder", 1)])
def test_a_plan_is_of_the_models_own_width_and_height(bundle, part, scale):
    opened = bundle("sd1")
    model = opened.manifest.model.model_copy(update={"default_size": 128, "default_height": 64})
    wide = replace(opened, manifest=opened.manifest.model_copy(update={"model": model}))
    target = SimpleNamespace(shape=None, inputs=opened.part(part).inputs)
    (size,) = {shape[2:] for shape in shape_in(wide, part, target).values() if len(shape) == 4}
    assert size == (64 // scale, 128 // scale)
