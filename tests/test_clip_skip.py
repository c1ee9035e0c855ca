"""Skipping CLIP's last layers gives what diffusers' pipelines give, and is refused where that isn't possible."""

import shutil

import numpy as np
import pytest

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.parts import as_part, part_spec
from latentc.compiler.build import build
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.reference import run
from latentc.export.sessions import CpuSession
from latentc.export.weights import computing
from latentc.pipelines.a1111 import skips_layers
from latentc.pipelines.complete import complete
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.host import load_host
from latentc.sampling.reading import read_text
from latentc.sampling.wires import wired

REQUEST = Request(prompt="a lighthouse at sunset", negative_prompt="fog", width=64, height=64, steps=3, seed=1)


@pytest.fixture
def diffusers_pipeline(checkpoint, monkeypatch):
    """`diffusers_pipeline(family)`. With transformers 5, CLIPTextModel has no `text_model`, which diffusers 0.42 reads
    for a clip skip: the model is it itself.
    """
    import transformers
    from diffusers import DiffusionPipeline

    def make(family):
        if not hasattr(transformers.CLIPTextModel, "text_model"):
            own = property(lambda model: model)
            monkeypatch.setattr(transformers.CLIPTextModel, "text_model", own, raising=False)
        unchecked = {"safety_checker": None, "requires_safety_checker": False} if family == "sd1" else {}
        pipeline = DiffusionPipeline.from_pretrained(checkpoint(family), local_files_only=True, **unchecked)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(("family", "layers"), [("sd1", 1), ("sd1", 2), ("sdxl", 1), ("sd35m", 1)])
def test_embeddings_are_those_of_diffusers(exported, diffusers_pipeline, family, layers):
    import torch

    opened = exported(family)
    host, request = load_host(opened), REQUEST.model_copy(update={"clip_skip": layers})

    def call(part, feeds):
        with CpuSession(opened.graph(part)) as session:
            return session.answer(feeds)

    inputs = opened.part(opened.one("denoiser")).inputs
    found, plain = (
        wired(host.model, inputs, one, read_text(host, one, call, {}).encoded, guided=True)
        for one in (request, REQUEST)
    )
    pipeline = diffusers_pipeline(family)
    more = {name: None for name in ("prompt_2", "prompt_3") if family == "sd35m"}
    given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True} | more
    with torch.no_grad():
        positive, negative, *pooled = pipeline.encode_prompt(
            prompt=request.prompt, negative_prompt=request.negative_prompt, clip_skip=layers, **given
        )
    expected = torch.cat([negative, positive]).numpy()
    states = found["encoder_hidden_states"]
    assert psnr_db(expected, states) > 100
    assert (states[0] == plain["encoder_hidden_states"][0]).all(), "diffusers skips nothing for the negative prompt"
    assert psnr_db(states[1], plain["encoder_hidden_states"][1]) < 60
    for name in ("text_embeds", "pooled_projections"):
        if pooled and pooled[0] is not None and name in found:
            assert psnr_db(torch.cat(pooled[::-1]).numpy(), found[name]) > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_pictures_are_those_of_diffusers(bundle, diffusers_pipeline):
    import torch

    opened, profile = bundle("sd1"), load_profile("cpu-onnxruntime")
    latents = np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32)
    built = build(opened, profile)
    assert built.step_psnr_db > 90
    sizes = {"width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": REQUEST.guidance}
    drawing = diffusers_pipeline("sd1")
    pictures = [
        drawing(
            REQUEST.prompt,
            negative_prompt="fog",
            latents=torch.from_numpy(latents),
            output_type="np",
            clip_skip=layers,
            **sizes,
        ).images
        for layers in (None, 2)
    ]
    with Pipeline.open(opened, profile) as pipeline:
        for layers, wanted in zip((0, 2), pictures, strict=True):
            found = pipeline(REQUEST.model_copy(update={"clip_skip": layers}), latents=latents)
            assert psnr_db((wanted * 255).round(), found.images.astype(np.float64)) > 60
            assert found.request.clip_skip == layers


def test_the_manifest_has_the_number_of_layers(exported):
    opened = exported("sd1")
    (encoder,) = opened.manifest.model.text_encoders
    assert encoder.clip_skip == 2, "the tiny encoder's layers; others have 3"
    names = [tensor.name for tensor in opened.part("text_encoder").outputs]
    assert names == ["last_hidden_state", "pooler_output", "last_hidden_state.1", "last_hidden_state.2"]


@pytest.mark.slow
def test_the_web_ui_skips_layers_of_openais_clip_alone(exported):
    assert [skips_layers(exported(family)) for family in ("sd1", "sd2", "sdxl", "sd35m")] == [True] + [False] * 3


def test_a_clip_skip_without_its_outputs_is_refused(exported):
    model = exported("sd1").manifest.model
    with pytest.raises(RequestError, match="clip_skip is 3, but this model can skip 2 layers at most"):
        complete(REQUEST.model_copy(update={"clip_skip": 3}), model, {})
    old = model.with_clip_skip({"text_encoder": ["last_hidden_state", "pooler_output"]})
    assert "clip_skip" not in old.text_encoders[0].model_dump(mode="json"), "as bundles of older versions"
    with pytest.raises(RequestError, match=r"no outputs of earlier layers\. Export the checkpoint again"):
        complete(REQUEST.model_copy(update={"clip_skip": 1}), old, {})
    assert complete(REQUEST.model_copy(update={"clip_skip": 0}), old, {}).clip_skip == 0


def test_a_manifest_that_promises_more_than_the_graph_has_is_refused(own_bundle, edit_manifest):
    opened = own_bundle()

    def change(value):
        value["model"]["text_encoders"][0]["clip_skip"] = 3

    edit_manifest(opened, change)
    with pytest.raises(BundleError, match=r"text_encoder should have the output last_hidden_state\.3"):
        open_bundle(opened.folder)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_text_encoders_in_f16_give_the_states_of_earlier_layers(checkpoint, tmp_path, family):
    """What keeps the weights in f16 changes the class of the module, by which transformers records states."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextModel

    folder = shutil.copytree(checkpoint(family), tmp_path / "checkpoint")
    path = folder / "text_encoder" / "model.safetensors"
    save_file({name: one.half() for name, one in load_file(path).items()}, path, {"format": "pt"})
    opened = open_checkpoint(folder)
    spec = part_spec(opened, "text_encoder")
    ids = np.arange(77)[None]
    found = run(as_part(opened, spec, computing(opened, "text_encoder")), spec, {"input_ids": ids})
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    with torch.no_grad():
        output = theirs(input_ids=torch.from_numpy(ids), output_hidden_states=True)
        normed = [theirs.final_layer_norm(one).numpy() for one in output.hidden_states]
    wanted = {f"hidden_states.{index}": one.numpy() for index, one in enumerate(output.hidden_states)}
    wanted |= {f"last_hidden_state.{layers}": normed[-layers - 1] for layers in (1, 2)}
    wanted |= {"last_hidden_state": output.last_hidden_state.numpy(), "pooler_output": output.pooler_output.numpy()}
    assert "hidden_states.1" in found or "last_hidden_state.1" in found
    assert all(psnr_db(wanted[name], one) > 100 for name, one in found.items())
