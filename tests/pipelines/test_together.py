"""Several requests at once: the same bytes as one by one, in fewer calls."""

import re
import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from latentc.compiler.build import build
from latentc.core.errors import CancelledError, CompileError, RequestError, ShapeError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

ASKED = {"steps": 4, "scheduler": "euler", "width": 64, "height": 64}
REQUESTS = (
    Request(prompt="a red cube", seed=1, guidance=5.0, **ASKED),
    Request(prompt="a lighthouse in fog", negative_prompt="people", seed=2, guidance=2.0, **ASKED),
    Request(prompt="a cat", seed=3, guidance=1.0, **ASKED),
    Request(prompt="a dog", seed=4, count=2, **ASKED),
    Request(prompt="a dog", seed=5, **ASKED | {"steps": 2, "scheduler": "euler-ancestral"}),
    Request(prompt="a tree", seed=6, **ASKED | {"width": 96}),
)
"""Guided and not, of several images, and two that can't be joined with the others: other timesteps, another size."""


class Counted:
    """An engine that counts its calls, and their rows."""

    def __init__(self, engine, rows):
        self._engine, self._rows = engine, rows

    def bind(self, feeds):
        run = self._engine.bind(feeds)

        def counted(others):
            self._rows.append(len(others["sample"]))
            return run(others)

        return counted


class Counting:
    """Engines whose denoisers count."""

    def __init__(self, engines):
        self._engines, self.rows = engines, []

    def __getattr__(self, name):
        return getattr(self._engines, name)

    def engine(self, part, shapes):
        found = self._engines.engine(part, shapes)
        return Counted(found, self.rows) if part == "unet" else found


@pytest.fixture
def drawing(bundle):
    """An open pipeline, and the rows of each denoiser call."""
    build(bundle("sd1"), load_profile("cpu-onnxruntime"))
    with Pipeline.open(bundle("sd1"), "cpu-onnxruntime") as pipeline:
        counting = Counting(pipeline._work.engines)
        yield pipeline.through(lambda _: counting), counting.rows


@pytest.mark.parametrize("profile", ["cpu-openvino", "cpu-openvino-w8", "cpu-openvino-f32", "cpu-onnxruntime"])
def test_the_same_bytes_as_one_by_one(bundle, profile):
    if profile.endswith("w8"):
        pytest.importorskip("nncf", reason="nncf is not installed (the extra quantize)")
    build(bundle("sd1"), load_profile(profile))
    with Pipeline.open(bundle("sd1"), profile) as pipeline:
        if profile == "cpu-openvino" and "bf16" not in pipeline.describe()["unet"]:
            pytest.skip("this CPU does not compute in bf16")
        alone = [pipeline(request) for request in REQUESTS]
        found = pipeline.draw_many(REQUESTS)
    for one, other in zip(alone, found, strict=True):
        assert np.array_equal(one.latents, other.latents), other.request.prompt
        assert np.array_equal(one.images, other.images)
        assert (one.request, one.notices) == (other.request, other.notices)


def test_pytorch_rounds_rows_of_a_batch_in_another_way(bundle):
    build(bundle("sd1"), load_profile("torch-f32"))
    with Pipeline.open(bundle("sd1"), "torch-f32") as pipeline:
        for one, other in zip(map(pipeline, REQUESTS), pipeline.draw_many(REQUESTS), strict=True):
            assert psnr_db(one.latents, other.latents) > 100


def test_calls_are_joined(drawing):
    """The first four of the requests have 2, 2, 1 and 4 rows at the same timesteps."""
    pipeline, rows = drawing
    pipeline.draw_many(REQUESTS[:4])
    assert rows == [9] * 4
    rows.clear()
    pipeline.draw_many(REQUESTS)
    assert sum(rows) == 4 * 9 + 2 * 2 + 4 * 2
    assert len(rows) == 4 + 1 + 4, "the fifth request begins at the timestep of the others"


def test_one_that_ends_early_leaves_the_others(drawing):
    pipeline, rows = drawing
    pipeline.draw_many([REQUESTS[0], REQUESTS[1].model_copy(update={"scheduler": "heun"})])
    assert rows[-1] == 2


def test_an_error_stops_one_request(drawing):
    pipeline, _ = drawing
    wrong = Request(prompt="x", steps=4, fill="noise")
    first, second, third = pipeline.draw_many([REQUESTS[0], wrong, REQUESTS[1]], return_exceptions=True)
    assert isinstance(second, RequestError)
    assert np.array_equal(first.images, pipeline(REQUESTS[0]).images)
    assert np.array_equal(third.images, pipeline(REQUESTS[1]).images)
    with pytest.raises(RequestError, match="fill needs an image"):
        pipeline.draw_many([REQUESTS[0], wrong])


