"""The yardstick: it multiplies what it says it multiplies, and divides by the right number."""

import pytest

from latentc.benchmarks import ceiling
from latentc.benchmarks.ceiling import (
    DEPTH,
    entry,
    measure_ceiling,
    product_engine,
    product_flops,
    weight,
    write_product,
)
from latentc.compiler.flops import count_flops
from latentc.core.errors import ProfileError, RuntimeMissing
from latentc.core.recipes import RECIPES
from latentc.core.tensors import psnr_db
from latentc.profiles import load_profile
from latentc.runtimes import RUNTIMES, runtime

READERS = ("cpu-openvino", "cpu-openvino-f32", "cpu-onnxruntime")


@pytest.mark.parametrize("name", READERS)
def test_every_product_is_computed(tmp_path, name):
    """The answer is that of numpy, in the precision that was asked for: nothing was left out or folded away."""
    profile = load_profile(name)
    for precision in runtime(profile.runtime).precisions("CPU"):
        if RECIPES[precision].int8_weights:
            assert measure_ceiling(profile, precision) is None
            continue
        folder = tmp_path / precision
        folder.mkdir()
        expected = entry(256)
        for _ in range(DEPTH):
            expected = expected @ weight(256)
        engine = product_engine(profile, precision, 256, folder)
        found = engine.run({"x": entry(256)})["rows"]
        engine.close()
        near = psnr_db(expected.max(axis=1), found)
        assert near > {"f32": 100, "f16": 50, "bf16": 35}[precision]
        assert (near < 100) == (precision != "f32"), "a narrower type was asked for, and f32 was computed"


def test_its_flop_are_those_of_the_graph(tmp_path):
    write_product(tmp_path / "product.onnx", 96)
    assert count_flops(tmp_path / "product.onnx", {"x": (96, 96)}) == product_flops(96)


def ticking(seconds):
    """A clock under which each call takes the next of these."""
    now, times = [0.0], iter(seconds)
    started = [False]

    def clock():
        started[0] = not started[0]
        if not started[0]:
            now[0] += next(times)
        return now[0]

    return clock


def test_the_rate_is_flop_by_the_fastest_call(monkeypatch):
    calls = [5e-3, 4e-3, 2e-3, 8e-3, 4e-3]
    found = measure_ceiling(load_profile("cpu-onnxruntime"), "f32", sizes=(64,), clock=ticking(calls))
    assert found == pytest.approx(DEPTH * 2 * 64**3 / 2e-3 / 1e12)


def test_larger_sizes_are_tried_while_the_rate_grows():
    profile = load_profile("cpu-onnxruntime")

    def best(seconds):
        """The first size that reached the rate that was found."""
        clock = ticking([each for each in seconds for _ in range(ceiling.CALLS)])
        found = measure_ceiling(profile, "f32", sizes=(32, 64, 128), clock=clock)
        rates = {size: product_flops(size) / each / 1e12 for size, each in zip((32, 64, 128), seconds, strict=True)}
        return next(size for size, rate in rates.items() if rate == pytest.approx(found))

    assert best([1e-3, 4e-3, 16e-3]) == 128
    assert best([1e-3, 8e-3, 1e-9]) == 32  # not faster at 64: 128 isn't tried
    assert best([1e-3, 8e-3 / 1.01, 1e-9]) == 64  # a little faster: it is the best, and the last
    assert best([0.2, 0.6, 1e-9]) == 64  # a call takes too long: 128 isn't tried


def test_a_real_clock_gives_a_rate_that_a_machine_can_have():
    """Nothing is compared with the clock: other processes may take all of the machine."""
    found = measure_ceiling(load_profile("cpu-onnxruntime"), "f32", sizes=(256,))
    assert found is not None
    assert 0 < found < 100, "TFLOP/s of a CPU"


def test_runtimes_without_graphs_have_none_and_missing_ones_say_so(monkeypatch):
    assert measure_ceiling(load_profile("null"), "f32") is None
    with pytest.raises(ProfileError):
        measure_ceiling(load_profile("cpu-onnxruntime").model_copy(update={"options": {"no_such": True}}), "f32")
    with pytest.raises(RuntimeMissing, match="cannot be measured on this machine"):
        measure_ceiling(load_profile("cpu-openvino").model_copy(update={"device": "GPU.7"}), "f32")
    assert set(RUNTIMES) >= {"openvino", "onnxruntime", "null"}
