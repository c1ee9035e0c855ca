"""IP-Adapters against diffusers' own pipelines, what the proof sees of them, and what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.bench import bench
from latentc.benchmarks.plan import Plan
from latentc.benchmarks.power import opened_graph
from latentc.benchmarks.shown import Files
from latentc.compiler.build import build
from latentc.compiler.cases import stored_cases
from latentc.compiler.engines import load
from latentc.compiler.parity import measure
from latentc.compiler.proof import prove_host
from latentc.core.bundle import open_bundle
from latentc.core.errors import ParityError, RequestError
from latentc.core.images import pixels_sha256
from latentc.core.model import ImageReader
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.sampling.host import latent_shape
from latentc.sampling.image import for_encoder

from .images import asked_of
from .runtimes.migraphx_operators import undocumented

ONNXRUNTIME = load_profile("cpu-onnxruntime")
REQUEST = Request(
    prompt="a lighthouse on a cliff", negative_prompt="fog", width=144, height=80, steps=5, guidance=6.0, seed=3,
    scheduler="ddim",
)  # fmt: skip


def picture(seed=0, height=200, width=150):
    """Large patches of random colours."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def styled(equipped, checkpoint, ip_adapter):
    """`styled(family, kind)`: this worker's copy of a bundle with an IP-Adapter, with engines for ONNX Runtime."""
    return lambda family, kind: equipped(
        f"{family}-{kind}-styled",
        lambda folder: export(str(checkpoint(family)), folder, ip_adapter=str(ip_adapter(family, kind))),
    )


def diffusers_images(folder, adapter, request, style, latents, image=None):
    """The images of diffusers' own pipeline with the file, as its `load_ip_adapter` reads it."""
    import diffusers
    import torch

    parts = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    parts.load_ip_adapter(str(adapter.parent), subfolder="", weight_name=adapter.name)
    parts.set_ip_adapter_scale(request.style_strength)
    parts.set_progress_bar_config(disable=True)
    parts.scheduler = diffusers.DDIMScheduler.from_config(parts.scheduler.config)
    images = parts(
        **asked_of(request),
        ip_adapter_image=Image.fromarray(style),
        latents=torch.from_numpy(latents.copy()),
        output_type="np",
    ).images
    return (images * 255).round()


def start(opened, request=REQUEST):
    return np.random.default_rng(5).standard_normal(latent_shape(opened.manifest.model, request), np.float32)


KINDS = [("sd1", "plain"), ("sdxl", "plain"), ("sd1", "plus"), ("sdxl", "plus")]
SETTINGS = {
    "full": {"style_strength": 1.0},
    "half, two images": {"style_strength": 0.5, "count": 2},
    "unguided": {"style_strength": 0.7, "guidance": 1.0},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_images_are_diffusers_own(styled, ip_adapter, checkpoint, family, kind, case):
    opened = styled(family, kind)
    request = Request.model_validate({**REQUEST.model_dump(), **SETTINGS[case]})
    latents = start(opened, request)
    expected = diffusers_images(checkpoint(family), ip_adapter(family, kind), request, picture(), latents)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(request, style=picture(), latents=latents)
        plain = pipeline(request.model_copy(update={"style_strength": None}), latents=latents)
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60
    assert psnr_db(expected, plain.images.astype(np.float64)) < 40, "the style has an effect"
    assert any("No style image was given" in notice for notice in plain.notices)
    assert {*found.engines} - {*plain.engines} == {"image_encoder"}
    assert any("sees only the square in the middle" in notice for notice in found.notices)
    if case == "full":
        name = "cpu-openvino-f32"
        build(opened, load_profile(name))
        with Pipeline.open(opened, name) as pipeline:
            found = pipeline(request, style=picture(), latents=latents)
        assert psnr_db(expected, found.images.astype(np.float64)) >= 60


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [("sd1", "plain"), ("sdxl", "plus")])
def test_without_a_style_a_bundle_draws_what_the_plain_one_draws(styled, bundle, family, kind):
    plain, opened = bundle(family), styled(family, kind)
    build(plain, ONNXRUNTIME)
    with Pipeline.open(plain, ONNXRUNTIME) as one, Pipeline.open(opened, ONNXRUNTIME) as other:
        expected = one(REQUEST).latents
        without = other(REQUEST)
        assert "image_encoder" not in without.seconds, "the image encoder isn't run"
        zero = other(REQUEST.model_copy(update={"style_strength": 0.0}), style=picture())
    assert psnr_db(expected, without.latents) > 110
    assert psnr_db(expected, zero.latents) > 110


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("size", [(200, 150), (60, 90), (224, 224), (500, 61), (37, 402), (1000, 999)])
def test_the_image_is_prepared_as_in_transformers(size):
    from transformers import CLIPImageProcessor

    from latentc.checkpoints.parts.vision import MEAN, STD

    image = picture(1, *size)
    for side in (224, 32):
        wanted = CLIPImageProcessor(size=side, crop_size=side)(Image.fromarray(image), return_tensors="np")
        found = for_encoder(image, ImageReader(size=side, method="crop", mean=MEAN, std=STD))
        assert np.abs(wanted["pixel_values"] - found).max() < 1e-5