def test_calls_that_fail_together_are_computed_one_by_one(drawing, monkeypatch):
    """Such as more rows than an engine takes, or than memory holds."""
    pipeline, rows = drawing
    real = Counted.bind

    def failing(self, feeds):
        run = real(self, feeds)

        def call(others):
            if len(others["sample"]) > 2:
                raise CompileError("too many rows")
            return run(others)

        return call

    alone = [pipeline(request) for request in REQUESTS[:2]]
    monkeypatch.setattr(Counted, "bind", failing)
    rows.clear()
    found = pipeline.draw_many([*REQUESTS[:2], REQUESTS[3]], return_exceptions=True)
    assert all(np.array_equal(one.images, other.images) for one, other in zip(alone, found, strict=False))
    assert isinstance(found[2], CompileError), "it has four rows by itself"
    assert set(rows) == {2}


def test_rows_that_do_not_fit_in_memory_are_not_joined(drawing, monkeypatch):
    pipeline, rows = drawing
    counting = pipeline._work.engines
    real = counting._engines.check_room

    def check_room(request):
        if request.count > 1:
            raise RequestError("predicted to take more")
        real(request)

    monkeypatch.setattr(counting, "check_room", check_room, raising=False)
    pipeline.draw_many(REQUESTS[:2])
    assert set(rows) == {2}


def test_an_error_between_calls_reaches_all(drawing, monkeypatch):
    """Nobody waits forever for a call that was never computed."""
    pipeline, _ = drawing

    def no_memory(*_):
        raise MemoryError("no room to compare calls")

    monkeypatch.setattr("latentc.pipelines.together._Meeting._groups", no_memory)
    found = pipeline.draw_many(REQUESTS[:2], return_exceptions=True)
    assert ["no room to compare calls" in str(one) for one in found] == [True, True]


def test_threads_that_cannot_start_are_not_waited_for(drawing, monkeypatch):
    pipeline, _ = drawing
    started = []

    def start(self):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        threading.Thread.start(self)

    monkeypatch.setattr("latentc.pipelines.together.Thread", type("Few", (threading.Thread,), {"start": start}))
    with pytest.raises(RuntimeError, match="can't start"):
        pipeline.draw_many(REQUESTS[:3])


def test_an_adapter_that_is_not_there_fails_its_request(drawing):
    pipeline, _ = drawing
    found = pipeline.draw_many(
        [REQUESTS[0], REQUESTS[1].model_copy(update={"adapters": {"none": 1.0}})], return_exceptions=True
    )
    assert np.array_equal(found[0].images, pipeline(REQUESTS[0]).images)
    assert isinstance(found[1], RequestError)


def test_one_request_can_be_cancelled(drawing):
    pipeline, _ = drawing
    owner = {}

    def on_step(step):
        owner.setdefault(threading.get_ident(), len(owner))
        return not (owner[threading.get_ident()] == 0 and step.index == 2)

    found = pipeline.draw_many(REQUESTS[:3], on_step, return_exceptions=True)
    assert sum(isinstance(one, CancelledError) for one in found) == 1
    for request, one in zip(REQUESTS, found, strict=False):
        assert isinstance(one, CancelledError) or np.array_equal(one.images, pipeline(request).images)


def test_each_request_has_its_own_image_and_steps(drawing):
    """The image as the bytes of a file, too."""
    pipeline, _ = drawing
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(image).save(file := BytesIO(), "PNG")
    requests = [REQUESTS[0].model_copy(update={"strength": 0.5}), REQUESTS[1]]
    steps = [], []
    found = pipeline.draw_many(requests, [one.append for one in steps], inputs=[{"image": file.getvalue()}, {}])
    assert [len(one) for one in steps] == [2, 4]
    assert np.array_equal(found[0].images, pipeline(requests[0], image=image).images)
    assert np.array_equal(found[1].images, pipeline(requests[1]).images)


def test_a_check_finds_what_a_call_would(drawing):
    pipeline, rows = drawing
    assert pipeline.check(REQUESTS[0]) == pipeline(REQUESTS[0]).request
    rows.clear()
    for wrong in (
        {"strength": 0.5},
        {"fill": "noise"},
        {"scheduler": "none"},
        {"variant": "none"},
        {"adapters": {"a": 1.0}},
    ):
        with pytest.raises(RequestError) as error:
            pipeline.check(REQUESTS[0].model_copy(update=wrong))
        with pytest.raises(RequestError, match=re.escape(str(error.value))):
            pipeline(REQUESTS[0].model_copy(update=wrong))
    assert rows == []


def test_a_step_is_decoded_at_full_size(drawing):
    pipeline, _ = drawing
    steps = []
    result = pipeline(REQUESTS[0], steps.append)
    assert np.array_equal(pipeline.decode_step(REQUESTS[0], steps[-1]), result.images), "the last estimate"


