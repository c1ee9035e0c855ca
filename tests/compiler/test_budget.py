"""A memory budget: the first way that is predicted to fit, which the result states; or the smallest that would."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from latentc.compiler.budget import MARGIN, _choices, budget_bytes, plan_budget, typical_request
from latentc.compiler.build import build
from latentc.compiler.plan import plan
from latentc.compiler.rows import RowByRow
from latentc.compiler.targets import wanted
from latentc.core.errors import RequestError
from latentc.core.manifest import TensorInfo
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes

PROFILE = load_profile("cpu-onnxruntime")
OPENVINO = load_profile("cpu-openvino-f32")
REQUEST = Request(prompt="a lighthouse", width=256, height=256, steps=2, seed=5)


def least(bundle, request=REQUEST, profile=PROFILE):
    """The smallest budget that fits, in bytes, as the refusal states it."""
    with pytest.raises(RequestError, match="do not fit in 1 B of memory") as caught:
        plan_budget(bundle, profile, 1, request)
    return round(float(re.search(r"budget that fits is (?:at least )?(\d+\.\d{3}) GB", str(caught.value))[1]) * 1e9)


def planned(bundle, profile):
    """What the plan says of all engines, with the budget's margin."""
    return math.ceil(MARGIN * plan(bundle, profile).held_bytes)


def ways(bundle, request=REQUEST, profile=PROFILE):
    """Each way that some budget chooses, from the largest budget to the smallest."""
    budget, found = 10**12, []
    while True:
        try:
            one = plan_budget(bundle, profile, budget, request)
        except RequestError:
            return found
        assert one.planned_bytes <= budget
        found.append(one)
        budget = one.planned_bytes - 1


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300, "abc", None, True])
def test_a_budget_is_a_positive_number(bundle, value):
    with pytest.raises(RequestError, match=r"it must be a positive number of GB \(10\^9 bytes\), such as 6"):
        budget_bytes(value)
    if value is not None:
        with pytest.raises(RequestError, match="positive number of GB"):
            Pipeline.open(bundle("sd1"), PROFILE, memory_gb=value)


def test_gb_are_a_thousand_millions():
    assert budget_bytes(4.5) == 4_500_000_000


def test_what_keeps_the_image_is_chosen_first(bundle):
    opened = bundle("sd1")
    asked = [(want.part, want.target, None) for want in wanted(opened, PROFILE, to_run=False)[1]]
    told = [
        (one.vae_tile, one.row_by_row, one.sequential) for one in _choices(opened, asked, [REQUEST], sequential=False)
    ]
    four = [(False, False), (False, True), (True, False), (True, True)]
    assert told == [(tile, *more) for tile in (None, 192, 128) for more in four], "64 leaves tiles that are too small"
    found = ways(opened)
    assert not found[0].sequential
    assert all(one.planned_bytes > other.planned_bytes for one, other in pairwise(found))


def test_tiles_are_chosen_where_decoding_takes_the_most(bundle):
    found = ways(bundle("sd1"), Request(prompt="x", width=512, height=512, guidance=1.0), OPENVINO)
    assert any(one.vae_tile for one in found)


def test_the_whole_takes_what_the_plan_says(bundle):
    opened = bundle("sd1")
    own = opened.manifest.model.own_size
    request = REQUEST.model_copy(update=dict(zip(("width", "height"), own, strict=True)))
    assert plan_budget(opened, PROFILE, 10**12, request).planned_bytes == planned(opened, PROFILE)
    alone = plan_budget(opened, PROFILE.sequentially(), 10**12, request)
    assert alone.sequential, "what the profile asks for is kept"
    assert alone.planned_bytes == planned(opened, PROFILE.sequentially())


def test_the_budget_that_a_refusal_names_fits(bundle):
    enough = least(bundle("sd1"))
    assert plan_budget(bundle("sd1"), PROFILE, enough, REQUEST)
    with pytest.raises(RequestError, match="smallest budget"):
        plan_budget(bundle("sd1"), PROFILE, enough - 2_000_000, REQUEST)


@pytest.mark.parametrize("fixed", [{"vae_tile": 128}, {"vae_tile": None}])
def test_what_a_request_states_is_kept(bundle, fixed):
    request = Request(prompt="x", width=256, height=256, **fixed)
    assert {one.vae_tile for one in ways(bundle("sd1"), request)} == {fixed["vae_tile"]}


@pytest.mark.parametrize("name", ["rtx-2060", "rtx-4090", "mi300x"])
def test_fixed_sizes_for_a_gpu_are_planned_too(bundle, name):
    opened, own = bundle("sd1"), bundle("sd1").manifest.model.own_size
    profile = load_profile(name)
    request = Request(prompt="x", width=own[0], height=own[1])
    whole = plan_budget(opened, profile, 10**12, request)
    assert not whole.row_by_row
    assert whole.vae_tile is None
    assert whole.planned_bytes == planned(opened, profile)
    wide = profile.model_copy(update={"shapes": Shapes(sizes=("64x64",))})
    assert plan_budget(opened, wide, 10**12, request) is None, "no engine takes this size, which is said elsewhere"


