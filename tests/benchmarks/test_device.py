"""The device's own times of the calls of a generation, over engines that ask for them and one that doesn't."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.benchmarks.device import ClockedEngines, DeviceLog
from latentc.benchmarks.records import OnDevice
from latentc.core.engine import DeviceUse, Loops
from latentc.core.manifest import TensorInfo
from latentc.runtimes import Target
from latentc.runtimes.host import HostEngine

ROLES = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder", "unet": "denoiser", "vae_decoder": "decoder"}
BUNDLE = SimpleNamespace(part=lambda name: SimpleNamespace(role=ROLES[name]))
SAMPLE = (TensorInfo(name="sample", dtype="float32", shape=(2,)),)


class Engines:
    """Each call takes a millisecond of the device more than the one before, and replays after the first."""

    notices = ("proved",)

    def __init__(self, *, asked=True):
        self.asked, self.made = asked, {}

    def engine(self, part, shapes):
        if part not in self.made:
            use = DeviceUse()

            def call(feeds, sizes):
                use.calls += 1
                use.seconds += use.calls / 1000
                use.replays += use.calls > 1
                return {"out": feeds["sample"] * 2}

            self.made[part] = HostEngine(
                Target("x", "y", "f32", {}, SAMPLE, ()), call, None, use if self.asked else None
            )
        return self.made[part]

    def fit(self, passes):
        return None

    def check_room(self, request):
        self.asked_room = request

    def describe(self):
        return {"unet": "x"}

    def close(self):
        for engine in self.made.values():
            engine.close()


def draw(engines):
    feeds = {"sample": np.ones(2, np.float32)}
    for part in ("text_encoder", "text_encoder_2"):
        assert (engines.engine(part, {}).run(feeds)["out"] == 2).all()
    bound = engines.engine("unet", {}).bind(feeds)
    for _ in range(3):
        assert (bound({})["out"] == 2).all()
    engines.engine("vae_decoder", {}).run(feeds)


def test_each_call_is_noted_by_stage_and_replays_are_counted():
    log = DeviceLog()
    engines = ClockedEngines(Engines(), log)
    draw(engines)
    found = OnDevice(**log.by_stage(BUNDLE))
    assert found.text_encoder == pytest.approx(0.002), "both of them"
    assert found.denoiser == pytest.approx((0.001, 0.002, 0.003)), "bound calls too"
    assert found.vae_decoder == pytest.approx(0.001)
    assert log.counts() == {"text_encoder": (0, 1), "text_encoder_2": (0, 1), "unet": (2, 3), "vae_decoder": (0, 1)}
    log.clear()
    draw(engines)
    assert OnDevice(**log.by_stage(BUNDLE)).denoiser == pytest.approx((0.004, 0.005, 0.006))
    assert log.counts()["unet"] == (3, 3)
    assert (engines.notices, engines.describe()) == (("proved",), {"unet": "x"})
    engines.close()


def test_engines_that_do_not_ask_are_passed_on_unchanged():
    log, own = DeviceLog(), Engines(asked=False)
    engines = ClockedEngines(own, log)
    draw(engines)
    assert log.by_stage(BUNDLE) is log.counts() is None
    assert engines.engine("unet", {}) is own.engine("unet", {})


def test_calls_of_a_loop_on_the_device_are_noted_too():
    class Looped:
        def __init__(self, engine):
            self.run, self.bind, self.close, self.device_use = engine.run, engine.bind, engine.close, engine.device_use

        @contextmanager
        def loop(self, feeds):
            yield SimpleNamespace(step=lambda given: self.run({**feeds, **given}), read=lambda name: name)

    own, log = Engines(), DeviceLog()
    own.engine("unet", {})
    own.made["unet"] = Looped(own.made["unet"])
    engine = ClockedEngines(own, log).engine("unet", {})
    assert isinstance(engine, Loops)
    with engine.loop({"sample": np.ones(2, np.float32)}) as chain:
        for _ in range(3):
            chain.step({})
        assert chain.read("latents") == "latents"
    assert log.seconds["unet"] == pytest.approx([0.001, 0.002, 0.003])
    assert log.counts() == {"unet": (2, 3)}
    engine.close()
