"""Engines of fixed image size: free rows and lengths, and further sizes that `build --sizes` makes."""

import shutil

import numpy as np
import pytest

from latentc.compiler.build import build, why
from latentc.compiler.cache import Miss
from latentc.compiler.cases import needs_referee, reference, stored_cases, stored_drawings
from latentc.compiler.sized import for_size, with_built_sizes, with_known_sizes
from latentc.compiler.targets import fixed_sizes, static_sizes, wanted
from latentc.compiler.trial import _fitting
from latentc.core.bundle import open_bundle
from latentc.core.errors import ProfileError, ShapeError
from latentc.core.references import ENDS
from latentc.core.request import Request
from latentc.core.shapes import FREE
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.denoise import is_guided
from latentc.sampling.host import load_host

from .builds import ONNXRUNTIME, OPENVINO, static

FIXED = static(OPENVINO, "own", free=("batch", "length"))
OWN = (128, 128)
"""The native size of the tiny checkpoints."""
LONG = "a red cube on a blue table beside " * 12


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    """A bundle with engines of OpenVINO for its own size."""
    folder = shutil.copytree(exported("sd1").folder, tmp_path_factory.mktemp("sized") / "b.bundle")
    build(open_bundle(folder), FIXED)
    return open_bundle(folder)


@pytest.fixture
def own(built, tmp_path):
    """A copy of it to build in."""
    return open_bundle(shutil.copytree(built.folder, tmp_path / "b.bundle"))


def test_a_denoiser_keeps_batch_and_length_free(built):
    _, engines = wanted(built, FIXED, to_run=True)
    (unet,) = [one for one in engines if one.part == "unet"]
    shape = unet.target.shape
    assert shape["sample"] == (FREE, 4, 16, 16)
    assert shape["encoder_hidden_states"][:2] == (FREE, FREE)
    (decoder,) = [one for one in engines if one.part == "vae_decoder"]
    assert decoder.target.shape == {"latent_sample": (1, 4, 16, 16)}, "it is called with one image at a time"


def test_it_is_compared_with_several_numbers_of_rows(built):
    """With guidance, without it, and with several images: whatever a request may ask for."""
    _, engines = wanted(built, FIXED, to_run=True)
    (unet,) = [one for one in engines if one.part == "unet"]
    found = reference(built, "unet", unet.target.shape)
    assert {case.feeds["sample"].shape[-2:] for case in found.cases} == {(16, 16)}
    assert {1, 2} <= {len(case.feeds["sample"]) for case in found.cases}
    assert found.origin.startswith("PyTorch, at export")


def test_another_size_is_compared_with_what_requests_may_ask_for(built):
    """A size that PyTorch didn't compute, as a model's own often is: few and many rows, and long prompts."""
    _, engines = wanted(built, FIXED.with_sizes(["160x128"]), to_run=True)
    (unet,) = [one for one in engines if one.part == "unet" and one.target.shape["sample"][-1] == 20]
    cases, known = reference(built, "unet", unet.target.shape).cases, stored_cases(built, "unet")
    for name, axis in (("sample", 0), ("encoder_hidden_states", 1)):
        drawn = [case for case in known if case.drawing != ENDS]
        sizes, every, most = ({case.feeds[name].shape[axis] for case in each} for each in (cases, known, drawn))
        assert {min(every), max(most)} <= sizes, name
        assert min(every) < max(most)
    assert {1, 2} < {case.feeds["sample"].shape[0] for case in cases}
    assert not needs_referee(built, "unet", unet.target.shape), "its outputs are kept"
    host = load_host(built)
    trials = _fitting(built, host, "unet", unet.target.shape, guided=True)
    assert {is_guided(host.model, trial.request) for trial in trials} == {True, False}