def test_row_by_row_joins_the_rows():
    calls = []

    class Doubles:
        def run(self, feeds):
            calls.append({name: one.shape for name, one in feeds.items()})
            return {"out": feeds["x"] * 2 + feeds["t"]}

    inputs = tuple(
        TensorInfo(name=name, dtype="float32", shape=shape) for name, shape in (("x", ("batch", 2)), ("t", (1,)))
    )
    x, t = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones(1, np.float32)
    run = RowByRow(Doubles(), inputs).bind({"t": t})
    assert np.array_equal(run({"x": x})["out"], x * 2 + 1)
    assert calls == [{"x": (1, 2), "t": (1,)}] * 3


@pytest.mark.slow
def test_images_within_a_budget_are_the_same_and_say_how(bundle, tmp_path):
    opened = bundle("sd1")
    build(opened, PROFILE)
    each = ways(opened)
    with Pipeline.open(opened, PROFILE) as pipeline:
        expected = pipeline(REQUEST)
        assert expected.memory is None
    for one in each:
        with Pipeline.open(opened, PROFILE, memory_gb=one.planned_bytes / 1e9) as pipeline:
            result = pipeline(REQUEST)
        assert result.memory == one.model_copy(update={"budget_bytes": one.planned_bytes})
        assert result.request.vae_tile == one.vae_tile
        assert any(one.how in notice for notice in result.notices)
        (path,) = result.save(tmp_path / f"{one.planned_bytes}.png")
        drawing = read(path).drawing
        assert drawing.memory == result.memory
        if one.vae_tile is None:
            assert np.abs(result.images.astype(int) - expected.images).max() <= 1
        with Pipeline.open(opened, PROFILE) as pipeline:  # the file's request repeats what changes the image
            again = pipeline(drawing.request)
        assert np.abs(again.images.astype(int) - result.images).max() <= 1
        assert again.memory is None


@pytest.mark.slow
def test_one_part_in_memory_once_a_request_needs_it(bundle):
    opened = bundle("sd1")
    build(opened, PROFILE)
    large = next(one for one in ways(opened) if one.sequential)
    with Pipeline.open(opened, PROFILE, memory_gb=large.planned_bytes / 1e9) as pipeline:
        small = Request(prompt="x", width=64, height=64, steps=1, seed=1)
        assert not pipeline(small).memory.sequential
        loaded = pipeline._work.engines._loaded
        assert len(loaded) == 3
        assert pipeline(REQUEST).memory.sequential
        assert len(loaded) == 1
        assert pipeline(small).memory.sequential


@pytest.mark.slow
def test_engines_of_other_sizes_are_freed(bundle):
    opened = bundle("sd1")
    shapes = Shapes(sizes=("64x64", "96x96", "128x128"))
    sizes = PROFILE.model_copy(update={"name": "sized", "shapes": shapes})
    build(opened, sizes)
    with Pipeline.open(opened, sizes, memory_gb=1000) as pipeline:
        engines = pipeline._work.engines
        held = {one.key: dict(one.target.shape)["sample"][-1] for one in engines.wanted if one.part == "unet"}

        def loaded():
            return [held[key] * 8 for key in engines._loaded if key in held]

        small = Request(prompt="x", width=64, height=64, steps=1, seed=1)
        assert not pipeline(small).memory.sequential
        assert loaded() == [64]
        pipeline(small.model_copy(update={"width": 96, "height": 96}))
        assert loaded() == [96]
        assert len(engines._loaded) == 3
        again = pipeline(small.model_copy(update={"hires": 2.0, "hires_strength": 1.0}))
        assert again.memory.planned_bytes > pipeline(small).memory.planned_bytes
        assert loaded() == [64]


def test_a_plan_that_does_not_fit_exits_with_1(bundle, command):
    folder, fits = (
        bundle("sd1").folder,
        least(bundle("sd1"), typical_request(bundle("sd1").manifest.model, 64, 64)) / 1e9,
    )
    for gb, code in ((fits + 0.001, 0), (1e-9, 1)):
        for more in ((), ("--json",)):
            found = command("plan", folder, "-p", "cpu-onnxruntime", "--memory", f"{gb:.9f}", "--size", "64x64", *more)
            assert (found[0], "do not fit in 1 B of memory" in found[1].replace("\n", " ")) == (code, bool(code)), found
    assert command("plan", folder, "-p", "cpu-onnxruntime")[0] == 0
