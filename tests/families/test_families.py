"""New families: what no shipped one has, added by a row and a small class, and drawn as PyTorch draws it."""

import numpy as np
import onnx
import pytest
import torch

from latentc.checkpoints import find_family, open_checkpoint
from latentc.compiler.build import build
from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.weights import INLINE_BYTES
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.draw import latent_shape

PROFILE = load_profile("cpu-onnxruntime")
REQUEST = Request(
    prompt="a red boat", negative_prompt="fog", width=96, height=72, steps=4, guidance=5.0, seed=3, count=2
)


@pytest.fixture(scope="session")
def drawn(made_up_bundle):
    """`drawn(family, request, latents)`: by the engines of ONNX Runtime; the result."""
    opened = {}

    def draw(family, request, latents):
        if family not in opened:
            built = made_up_bundle(family)
            build(built, PROFILE)
            opened[family] = Pipeline.open(built, PROFILE)
        return opened[family](request, latents=latents)

    yield draw
    for pipeline in opened.values():
        pipeline.close()


@pytest.fixture(scope="session")
def by_hand(made_up, made_up_checkpoint):
    """`by_hand(family, request, latents)`: pictures by PyTorch's modules and diffusers' scheduler alone."""

    def draw(family, request, latents, denoiser=lambda module: module):
        import diffusers

        opened = open_checkpoint(made_up_checkpoint(family))
        modules = {name: opened.module(name) for name in ("vae", "text_encoder", "unet")}
        scheduler = getattr(diffusers, opened.scheduler["_class_name"]).from_config(opened.scheduler)
        kind = getattr(made_up[family], find_family(family).pipeline)
        pipeline = kind(**modules, tokenizer=opened.tokenizer("tokenizer"), scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        guided = request.guidance > 1
        found = pipeline.encode_prompt(request.prompt, "cpu", 1, guided, request.negative_prompt)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        pipeline.unet = denoiser(pipeline.unet)
        images = pipeline(
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            num_images_per_prompt=request.count,
            latents=torch.from_numpy(latents.copy()),
            generator=None,
            output_type="np",
            callback_on_step_end=lambda *_: {},
            **dict(zip(names, found, strict=True)),
        ).images
        return (images * 255).round().astype(np.uint8)

    return draw


def noise(bundle, request):
    shape = latent_shape(bundle.manifest.model, request)
    return np.random.default_rng(5).standard_normal(shape, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("request_of", [REQUEST, REQUEST.model_copy(update={"guidance": 1.0, "count": 1})])
@pytest.mark.parametrize("family", ["twin", "moving", "layered"])
def test_a_new_family_is_drawn_as_pytorch_draws_it(made_up_bundle, drawn, by_hand, family, request_of):
    latents = noise(made_up_bundle(family), request_of)
    result = drawn(family, request_of, latents)
    wanted = by_hand(family, request_of, latents)
    assert result.images.shape == wanted.shape
    assert wanted.std() > 5
    assert psnr_db(wanted, result.images) > 60


@pytest.mark.slow
def test_a_denoiser_has_inputs_of_its_own(made_up_bundle, drawn):
    bundle = made_up_bundle("twin")
    inputs = [tensor.name for tensor in bundle.part("unet").inputs]
    assert inputs == ["hidden_states", "timestep", "encoder_hidden_states", "extent", "gist"]
    assert bundle.manifest.model.latents_input == "hidden_states"


@pytest.mark.slow
def test_frames_are_an_axis_of_latents_and_of_what_is_drawn(made_up_bundle, drawn, tmp_path):
    bundle = made_up_bundle("moving")
    request = REQUEST.model_copy(update={"count": 1})
    assert bundle.part("unet").inputs[0].shape == ("batch", "frames", 4, "height", "width")
    result = drawn("moving", request, noise(bundle, request))
    assert result.latents.shape == (1, 3, 4, 9, 12)
    assert result.images.shape == (1, 3, 72, 96, 3)
    assert (result.images[0, 0] != result.images[0, 1]).any()
    with pytest.raises(RequestError, match="frames"):
        result.save(tmp_path / "out.png")


@pytest.mark.slow
def test_a_variant_of_the_denoiser_is_proved_and_drawn_over_the_same_weights(made_up_bundle, drawn, by_hand):
    bundle = made_up_bundle("layered")
    assert bundle.one("denoiser") == "unet"
    assert bundle.variants("denoiser") == {None: "unet", "shallow": "unet@shallow"}
    graph = onnx.load(bundle.graph("unet@shallow"), load_external_data=False).graph
    assert {entry.value for one in graph.initializer for entry in one.external_data if entry.key == "location"} == {
        "model.onnx_data"
    }
    assert all(len(one.raw_data) <= INLINE_BYTES for one in graph.initializer), "no weight is written twice"
    assert [path.name for path in sorted((bundle.folder / "unet").glob("*onnx*"))] == [
        *("model.onnx", "model.onnx_data", "model@shallow.onnx")
    ]
    assert bundle.part("unet@shallow").parameters < bundle.part("unet").parameters
    request = REQUEST.model_copy(update={"variant": "shallow"})
    latents = noise(bundle, request)

    def shallow(module):
        forward = module.forward
        module.forward = lambda *given, **named: forward(*given, **named, depth=1)
        return module

    result = drawn("layered", request, latents)
    assert psnr_db(by_hand("layered", request, latents, shallow), result.images) > 60
    assert (result.images != drawn("layered", REQUEST, latents).images).any()
    assert result.request.variant == "shallow"
    assert "unet@shallow" in result.engines
    with pytest.raises(RequestError, match="no variant 'deep' of its denoiser; it has: shallow"):
        drawn("layered", REQUEST.model_copy(update={"variant": "deep"}), latents)


@pytest.mark.slow
def test_a_build_leaves_the_graphs_of_variants_to_whoever_compiles_them(made_up_bundle, monkeypatch):
    read = []

    def verified(_, names):
        read.extend(names)
        raise InterruptedError

    monkeypatch.setattr("latentc.compiler.build.verify_files", verified)
    with pytest.raises(InterruptedError):
        build(made_up_bundle("layered"), load_profile("null"))
    assert "reference/unet@shallow.npz" in read
    assert not [name for name in read if ".onnx" in name]
