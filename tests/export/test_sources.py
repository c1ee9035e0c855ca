"""Bundles of checkpoints with a UNet from elsewhere, a VAE with statistics, weights in bf16, entries of no folder."""

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import new_checkpoint, open_checkpoint
from latentc.compiler.build import build
from latentc.compiler.lower import lowered
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.export.weights import computing
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
EXTRA = {
    "_class_name": "StableDiffusionXLPAGPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A folder, a UNet in bf16 of another one, and the bundle of both."""
    place = tmp_path_factory.mktemp("sources")
    folder = shutil.copytree(checkpoint("sdxl"), place / "folder")
    for file, more in (
        ("vae/config.json", {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD}),
        ("model_index.json", EXTRA),
    ):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    other = new_checkpoint("sdxl", "tiny", 2, place / "other") / "unet" / "diffusion_pytorch_model.safetensors"
    unet = place / "unet.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(other).items()}, unet)
    bundle = export(str(folder), place / "bundle", components={"unet": str(unet)})
    return folder, unet, bundle


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_the_picture_is_diffusers_own(made):
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    folder, unet, bundle = made
    module = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    module.load_state_dict({name: tensor.float() for name, tensor in load_file(unet).items()})
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, unet=module.eval(), image_encoder=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = np.random.default_rng(5).standard_normal((1, 4, 9, 17), dtype=np.float32)
    asked = {"width": 136, "height": 72}
    drawn = pipeline(
        "a lighthouse",
        **asked,
        num_inference_steps=3,
        guidance_scale=6.0,
        latents=torch.from_numpy(latents),
        output_type="np",
    )
    expected = (drawn.images * 255).round()
    assert expected.std() > 5, "a flat picture shows nothing"
    request = Request(prompt="a lighthouse", **asked, steps=3, guidance=6.0)
    for name in ("cpu-onnxruntime", "cpu-openvino-f32", "torch-f32"):
        profile = load_profile(name)
        built = build(bundle, profile)
        assert built.step_psnr_db > 90
        with Pipeline.open(bundle, profile) as opened:
            found = opened(request, latents=latents).images
        assert psnr_db(expected, found.astype(np.float64)) >= 60, name


@pytest.mark.slow
def test_the_manifest_says_where_the_unet_is_from(made, checkpoint):
    _, unet, bundle = made
    manifest = bundle.manifest
    assert manifest.model.latents_mean == tuple(MEAN)
    found = manifest.components["unet"]
    assert (found.kind, found.location) == ("file", str(unet))
    theirs = open_checkpoint(str(checkpoint("sdxl")), components={"unet": str(unet)})
    assert found.digest == theirs.digest("unet")
    assert "StableDiffusionXLPAGPipeline" in manifest.notices[0]


@pytest.mark.slow
def test_the_index_names_nothing_that_is_not_there(made):
    _, _, bundle = made
    index = bundle.json("model_index.json")
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    listed = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    assert listed["feature_extractor"] == listed["image_encoder"] == [None, None]
    for name, entry in listed.items():
        assert (None in entry) != (bundle.folder / name).is_dir(), name


@pytest.mark.slow
def test_bf16_stays_two_bytes(made, checkpoint):
    _, unet, bundle = made
    parts = bundle.manifest.parts
    assert parts["unet"].weights == "bf16"
    assert {part.weights for name, part in parts.items() if name != "unet"} == {"f32"}
    stored = bundle.manifest.files["unet/model.onnx_data"].bytes
    inline = parts["unet"].parameters * 2 - stored
    assert 0 <= inline < 0.1 * stored, "two bytes each, but for the small ones in the graph"
    graph = ir.load(bundle.graph("unet"))
    kinds = {one.const_value.dtype.name for one in graph.graph.initializers.values() if one.const_value.nbytes > 1024}
    assert kinds == {"BFLOAT16"}
    opened = open_checkpoint(str(checkpoint("sdxl")), components={"unet": str(unet)})
    ours, wide = computing(opened, "unet"), opened.module("unet")
    torch.manual_seed(0)
    added = {"text_embeds": torch.randn(1, 16), "time_ids": torch.full((1, 6), 128.0)}
    feeds = (torch.randn(1, 4, 16, 16), torch.tensor(500), torch.randn(1, 77, 24))
    with torch.no_grad():
        one, other = (module(*feeds, added_cond_kwargs=added).sample for module in (ours, wide))
    assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_bf16_is_widened_for_runtimes_that_dont_read_it(half, made):
    _, unet, bundle = made
    with lowered(bundle.graph("unet"), "wide", 18, None, ("half", "widen") if half else ("widen",)) as path:
        graph = ir.load(path)
        held = {name: value.const_value for name, value in graph.graph.initializers.items()}
        kinds = {tensor.dtype.name for tensor in held.values() if tensor.nbytes > 1024}
        assert "BFLOAT16" not in kinds
        wanted = load_file(unet)["conv_in.weight"].float().numpy()
        found = next(tensor for tensor in held.values() if tuple(tensor.shape) == wanted.shape)
        assert np.array_equal(found.numpy().astype(np.float32), wanted.astype(np.float16 if half else np.float32))