class Changed:
    """An engine whose inputs are changed."""

    def __init__(self, engine, change):
        self.engine, self.change = engine, change

    def run(self, feeds):
        return self.engine.run(self.change(dict(feeds)))

    def bind(self, feeds):
        return lambda others: self.run({**feeds, **others})


def ignored(feeds):
    return feeds | {"image_tokens": feeds["image_tokens"] * 0}


def at_full_strength(feeds):
    return feeds | {"ip_adapter_scale": np.ones_like(feeds["ip_adapter_scale"])}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [ignored, at_full_strength], ids=lambda fault: fault.__name__)
def test_the_proof_sees_what_an_engine_makes_of_a_style(styled, fault):
    opened = styled("sd1", "plain")
    cases, latents = stored_cases(opened, "unet"), opened.manifest.model.latents_input
    with load(opened, ONNXRUNTIME) as engines:
        found = engines.engine("unet", {name: array.shape for name, array in cases[0].feeds.items()})
        sound = measure("unet", found, "PyTorch, at export", cases, latents)
        assert sound.psnr_db > 110
        assert sound.style_db > 90
        assert sound.style_share > 0.01
        wrong = measure("unet", Changed(found, fault), "PyTorch, at export", cases, latents)
        assert wrong.psnr_db < 40
        if fault is ignored:
            assert wrong.style_db == 0