def test_an_interrupt_cancels_all(drawing, monkeypatch):
    """As Ctrl-C in the thread that waits."""
    pipeline, _ = drawing
    seen = []

    def join(self, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentc.pipelines.together.Thread", type("Waiting", (threading.Thread,), {"join": join}))
    with pytest.raises(KeyboardInterrupt):
        pipeline.draw_many([one.model_copy(update={"steps": 50}) for one in REQUESTS[:2]], seen.append)
    assert len(seen) < 100


@pytest.mark.parametrize("images", [1, 2])
def test_fixed_rows_are_filled(bundle, drawing, images):
    """An engine for so many images with guidance takes no more rows, and fewer are filled with copies."""
    fixed = {"sizes": ("64x64", "96x96")[:images], "images": images}
    profile = load_profile("cpu-onnxruntime").model_copy(update={"name": "rows"})
    profile = profile.model_copy(update={"shapes": profile.shapes.model_copy(update=fixed)})
    build(bundle("sd1"), profile)
    requests = [one.model_copy(update={"count": images}) for one in REQUESTS[:2]]
    other = REQUESTS[0].model_copy(update={"count": 3})
    with Pipeline.open(bundle("sd1"), profile) as pipeline:
        counting = Counting(pipeline._work.engines)
        alone = [pipeline(request) for request in requests]
        *found, refused = pipeline.through(lambda _: counting).draw_many([*requests, other], return_exceptions=True)
        assert counting.rows == [2 * images] * 8
        counting.rows.clear()
        less = [one.model_copy(update={"count": 1}) for one in REQUESTS[:3]]
        filled = pipeline.through(lambda _: counting).draw_many(less)
        assert counting.rows == [2 * images] * 4 * (2 if images == 2 else 3)
        for one, request in zip(filled, less, strict=True):
            (single,) = pipeline.draw_many([request])
            assert np.array_equal(one.images, single.images)
            assert psnr_db(one.latents, drawing[0](request).latents) > 100
        if images == 2:  # whose second pass is run for each image
            (large,) = pipeline.draw_many([REQUESTS[3].model_copy(update={"hires": 1.5})])
            assert large.images.shape == (2, 96, 96, 3)
    assert isinstance(refused, ShapeError)
    assert all(np.array_equal(one.images, other.images) for one, other in zip(alone, found, strict=True))


def test_a_budget_draws_one_after_another(bundle):
    build(bundle("sd1"), load_profile("cpu-onnxruntime"))
    with Pipeline.open(bundle("sd1"), "cpu-onnxruntime", memory_gb=1000) as pipeline:
        found = pipeline.draw_many(REQUESTS[:2])
        assert all(np.array_equal(one.images, pipeline(one.request).images) for one in found)
        assert all(one.memory is not None for one in found)


def test_nothing_is_nothing(drawing):
    assert drawing[0].draw_many([]) == []


def test_a_check_within_a_budget_is_that_of_the_budget(bundle, monkeypatch):
    """It isn't compared with free memory."""
    monkeypatch.setattr("latentc.compiler.room._room", lambda: 1)
    build(bundle("sd1"), load_profile("cpu-onnxruntime"))
    large = REQUESTS[0].model_copy(update={"width": 512, "height": 512})
    with Pipeline.open(bundle("sd1"), "cpu-onnxruntime", memory_gb=1000) as pipeline:
        pipeline.check(large)
        assert not pipeline._work.engines._loaded
    with Pipeline.open(bundle("sd1"), "cpu-onnxruntime", memory_gb=0.001) as pipeline:
        with pytest.raises(RequestError, match="do not fit in .* of memory") as error:
            pipeline.check(large)
        with pytest.raises(RequestError, match=re.escape(str(error.value))):
            pipeline(large)


@pytest.mark.parametrize("how", [{"sequential": True}, {"memory_gb": 1000}])
def test_steps_are_not_decoded_where_the_decoder_has_no_place(bundle, how):
    build(bundle("sd1"), load_profile("cpu-onnxruntime"))
    steps = []
    with Pipeline.open(bundle("sd1"), "cpu-onnxruntime", **how) as pipeline:
        pipeline(REQUESTS[2], steps.append)
        with pytest.raises(RequestError, match=r"Use Pipeline\.preview"):
            pipeline.decode_step(REQUESTS[2], steps[-1])


def test_what_is_passed_in_has_one_entry_for_each_request(drawing):
    pipeline, rows = drawing
    for name, one in (("inputs", {}), ("on_step", print)):
        for given in ([one], [one] * 3):
            with pytest.raises(RequestError, match=f"{name} has {len(given)} entries for 2 requests"):
                pipeline.draw_many(REQUESTS[:2], **{name: given})
    assert rows == []


def test_steps_of_a_second_pass_count_on(drawing):
    pipeline, _ = drawing
    steps, request = [], REQUESTS[3].model_copy(update={"hires": 1.5, "hires_strength": 0.5})
    result = pipeline(request, steps.append)
    assert len(steps) == len(result.step_seconds) == 4 + 2 * 2
    assert [(one.index, one.total) for one in steps] == [(index + 1, 8) for index in range(8)]