def test_every_size_is_compared_near_the_timestep_at_which_int8_ends(built):
    """At the size of each image that diffusers generated, and at another one."""
    requests = [one.request for one in stored_drawings(built)[0].drawings]
    for width, height in {(one.width, one.height) for one in requests} | {(192, 160)}:
        size = f"{width}x{height}"
        _, engines = wanted(built, FIXED.with_sizes([size]), to_run=True)
        sides = (height // 8, width // 8)
        unet = next(one for one in engines if one.part == "unet" and one.target.shape["sample"][2:] == sides)
        times = sorted(float(case.feeds["timestep"][0]) for case in reference(built, "unet", unet.target.shape).cases)
        assert any(80 <= one < 99.9 for one in times), size
        assert any(99.9 <= one <= 120 for one in times), size


@pytest.mark.parametrize(
    "changes", [{}, {"guidance": 1.0}, {"count": 3}, {"prompt": LONG}], ids=lambda one: str(one)[:20]
)
def test_requests_of_any_batch_and_length(built, opened, changes):
    request = Request(**{"prompt": "a cube", "steps": 2, "seed": 5, "width": 128, "height": 128, **changes})
    with Pipeline.open(built, FIXED) as pipeline:
        found = pipeline(request)
    wanted_ = opened("sd1")(request)
    assert len(found.images) == request.count
    assert psnr_db(np.stack(wanted_.images).astype(np.float32), np.stack(found.images).astype(np.float32)) > 45
    assert np.stack(wanted_.images).std() > 1


@pytest.mark.slow
def test_another_size_is_built_on_request(own, command, tmp_path):
    other = {"width": 160, "height": 128}
    request = Request(prompt="a cube", steps=2, seed=5, **other)
    refused = pytest.raises(ShapeError, match="160x128, but .* built for 128x128.*--sizes 160x128")
    with Pipeline.open(own, FIXED) as pipeline, refused:
        pipeline(request)
    made = build(own, FIXED.with_sizes(["160x128"]))
    assert [one.how for one in made.engines].count("compiled") == 3, "the text encoder has no image size"
    extended = with_built_sizes(own, FIXED)
    assert fixed_sizes(own.manifest.model, extended) == (OWN, (160, 128))
    with Pipeline.open(own, FIXED) as pipeline:
        assert pipeline(request).images[0].shape == (128, 160, 3)
    assert build(own, FIXED).engines == build(own, FIXED.with_sizes(["160x128"])).engines, "a later build keeps it"
    assert not [one for _, one in why(own, FIXED) if isinstance(one, Miss)]


@pytest.mark.slow
def test_a_size_without_all_of_its_engines_is_not_used(own):
    build(own, FIXED.with_sizes(["160x128"]))
    _, engines = wanted(own, FIXED.with_sizes(["160x128"]), to_run=True)
    decoder = next(one for one in engines if one.part == "vae_decoder" and one.target.shape["latent_sample"][-1] == 20)
    shutil.rmtree(own.engines / decoder.name)
    assert with_built_sizes(own, FIXED) == FIXED
    assert with_known_sizes(own, FIXED) == FIXED.with_sizes(["160x128"]), "a build makes it again"
    with Pipeline.open(own, FIXED) as pipeline, pytest.raises(ShapeError, match="--sizes 160x128"):
        pipeline(Request(prompt="a cube", steps=1, width=160, height=128))


@pytest.mark.slow
def test_one_engine_for_every_size(own):
    """`free` serves what has no engine of its own; the engine of the exact size comes first."""
    build(own, FIXED.with_sizes(["free"]))
    extended = with_built_sizes(own, FIXED)
    assert (fixed_sizes(own.manifest.model, extended), static_sizes(own.manifest.model, extended)) == ((), (OWN,))
    with Pipeline.open(own, FIXED) as pipeline:
        assert pipeline(Request(prompt="a cube", steps=1, width=192, height=128)).images[0].shape == (128, 192, 3)
        shapes = {"sample": (2, 4, 16, 16), "timestep": (1,)}
        shapes["encoder_hidden_states"] = (2, 77, own.part("unet").inputs[2].shape[2])
        assert pipeline._work.engines.fitting("unet", shapes).target.shape is not None
        shapes["sample"] = (2, 4, 16, 24)
        assert pipeline._work.engines.fitting("unet", shapes).target.shape is None


@pytest.mark.slow
def test_a_profile_of_every_size_may_have_static_ones(own):
    build(own, ONNXRUNTIME.with_sizes(["own"]))
    assert static_sizes(own.manifest.model, with_built_sizes(own, ONNXRUNTIME)) == (OWN,)


def test_a_runtime_that_cannot_keep_axes_free(built):
    with pytest.raises(ProfileError, match="keeps axes free.*Leave free out"):
        wanted(built, static(ONNXRUNTIME, "own", free=("batch",)), to_run=True)


def test_the_command_refuses_impossible_sizes(built, command):
    said = {"77x64": "multiple of 8", "big": "'big' is not an image size", "": "Write WIDTHxHEIGHT"}
    for sizes, complaint in said.items():
        code, _, err = command("build", built.folder, "-p", "null", "--sizes", sizes)
        assert (code, complaint in err) == (1, True), err


def test_a_benchmark_builds_its_size(built):
    model = built.manifest.model
    assert for_size(model, FIXED, *OWN) == FIXED
    assert fixed_sizes(model, for_size(model, FIXED, 160, 128)) == (OWN, (160, 128))
    assert for_size(model, ONNXRUNTIME, 160, 128) == ONNXRUNTIME


def test_the_shipped_profiles_serve_every_size():
    for name in ("cpu-openvino", "cpu-openvino-f32"):
        shapes = load_profile(name).shapes
        assert (shapes.sizes, shapes.free) == (("free",), ("batch", "length"))
        assert load_profile(name).with_sizes(["own"]).shapes.sizes == ("free", "own")