PLANTED = {
    "unet": ["layers.0.to_k_ip", "layers.1.to_v_ip", "layers.2.to_v_ip"],
    "image_encoder": ["image_proj.image_embeds.weight", "image_proj.norm.weight"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("part", "weight"), [(part, one) for part, every in PLANTED.items() for one in every])
def test_a_fault_in_one_weight_of_the_adapter_is_caught(styled, tmp_path, part, weight):
    from onnx import numpy_helper

    opened = styled("sd1", "plain")
    folder = shutil.copytree(opened.folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    with opened_graph(folder, part) as graph:
        found = [one for one in graph.model.graph.initializer if weight in one.name]
        assert len(found) == 1, [one.name for one in graph.model.graph.initializer if "ip" in one.name]
        name = found[0].name
        changed = graph.weights[name] if name in graph.weights else numpy_helper.to_array(found[0]).copy()
        changed[..., : changed.shape[-1] // 4] *= 0.5
        if name not in graph.weights:  # a small one is in the graph's own file
            found[0].CopyFrom(numpy_helper.from_array(changed, name))
    with pytest.raises(ParityError, match=f"The graph of {part}, run in f32, differs"):
        build(open_bundle(folder), ONNXRUNTIME)


def _stretch(value):
    value["model"]["image_reader"].pop("method")


def _positive(value):
    for wire in value["model"]["wires"]:
        wire.pop("negative", None)


@pytest.mark.slow
@pytest.mark.parametrize("change", [_stretch, _positive])
def test_the_host_is_proved_with_a_style(styled, edit_manifest, tmp_path, change):
    opened = styled("sd1", "plain")
    assert prove_host(opened) > 100
    folder = shutil.copytree(opened.folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    edit_manifest(open_bundle(folder), change)
    with pytest.raises(ParityError, match="differs from diffusers' pipeline"):
        prove_host(open_bundle(folder))


@pytest.mark.slow
def test_an_image_keeps_its_style(styled, tmp_path):
    opened = styled("sd1", "plus")
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        result = pipeline(REQUEST.model_copy(update={"style_strength": 0.4}), style=picture())
        (path,) = result.save(tmp_path / "a.png")
        stored = read(path).request
        assert stored.style_strength == 0.4
        assert np.array_equal(pipeline(stored, style=picture()).images, result.images)
        with pytest.raises(RequestError, match="was made with another style image"):
            pipeline(stored, style=picture(1))
        with pytest.raises(RequestError, match="no style image was given. Pass it with --style"):
            pipeline(stored)
        both = pipeline(REQUEST, image=picture(2), style=picture())
        other = pipeline(REQUEST, image=picture(2), style=picture(1))
        assert not np.array_equal(both.images, other.images)


@pytest.mark.slow
def test_a_profile_with_fixed_shapes_is_proved_too(styled, tmp_path):
    profile = tmp_path / "fixed.toml"
    profile.write_text('title = "fixed"\nruntime = "onnxruntime"\n[shapes]\nsizes = ["own", "192x128"]\n')
    opened = styled("sd1", "plain")
    assert build(opened, load_profile(profile)).step_psnr_db > 100
    with Pipeline.open(opened, load_profile(profile)) as pipeline:
        found = pipeline(REQUEST.model_copy(update={"width": 192, "height": 128}), style=picture())
    assert found.images.shape == (1, 128, 192, 3)


def test_a_bundle_without_an_adapter_takes_no_style(bundle):
    opened = bundle("sd1")
    build(opened, ONNXRUNTIME)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        with pytest.raises(RequestError, match="This bundle has no IP-Adapter, .* Export the checkpoint with --ip-ad"):
            pipeline(REQUEST, style=picture())
        with pytest.raises(RequestError, match="has style_strength"):
            pipeline(REQUEST.model_copy(update={"style_strength": 0.4}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"style_strength": 1.5}, "style_strength"),
        ({"style_strength": float("nan")}, "style_strength"),
        ({"ip_adapter_scale": 1.0}, "did you mean 'style_strength'"),
        ({"ip_adapter_image": "a.png"}, "pass the image to the pipeline, or with --style"),
    ],
)
def test_values_out_of_range_are_refused(changes, match):
    with pytest.raises(RequestError, match=match):
        Request(prompt="a", **changes)


@pytest.mark.slow
def test_a_benchmark_shows_the_style_image(styled, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "style.png")
    files, kept = Files(style=tmp_path / "style.png"), tmp_path / "kept"
    plan = Plan((ONNXRUNTIME,), files=files, sizes=((144, 80),), steps=2, repeat=1, ceiling=False, keep=kept)
    row = bench(styled("sd1", "plain"), plan, tmp_path / "results.jsonl")[-1]
    assert row.error is None
    assert row.request.style_sha256 == pixels_sha256(picture())
    assert all(draw.image_encoder > 0 for draw in row.draws)
    with Pipeline.open(styled("sd1", "plain"), ONNXRUNTIME) as pipeline:
        wanted = pipeline(row.request, style=picture()).images[0]
        other = row.request.model_copy(update={"style_sha256": None})
        assert (pipeline(other, style=picture(1)).images[0] != wanted).any()
    assert (np.asarray(Image.open(tmp_path / row.pictures[0])) == wanted).all()


@pytest.mark.slow
def test_migraphx_documents_every_operator(styled):
    assert not undocumented(styled("sd1", "plus"))
