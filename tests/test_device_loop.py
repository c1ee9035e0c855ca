"""Latents that stay on the device: engines that take the scheduler's step, drawn with, proved, and planted with faults.

ONNX Runtime's CPU provider runs what its CUDA provider does, with the host's memory in place of the device's.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.compiler import lower
from latentc.compiler.build import build
from latentc.compiler.engines import load
from latentc.compiler.looped import without_step
from latentc.compiler.make import compile_into
from latentc.compiler.proof import LOOP_DB, Steps, check_steps
from latentc.compiler.targets import wanted
from latentc.compiler.trial import measure_steps
from latentc.core.engine import Loops
from latentc.core.errors import CancelledError, NotFiniteError, ParityError, ProfileError, ShapeError
from latentc.core.looped import FACTORS, GUIDED, NEXT_LATENTS, POSITIVE
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import Profile, load_profile
from latentc.profiles.profile import Shapes
from latentc.runtimes.chain import RECORDING, SessionChain, chains
from latentc.sampling.host import latent_shape, load_host

from .test_pictures import NEGATIVE as FOG
from .test_pictures import PROMPT, diffusers_picture

PROFILE = load_profile("cpu-onnxruntime").model_copy(update={"loop": "device"})
REQUEST = Request(prompt=PROMPT, width=128, height=128, steps=6, guidance=5.0, seed=3)


class Standing:
    """The engines of a pipeline, each replaced by `wrap`."""

    def __init__(self, engines, wrap):
        self._engines, self._wrap = engines, wrap

    def __getattr__(self, name):
        return getattr(self._engines, name)

    def engine(self, part, shapes):
        return self._wrap(self._engines.engine(part, shapes))


class Hidden:
    """An engine without its loop."""

    def __init__(self, engine):
        self.run, self.bind, self.close = engine.run, engine.bind, engine.close


class Altered(Hidden):
    """An engine whose loop is fed other values, by name, and whose reads are noted."""

    def __init__(self, engine, change=lambda name, array: array, reads=None):
        super().__init__(engine)
        self._engine, self._change, self._reads = engine, change, reads

    @contextmanager
    def loop(self, feeds):
        with self._engine.loop(self._changed(feeds)) as chain:

            def read(name):
                if self._reads is not None:
                    self._reads.append(name)
                return chain.read(name)

            yield SimpleNamespace(step=lambda given: chain.step(self._changed(given)), read=read)

    def _changed(self, feeds):
        return {name: self._change(name, array) for name, array in feeds.items()}


@pytest.fixture(scope="module")
def pipelines(bundle):
    """`pipelines(family)`: an open pipeline whose denoiser takes the step, and the same on the host."""
    made = {}

    def opened(family):
        if family not in made:
            built = build(bundle(family), PROFILE)
            (figures,) = built.steps.denoisers.values()
            assert figures.call_db > 110
            assert figures.loop_db > 130
            assert figures.picture_db > 60
            made[family] = Pipeline.open(bundle(family), PROFILE)
        return made[family], made[family].through(lambda engines: Standing(engines, Hidden))

    yield opened
    for pipeline in made.values():
        pipeline.close()


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_pictures_are_those_of_the_host_and_of_diffusers(pipelines, checkpoint, family):
    on_device, on_host = pipelines(family)
    request = REQUEST.model_copy(update={"width": 144, "height": 80, "count": 2, "negative_prompt": FOG, "guidance": 6})
    shape = latent_shape(on_device.bundle.manifest.model, request)
    latents = np.random.default_rng(5).standard_normal(shape, dtype=np.float32)
    for guidance in (6.0, 1.0):
        asked = request.model_copy(update={"guidance": guidance} | ({"negative_prompt": ""} if guidance == 1 else {}))
        found, plain = (one(asked, latents=latents) for one in (on_device, on_host))
        assert not any("on the host" in notice for notice in found.notices)
        assert any("because calls of its engine are joined, split or recorded" in notice for notice in plain.notices)
        assert found.engines["unet" if family != "sd3" else "transformer"].endswith("with the scheduler's step")
        assert psnr_db(plain.latents, found.latents) >= 100
        expected = (diffusers_picture(checkpoint(family), asked, latents) * 255).round()
        assert expected.std() > 5, "a flat picture shows nothing"
        assert psnr_db(expected, found.images.astype(np.float64)) >= 60
        assert len(found.step_seconds) == len(plain.step_seconds)


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpm++2m-karras", "heun", "lms", "pndm"])
def test_each_scheduler_draws_what_it_draws_on_the_host(pipelines, scheduler):
    on_device, on_host = pipelines("scenes")
    request = REQUEST.model_copy(update={"scheduler": scheduler, "count": 2})
    assert psnr_db(on_host(request).latents, on_device(request).latents) >= 100


def test_what_the_engine_does_not_compute_falls_back_with_a_notice(pipelines):
    on_device, on_host = pipelines("scenes")
    for change, why in (
        ({"scheduler": "euler-ancestral"}, "the scheduler adds noise"),
        ({"scheduler": "unipc", "steps": 10}, "the scheduler uses more than 4 earlier outputs"),
        ({"guidance_rescale": 0.5}, "guidance_rescale depends on the whole output"),
    ):
        request = REQUEST.model_copy(update=change)
        found = on_device(request)
        assert found.notices == (f"Guidance and the scheduler's steps were computed on the host, because {why}.",)
        assert (found.images == on_host(request).images).all()
    joined = on_device.draw_many([REQUEST, REQUEST.model_copy(update={"seed": 4})])
    assert all("because calls of its engine are joined" in one.notices[0] for one in joined)


def test_latents_are_read_once_or_after_each_step_for_who_watches(pipelines):
    on_device, on_host = pipelines("scenes")
    reads, steps, others = [], [], []
    noted = on_device.through(lambda engines: Standing(engines, lambda one: alter(one, reads=reads)))
    noted(REQUEST)
    assert reads == [NEXT_LATENTS]
    reads.clear()
    noted(REQUEST, steps.append)
    on_host(REQUEST, others.append)
    assert reads == [NEXT_LATENTS, GUIDED] * 6 + [NEXT_LATENTS]
    for ours, plain in zip(steps, others, strict=True):
        assert (ours.index, ours.total) == (plain.index, plain.total)
        assert psnr_db(plain.latents, ours.latents) > 100
        assert psnr_db(plain.estimate, ours.estimate) > 100
    with pytest.raises(CancelledError, match="Cancelled after denoiser call 2 of 6"):
        on_device(REQUEST, lambda step: step.index < 2)
    large = np.full((1, 4, 16, 16), 3e38, np.float32)
    with pytest.raises(NotFiniteError, match="The latents after denoiser call 6 of 6"):
        on_device(REQUEST, latents=large)


def test_engines_of_one_size_and_parts_that_are_loaded_one_at_a_time(bundle, pipelines):
    profile = PROFILE.model_copy(update={"shapes": Shapes(sizes=("own",))})
    _, on_host = pipelines("scenes")
    build(bundle("scenes"), profile)
    with Pipeline.open(bundle("scenes"), profile) as pipeline:
        found = pipeline(REQUEST)
    assert found.notices == ()
    assert psnr_db(on_host(REQUEST).latents, found.latents) >= 100
    with Pipeline.open(bundle("scenes"), PROFILE, sequential=True) as pipeline:
        found = pipeline(REQUEST)
    assert "because calls of its engine are joined, split or recorded, or it is loaded for each" in found.notices[0]
    assert psnr_db(on_host(REQUEST).latents, found.latents) >= 100


def test_threads_and_requests_between_steps_draw_the_same_bytes(pipelines):
    on_device, _ = pipelines("scenes")
    alone = [on_device(REQUEST.model_copy(update={"seed": seed})).images for seed in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(on_device, REQUEST.model_copy(update={"seed": seed})) for seed in (1, 2)]
    assert all((job.result().images == one).all() for job, one in zip(jobs, alone, strict=True))
    between = []
    other = REQUEST.model_copy(update={"seed": 2})
    found = on_device(
        REQUEST.model_copy(update={"seed": 1}),
        lambda step: between.append(on_device(other)) if step.index == 3 else None,
    )
    assert (found.images == alone[0]).all()
    assert (between[0].images == alone[1]).all()


def alter(engine, **how):
    return Altered(engine, **how) if isinstance(engine, Loops) else engine


def factor(place, value):
    """Change one of `FACTORS`."""

    def change(name, array):
        if name != FACTORS:
            return array
        made = array.copy()
        made[place] = value(made[place])
        return made

    return change


FAULTS = {
    "guidance of the wrong sign": factor(0, lambda one: -one),
    "negative rows alone": lambda name, array: array * 0 if name == POSITIVE else array,
    "the next sample is not scaled": factor(1, lambda _: 1.0),
    "a coefficient 0.1 % off": factor(3, lambda one: one * np.float32(1.001)),
    "history of the call before is lost": factor(slice(4, 6), np.zeros_like),
    "history of three calls before is lost": factor(slice(8, 10), np.zeros_like),
    "the first timestep always": lambda name, array: array * 0 + 999 if name == "timestep" else array,
}


@pytest.fixture(scope="module")
def sound(pipelines, bundle):
    pipelines("scenes")
    with load(bundle("scenes"), PROFILE) as engines:
        yield bundle("scenes"), load_host(bundle("scenes")), engines


def judged(sound, wrap):
    """Check what the engines reach whose denoiser is wrapped."""
    opened, host, engines = sound
    found = measure_steps(
        opened, host, "unet", lambda part, shapes: wrap(engines.engine(part, shapes)), None, guided=True
    )
    check_steps(opened, PROFILE, wanted(opened, PROFILE, to_run=True)[1], Steps(denoisers={"unet": found}))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_loop_are_refused(sound, fault):
    with pytest.raises(ParityError, match=r"of unet in a walk on the device .* agree with those from the host to"):
        judged(sound, lambda engine: alter(engine, change=FAULTS[fault]))


def test_buffers_that_do_not_change_places_are_refused(sound, monkeypatch):
    monkeypatch.setattr(SessionChain, "_way", property(lambda _: 0, lambda *_: None), raising=False)
    with pytest.raises(ParityError, match="in a walk on the device"):
        judged(sound, lambda engine: engine)


def test_an_engine_whose_loop_was_not_compared_is_refused(sound):
    assert judged(sound, lambda engine: engine).loop_db > LOOP_DB
    with pytest.raises(ParityError, match=r"No reference of unet fits a walk on the device.*Leave loop = \"device\""):
        judged(sound, lambda engine: Hidden(engine) if isinstance(engine, Loops) else engine)


def test_a_build_refuses_a_graph_with_a_fault(own_bundle, monkeypatch):
    append = lower.append_step

    def wrong(model, sample):
        append(model, sample)
        (change,) = (node for node in model.graph if node.op_type == "Sub" and node.name.startswith("step."))
        positive, negative = change.inputs
        change.replace_input_with(0, negative)
        change.replace_input_with(1, positive)
        return model

    monkeypatch.setattr(lower, "append_step", wrong)
    with pytest.raises(ParityError, match="in a walk on the device"):
        build(own_bundle("scenes"), PROFILE)


def test_tensorrt_for_rtx_builds_the_graph_in_f16(bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    profile = load_profile("rtx-4090").model_copy(update={"loop": "device"})
    adapter, wants = wanted(bundle("scenes"), profile, to_run=False)
    (want,) = (one for one in wants if one.part == "unet")
    compile_into(tmp_path, bundle("scenes"), profile, adapter, want)
    assert (tmp_path / "engine.plan").stat().st_size > 1_000_000
    (text,) = (one for one in wants if one.part == "text_encoder")
    assert want.fields.loop
    assert text.fields.loop is None


def test_the_key_says_where_the_step_is_taken(pipelines, tmp_path, latentc):
    pipeline, _ = pipelines("scenes")
    path, folder = tmp_path / "mine.toml", tmp_path / "scenes.bundle"
    shutil.copytree(pipeline.bundle.folder, folder, copy_function=os.link)
    text = 'title = "mine"\nruntime = "onnxruntime"\nloop = "device"\n[options]\nenable_mem_pattern = false\n'
    path.write_text(text)

    def rows():
        said = json.loads(latentc("why", folder, "--profile", path, "--json").stdout)
        return {row["part"]: row for row in said}

    assert rows()["unet"]["hit"]
    path.write_text(text.replace("loop", "# loop"))
    assert rows()["text_encoder"]["hit"], "only the denoiser differs"
    shutil.rmtree(folder / "engines" / rows()["unet"]["engine"], ignore_errors=True)  # another test's
    assert rows()["unet"]["differences"] == {"loop": [1, None]}


def test_profiles_and_models_without_it(bundle):
    other = load_profile("cpu-openvino-f32").model_copy(update={"loop": "device"})
    with pytest.raises(ProfileError, match=r'has loop = "device", which openvino does not support on CPU\. Leave loop'):
        wanted(bundle("scenes"), other, to_run=False)
    with pytest.raises(ValueError, match="loop"):
        Profile.model_validate({"name": "x", "title": "x", "runtime": "onnxruntime", "loop": "gpu"})
    assert without_step(bundle("scenes"), PROFILE) is None
    part = SimpleNamespace(
        role="denoiser",
        inputs=(SimpleNamespace(name="sample", shape=(1, 9)),),
        outputs=(SimpleNamespace(shape=(1, 4)),),
    )
    model = SimpleNamespace(latents_input="sample")
    inpaints = SimpleNamespace(manifest=SimpleNamespace(model=model, parts={"unet": part}))
    assert without_step(inpaints, PROFILE).startswith("Guidance and the scheduler's steps of unet are computed on the")
    assert without_step(inpaints, load_profile("cpu-onnxruntime")) is None


def test_engines_refuse_wrong_inputs_as_without_the_step(sound):
    engine = sound[2].engine(
        "unet", {"sample": (2, 4, 16, 16), "timestep": (1,), "encoder_hidden_states": (2, 77, 128)}
    )
    with pytest.raises(ShapeError, match="missing: "):
        engine.run({})
    feeds = {"sample": np.zeros((2, 4, 16, 16), np.float32), "timestep": np.zeros(1, np.float32)}
    with pytest.raises(ShapeError, match="missing: "):
        engine.run(feeds)
    assert list(engine.run({**feeds, "encoder_hidden_states": np.zeros((2, 77, 128), np.float32)})) == ["out_sample"]


def test_recorded_calls_have_a_number_for_each_direction(monkeypatch):
    """ONNX Runtime replays the call of a number with the addresses that it was recorded with."""
    called = []
    session = SimpleNamespace(
        io_binding=lambda: SimpleNamespace(bind_ortvalue_input=lambda *_: None, bind_ortvalue_output=lambda *_: None),
        run_with_iobinding=lambda binding, options: called.append((binding, options.get_run_config_entry(RECORDING))),
    )
    target = SimpleNamespace(number=None, outputs=())
    make = chains(session, target, "cpu", records=True)
    feeds = {"sample": np.zeros((1, 4), np.float32)}
    one, other = make(), make()
    for chain, times in ((one, 4), (other, 2), (one, 1)):
        chain.start(feeds, {}, {"sample": "next"})
        for _ in range(times):
            chain.step({})
    assert [number for _, number in called] == ["1", "2", "1", "2", "3", "4", "1"]
    assert len({id(binding) for binding, _ in called}) == 4
