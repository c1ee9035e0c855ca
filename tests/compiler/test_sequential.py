"""One part at a time: the same images, and never two engines in memory."""

import threading

import numpy as np
import pytest

from latentc.compiler import engines
from latentc.compiler.build import build
from latentc.compiler.plan import plan
from latentc.compiler.predict import drawing_bytes
from latentc.compiler.targets import wanted
from latentc.core.errors import BundleError, RuntimeMissing
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

PROFILE = load_profile("cpu-onnxruntime")
REQUEST = Request(prompt="a lighthouse", negative_prompt="fog", width=64, height=64, steps=3, seed=5)


@pytest.fixture
def counted(monkeypatch):
    """Names of the engines that are loaded now, of each load, and the most at once."""
    loaded, order, most = [], [], []
    load_engine = engines.load_engine

    class Counted:
        def __init__(self, engine, part):
            self.engine, self.part = engine, part
            self.run, self.bind = engine.run, engine.bind
            loaded.append(part)
            order.append(part)
            most.append(len(loaded))

        def close(self):
            loaded.remove(self.part)
            self.engine.close()

    monkeypatch.setattr(
        engines,
        "load_engine",
        lambda bundle, one, adapter, want: Counted(load_engine(bundle, one, adapter, want), want.part),
    )
    return loaded, order, most


def test_each_part_is_loaded_when_it_runs_and_frees_the_one_before(bundle, counted):
    loaded, order, most = counted
    opened = bundle("sd1")
    build(opened, PROFILE)
    with Pipeline.open(opened, PROFILE) as pipeline:
        expected = pipeline(REQUEST).images
        assert sorted(loaded) == ["text_encoder", "unet", "vae_decoder"]
    assert loaded == []
    order.clear(), most.clear()
    with Pipeline.open(opened, PROFILE, sequential=True) as pipeline:
        assert loaded == []
        for _ in range(2):
            assert np.array_equal(pipeline(REQUEST).images, expected)
        assert loaded == ["vae_decoder"]
    assert order == ["text_encoder", "unet", "vae_decoder"] * 2
    assert most == [1] * 6
    assert loaded == []
    with pytest.raises(RuntimeMissing, match="closed"):
        pipeline(REQUEST)


def test_threads_take_turns(bundle):
    opened = bundle("sd1")
    build(opened, PROFILE)
    with Pipeline.open(opened, PROFILE) as pipeline:
        expected = pipeline(REQUEST).images.tobytes()
    found = []
    with Pipeline.open(opened, PROFILE, sequential=True) as pipeline:
        threads = [threading.Thread(target=lambda: found.append(pipeline(REQUEST).images.tobytes())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 4


def test_an_engine_that_is_not_built_is_reported_before_the_first_runs(own_bundle):
    with pytest.raises(BundleError, match="is not built for profile"):
        Pipeline.open(own_bundle(), PROFILE, sequential=True)


def test_the_plan_counts_the_largest_part(bundle):
    opened = bundle("sd1")
    whole, single = plan(opened, PROFILE), plan(opened, PROFILE.sequentially())
    held = {one.part: one.held_bytes for one in whole.engines if one.part in opened.drawing}
    assert whole.held_bytes - single.held_bytes == sum(held.values()) - max(held.values())
    _, engines = wanted(opened, PROFILE, to_run=False)
    assert drawing_bytes(opened, engines, 2, 16, 16, sequential=True) < drawing_bytes(opened, engines, 2, 16, 16)
