"""Checkpoints of Stable Video Diffusion: what is opened, and what is refused."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentc.checkpoints import find_family, open_checkpoint
from latentc.checkpoints.families import family_of
from latentc.checkpoints.hub import wanted
from latentc.checkpoints.parts import CLASSES, model_facts, part_specs
from latentc.checkpoints.processor import read_processor
from latentc.core.errors import CheckpointError

SVD, XT = find_family("svd"), find_family("svd_xt")


def test_25_frames_differ_from_14_by_a_row_and_a_config():
    differing = {one.name for one in fields(SVD) if getattr(SVD, one.name) != getattr(XT, one.name)}
    assert differing == {"name", "title", "aliases", "frames", "marks", "shares"}
    assert (SVD.frames, XT.frames) == (14, 25)
    for component in (*(one.name for one in SVD.components), "scheduler", "feature_extractor"):
        one, other = SVD.config(component), XT.config(component)
        assert {key for key in one if one[key] != other[key]} == ({"num_frames"} if component == "unet" else set())


@pytest.mark.parametrize(
    ("alias", "family"),
    [("svd14", SVD), ("img2vid", SVD), ("img2vid-xt", XT), ("img2vid-xt-1-1", XT), ("SVD_XT", XT)],
)
def test_aliases(alias, family):
    assert find_family(alias) == family


def test_configs_have_the_defaults_of_diffusers():
    """Those fields of the published configs that diffusers' class has as a default."""
    import inspect

    from diffusers import UNetSpatioTemporalConditionModel

    known = {
        name: one.default
        for name, one in inspect.signature(UNetSpatioTemporalConditionModel.__init__).parameters.items()
    }
    config = XT.config("unet")
    for key in (*CLASSES["UNetSpatioTemporalConditionModel"].required, "num_attention_heads", "layers_per_block"):
        default = list(known[key]) if isinstance(known[key], tuple) else known[key]
        assert config[key] == default, key


@pytest.fixture
def own(checkpoint, tmp_path):
    """`own(**{"unet/config.json": {...}})`: a copy of the tiny checkpoint with these keys changed; None removes one."""

    def make(family="svd", **changes):
        folder = tmp_path / "own"
        shutil.copytree(checkpoint(family), folder)
        for name, values in changes.items():
            value = json.loads((folder / name).read_text()) | values
            (folder / name).write_text(json.dumps({key: one for key, one in value.items() if one is not None}))
        return str(folder)

    return make


@pytest.mark.parametrize("family", ["svd", "svd_xt"])
def test_tiny_checkpoints_have_the_whole_structure(checkpoint, family):
    opened = open_checkpoint(str(checkpoint(family)))
    opened.check_modules()
    assert opened.family == find_family(family)
    assert opened.notices == ()
    assert opened.source.random
    model = model_facts(opened)
    assert (model.frames, model.tasks, model.text_encoders) == (find_family(family).frames, ("image_to_video",), ())
    assert model.frame_guidance == (1.0, 3.0)
    assert model.encodes_in_f32
    assert model.image_reader.size == 224
    roles = {spec.name: spec.role for spec in part_specs(opened)}
    assert roles == {
        "image_encoder": "image_encoder", "unet": "denoiser", "vae_decoder": "decoder", "vae_encoder": "encoder"
    }  # fmt: skip


def test_the_number_of_frames_and_the_size_are_the_configs(own):
    opened = open_checkpoint(own(**{"unet/config.json": {"num_frames": 25, "sample_size": 96}}))
    assert opened.family == XT
    assert (model_facts(opened).frames, model_facts(opened).own_size) == (25, (1024, 576))
    denoiser = next(spec for spec in part_specs(opened) if spec.role == "denoiser")
    assert denoiser.inputs[0].shape == ("batch", 25, 8, "height", "width")


@pytest.mark.parametrize("frames", [4, 21])
def test_another_number_of_frames_is_the_first_family(own, frames):
    opened = open_checkpoint(own(**{"unet/config.json": {"num_frames": frames}}))
    assert opened.family == SVD
    assert model_facts(opened).frames == frames
    assert next(spec for spec in part_specs(opened) if spec.role == "denoiser").inputs[0].shape[1] == frames


def test_mean_and_deviation_are_the_processors(own):
    mean = [0.5, 0.25, 0.125]
    opened = open_checkpoint(own(**{"feature_extractor/preprocessor_config.json": {"image_mean": mean}}))
    assert list(model_facts(opened).image_reader.mean) == mean


