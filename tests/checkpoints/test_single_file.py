"""One file in the original layout opens as the folder that it was made from."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import find_family, open_checkpoint
from latentc.checkpoints.modules import build
from latentc.checkpoints.names import fit, original_plan
from latentc.core.errors import CheckpointError

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner", "sd1_edit")
# What tensors don't tell, and what no module is built from.
UNTOLD = {"sample_size", "torch_dtype"}


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_those_of_the_folder(family, checkpoint, single_file):
    folder, file = open_checkpoint(str(checkpoint(family))), open_checkpoint(str(single_file(family)))
    assert file.family == folder.family
    assert file.source.kind == "file"
    assert file.layout == "original"
    for component in folder.configs:
        theirs, ours = folder.module(component).state_dict(), file.module(component).state_dict()
        assert list(theirs) == list(ours)
        for name, tensor in theirs.items():
            assert torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_are_those_of_the_folder(family, checkpoint, single_file):
    folder, file = open_checkpoint(str(checkpoint(family))), open_checkpoint(str(single_file(family)))
    for component, theirs in folder.configs.items():
        ours = file.configs[component]
        differing = {key for key in theirs | ours if theirs.get(key) != ours.get(key)}
        # A plain CLIPTextModel has no projection, so its width is the published one.
        assert differing <= UNTOLD | ({"projection_dim"} if component == "text_encoder" else set())
    assert file.scheduler == folder.scheduler
    assert file.model_index.items() <= folder.model_index.items()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_full_size_has_the_published_configs(family, as_original, tmp_path):
    """No weight is read, so a file of holes will do."""
    facts = find_family(family)
    configs = {component.name: facts.config(component.name) for component in facts.components}
    tensors = {}
    for component in facts.components:
        state = build(component, configs[component.name]).state_dict()
        prefix = "" if component.library == "diffusers" or "text_model.encoder" in "".join(state) else "text_model."
        tensors[component.name] = {prefix + name: tensor for name, tensor in state.items()}
    header, at = {}, 0
    for name, tensor in as_original(family, tensors, configs).items():
        end = at + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    path = tmp_path / "full.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + at)
    opened = open_checkpoint(str(path))
    assert opened.family.name == family
    assert opened.configs == configs
    assert opened.pixels == facts.pixels
    for component in facts.components:
        wanted = {name: tuple(t.shape) for name, t in build(component, configs[component.name]).state_dict().items()}
        plan = original_plan(opened.weights[component.name], facts, component.name, configs[component.name])
        assert {name: view.shape for name, view in fit(plan, wanted).items()} == wanted


def test_stable_diffusion_2_is_taken_for_v_prediction_unless_told(single_file):
    path = str(single_file("sd2"))
    assert open_checkpoint(path).scheduler["prediction_type"] == "v_prediction"
    base = open_checkpoint(path, prediction="epsilon")
    assert base.scheduler["prediction_type"] == "epsilon"
    assert base.pixels == 512


def test_an_openclip_encoder_that_was_cut_already_keeps_its_layers(single_file, tmp_path):
    """Files converted back from diffusers have neither the last layer nor the projection."""
    tensors = load_file(single_file("sd2"))
    cut = {k: t for k, t in tensors.items() if ".resblocks.2." not in k and "text_projection" not in k}
    save_file(cut, tmp_path / "cut.safetensors")
    opened = open_checkpoint(str(tmp_path / "cut.safetensors"))
    assert opened.configs["text_encoder"]["num_hidden_layers"] == 2
    opened.module("text_encoder")


def test_text_names_without_text_model_are_read(single_file, tmp_path):
    tensors = load_file(single_file("sd1"))
    save_file({name.replace("text_model.", ""): t for name, t in tensors.items()}, tmp_path / "old.safetensors")
    old = open_checkpoint(str(tmp_path / "old.safetensors")).module("text_encoder")
    new = open_checkpoint(str(single_file("sd1"))).module("text_encoder")
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def test_marks_of_v_prediction_are_heeded(single_file, tmp_path):
    tensors = load_file(single_file("sdxl")) | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file(tensors, tmp_path / "vpred.safetensors")
    scheduler = open_checkpoint(str(tmp_path / "vpred.safetensors")).scheduler
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True


def test_the_family_can_be_demanded(single_file):
    assert open_checkpoint(str(single_file("sd1")), family="sd15").family.name == "sd1"
    with pytest.raises(CheckpointError, match=r"Stable Diffusion 1 .* sdxl was requested"):
        open_checkpoint(str(single_file("sd1")), family="sdxl")


@pytest.mark.slow
def test_the_vocabulary_comes_with_the_package(single_file):
    from tokenizers import Tokenizer

    opened = open_checkpoint(str(single_file("sd2")))
    ids = Tokenizer.from_str(opened.tokenizer_files("tokenizer")["tokenizer.json"].decode()).encode("a cat").ids
    assert ids == [49406, 320, 2368, 49407] + [0] * 73


def test_a_tensor_of_no_use_is_named(single_file, tmp_path):
    name = "model.diffusion_model.input_blocks.1.0.extra.weight"
    save_file(load_file(single_file("sd1")) | {name: torch.ones(3)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"input_blocks\.1\.0\.extra\.weight"):
        open_checkpoint(str(tmp_path / "more.safetensors")).module("unet")


@pytest.mark.parametrize(
    ("component", "gone"),
    [
        ("unet", "model.diffusion_model.middle_block.1.transformer_blocks.0.norm2.weight"),
        ("unet", "model.diffusion_model.out.2.bias"),
        ("vae", "first_stage_model.decoder.mid.attn_1.q.bias"),
        ("text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
    ],
)
def test_a_missing_tensor_is_named(component, gone, single_file, tmp_path):
    tensors = load_file(single_file("sd1"))
    del tensors[gone]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has no tensor '.*(norm2\.weight|conv_out\.bias|to_q\.bias|norm\.bias)'"
    ):
        open_checkpoint(str(tmp_path / "less.safetensors")).module(component)


@pytest.mark.parametrize(
    "gone",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ],
)
def test_a_file_without_a_tensor_that_tells_a_size_is_refused_at_once(gone, single_file, tmp_path):
    tensors = load_file(single_file("sd1"))
    del tensors[gone]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=r"is missing or has a wrong shape"):
        open_checkpoint(str(tmp_path / "less.safetensors"))


def test_the_digest_is_of_what_is_stored(single_file, checkpoint, tmp_path):
    opened = open_checkpoint(str(single_file("sd1")))
    tensors = load_file(single_file("sd1"))
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, tmp_path / "changed.safetensors")
    changed = open_checkpoint(str(tmp_path / "changed.safetensors"))
    assert opened.digest("unet") == open_checkpoint(str(single_file("sd1"))).digest("unet")
    assert changed.digest("unet") != opened.digest("unet")
    assert changed.digest("vae") == opened.digest("vae")