PROCESSOR = "feature_extractor/preprocessor_config.json"
BAD = {
    "no frames": ({"unet/config.json": {"num_frames": None}}, "num_frames = None; an integer was expected"),
    "frames that aren't a number": ({"unet/config.json": {"num_frames": "14"}}, "num_frames = '14'; an integer"),
    "too many frames": ({"unet/config.json": {"num_frames": 5000}}, "num_frames = 5000, but an integer from 1 to"),
    "another image size": ({"image_encoder/config.json": {"image_size": 336}}, "336 pixels, but diffusers resizes"),
    "an odd embedding of motion": ({"unet/config.json": {"addition_time_embed_dim": 4}}, "reads 24 added values"),
    "angles of a camera": ({"unet/config.json": {"projection_class_embeddings_input_dim": 40}}, "SV3D. is not support"),
    "other channels": ({"unet/config.json": {"out_channels": 8}}, "reads 8 channels and writes 8"),
    "another VAE": ({"vae/config.json": {"_class_name": "AutoencoderKL"}}, "AutoencoderKL"),
    "no mean": ({PROCESSOR: {"image_mean": None}}, "image_mean = None, but three numbers were expected"),
    "a deviation of zero": ({PROCESSOR: {"image_std": [0.0, 0.1, 0.1]}}, r"image_std = \[0.0"),
    "a mean of text": ({PROCESSOR: {"image_mean": ["a", 0.1, 0.1]}}, "three numbers"),
    "not normalized": ({PROCESSOR: {"do_normalize": False}}, "do_normalize = false"),
    "another processor": ({PROCESSOR: {"image_processor_type": "ViTImageProcessor"}}, "'ViTImageProcessor'"),
    "an unknown field": ({"unet/config.json": {"motion_module": 3}}, "does not know"),
    "quantized": ({"unet/config.json": {"quantization_config": {"quant_method": "x"}}}, "is quantized"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), BAD.values(), ids=BAD)
def test_configs_that_do_not_fit_are_refused(own, changes, says):
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(own(**changes))


def test_an_image_processor_that_is_missing_is_refused(own):
    folder = own()
    shutil.rmtree(f"{folder}/feature_extractor")
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        open_checkpoint(folder)
    assert read_processor(None, find_family("sd1")) == {}


def test_widths_that_do_not_fit_are_refused_before_the_export(own, tmp_path):
    from latentc.export.export import export

    folder = own(**{"image_encoder/config.json": {"projection_dim": 48}})
    with pytest.raises(CheckpointError, match="wires sources of width 48 to encoder_hidden_states, whose width is 32"):
        export(folder, tmp_path / "b")


@pytest.mark.parametrize("component", ["vae", "unet"])
def test_components_cannot_be_replaced(own, checkpoint, component):
    with pytest.raises(CheckpointError, match=f"whose components cannot be replaced. Leave out --{component}"):
        open_checkpoint(own(), components={component: str(checkpoint("sd1"))})


SINGLE = (
    "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "conditioner.embedders.0.open_clip.model.visual.conv1.weight",
)
"""Of the original layout of all models that are built like Stable Video Diffusion."""
VIEWS = r"a Stable Video 3D or 4D checkpoint \(SV3D, SV4D\), for views of an object, which is not supported yet"


@pytest.mark.parametrize(
    ("values", "encoder", "says"),
    [
        (768, 3, "Stable Video Diffusion in the original layout, which is supported as a diffusers folder only"),
        (256, 1, VIEWS),  # SV3D_u
        (1280, 1, VIEWS),  # SV3D_p
    ],
)
def test_a_single_file_is_refused_by_name(tmp_path, values, encoder, says):
    """The embedders are in the order of the configs in Stability AI's generative-models."""
    tensors = {name: np.ones((4, values), np.float32) for name in SINGLE}
    tensors[f"conditioner.embedders.{encoder}.encoder.encoder.conv_in.weight"] = np.ones(2, np.float32)
    save_file(tensors, tmp_path / "video.safetensors")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(str(tmp_path / "video.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "StableVideo3DDiffusionPipeline"},
        {"unet": ["diffusers_sv3d", "SV3DUNetSpatioTemporalConditionModel"]},
    ],
)
def test_a_folder_of_stable_video_3d_is_refused_by_name(own, changes):
    """The class names are those of the port in github.com/chenguolin/sv3d-diffusers."""
    with pytest.raises(CheckpointError, match=VIEWS):
        open_checkpoint(own(**{"model_index.json": changes}))


def test_what_the_hub_downloads():
    folders = ("image_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
    weights = [f"{name}{variant}.safetensors" for name in folders for variant in ("", ".fp16")]
    small = ["model_index.json", "scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"]
    small += [f"{name.partition('/')[0]}/config.json" for name in folders]
    found = wanted([*weights, *small, "svd_xt.safetensors"], "fp16")
    assert sorted(found) == sorted([*small, *(name for name in weights if "fp16" in name)])
    texts = ["tokenizer/vocab.json", "text_encoder/model.safetensors", *weights, *small]
    assert not [name for name in wanted(texts) if name.startswith(("image_encoder", "feature_extractor"))]


def test_families_are_told_apart_by_their_frames():
    config = XT.config("unet")
    assert family_of(config, "unet") == XT
    assert family_of(config | {"num_frames": 14}, "unet") == SVD
    assert family_of(config | {"num_frames": 4}, "unet") == SVD
