"""ControlNets: layouts, what fits a checkpoint, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.others import controls_of
from latentc.core.errors import CheckpointError

from .conftest import unet_name

HINT = [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.fixture(scope="module")
def net(checkpoint, tmp_path_factory):
    """`net(family)`: a tiny ControlNet in diffusers' layout, with random weights. Don't change it."""
    made = {}

    def make(family):
        if family not in made:
            import diffusers
            import torch

            unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint(family) / "unet", local_files_only=True)
            torch.manual_seed(1)
            one = diffusers.ControlNetModel.from_unet(unet)
            with torch.no_grad():
                for name, tensor in one.named_parameters():
                    if name.startswith("controlnet_"):
                        tensor.copy_(torch.randn(tensor.shape) * 0.1)
            made[family] = tmp_path_factory.mktemp("net") / family
            one.save_pretrained(made[family])
        return made[family]

    return make


def tensors_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "diffusion_pytorch_model.safetensors")


def original_name(name, config):
    """The name that the original ControlNet's code gives to a tensor."""
    if found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.*)", name):
        return f"input_hint_block.{HINT[int(found[1]) + 1]}.{found[2]}"
    ends = {"controlnet_cond_embedding.conv_in.": 0, "controlnet_cond_embedding.conv_out.": 14}
    for start, place in ends.items():
        if name.startswith(start):
            return f"input_hint_block.{place}.{name.removeprefix(start)}"
    if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.*)", name):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if name.startswith("controlnet_mid_block."):
        return name.replace("controlnet_mid_block.", "middle_block_out.0.")
    return unet_name(name, config)


def as_file(folder, path, *, prefix="", rename=True):
    config = json.loads((folder / "config.json").read_text())
    named = {
        prefix + (original_name(name, config) if rename else name): value for name, value in tensors_of(folder).items()
    }
    save_file(named, path)
    return path


LAYOUTS = {
    "folder": lambda folder, _: folder,
    "original": lambda folder, path: as_file(folder, path / "net.safetensors"),
    "with a prefix": lambda folder, path: as_file(folder, path / "net.safetensors", prefix="control_model."),
    "diffusers' names": lambda folder, path: as_file(folder, path / "net.safetensors", rename=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_layout_gives_the_same_module(checkpoint, net, tmp_path, family, layout):
    place = LAYOUTS[layout](net(family), tmp_path)
    opened = open_checkpoint(checkpoint(family), components=controls_of([str(place)]))
    expected, module = tensors_of(net(family)), opened.module("controlnet")
    found = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    stated = json.loads((net(family) / "config.json").read_text())
    config = dict(module.config)
    for key in ("attention_head_dim", "conditioning_embedding_out_channels", "transformer_layers_per_block"):
        assert json.dumps(config[key]) == json.dumps(stated[key])


def test_a_single_file_checkpoint_takes_one(single_file, net):
    opened = open_checkpoint(single_file("sd1"), components=controls_of([str(net("sd1"))]))
    assert [one.name for one in opened.family.components][-1] == "controlnet"
    again = open_checkpoint(opened, spacing="trailing")
    assert "controlnet" in again.configs


def test_the_folder_of_a_whole_pipeline_holds_one(checkpoint, net, tmp_path):
    shutil.copytree(net("sd1"), tmp_path / "whole" / "controlnet")
    shutil.copyfile(checkpoint("sd1") / "model_index.json", tmp_path / "whole" / "model_index.json")
    opened = open_checkpoint(checkpoint("sd1"), components=controls_of([str(tmp_path / "whole")]))
    assert opened.others["controlnet"].where.endswith("whole/controlnet/config.json")


def test_several_have_names_of_their_own(checkpoint, net):
    place = str(net("sd1"))
    opened = open_checkpoint(checkpoint("sd1"), components=controls_of([place, place, place]))
    assert [one.name for one in opened.family.components][-3:] == ["controlnet", "controlnet_2", "controlnet_3"]
    with pytest.raises(CheckpointError, match="9 ControlNets were given, but the limit is 8"):
        controls_of([place] * 9)


def refused(checkpoint, place, match):
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(checkpoint, components=controls_of([str(place)]))


def test_a_controlnet_of_another_family_is_refused_by_name(checkpoint, net, tmp_path):
    refused(checkpoint("sd1"), net("sdxl"), "is a ControlNet .*, but the checkpoint is Stable Diffusion 1")
    refused(checkpoint("sdxl"), net("sd1"), "is a ControlNet .*, but the checkpoint is Stable Diffusion XL")
    place = as_file(net("sdxl"), tmp_path / "xl.safetensors")
    refused(checkpoint("sd1"), place, "is a ControlNet .*, but the checkpoint is Stable Diffusion 1")
    refused(checkpoint("sd3"), net("sd1"), "ControlNets of Stable Diffusion 3 are not supported yet")
    refused(checkpoint("svd"), net("sd1"), "Leave out --controlnet|cannot be replaced")


KINDS = {
    "a ControlLoRA": "lora_controlnet",
    "a ControlNet-LLLite": "lllite_unet_input_blocks_1_1.down.0.weight",
    "a ControlNet\\+\\+": "control_add_embedding.linear_1.weight",
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_name(checkpoint, net, tmp_path, kind):
    tensors = tensors_of(net("sd1")) | {KINDS[kind]: np.zeros(1, np.float32)}
    save_file(tensors, tmp_path / "x.safetensors")
    refused(checkpoint("sd1"), tmp_path / "x.safetensors", f"is {kind}")


def changed(net, tmp_path, **values):
    folder = shutil.copytree(net("sd1"), tmp_path / "changed")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "holds the class ControlNetUnionModel, which is not supported here"),
        ({"conditioning_channels": 6}, "reads images of 6 channels"),
        ({"class_embed_type": "timestep"}, "has class_embed_type = 'timestep'"),
        ({"block_out_channels": [32, 96]}, "for a UNet with block_out_channels"),
        ({"layers_per_block": 2}, "for a UNet with layers_per_block = 2"),
        ({"conditioning_embedding_out_channels": [16, 32, 96]}, "4 pixels per latent, but the checkpoint's VAE has 8"),
        ({"new_field": 1}, "has a field 'new_field'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(checkpoint, net, tmp_path, values, match):
    refused(checkpoint("sd1"), changed(net, tmp_path, **values), match)


def test_files_without_one_are_refused(checkpoint, tmp_path):
    save_file({"something.else": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    refused(checkpoint("sd1"), tmp_path / "x.safetensors", "holds no ControlNet that latentc recognizes")
    refused(checkpoint("sd1"), checkpoint("sd1") / "unet", "holds the class UNet2DConditionModel")
    (tmp_path / "net.pth").write_bytes(b"x")
    refused(checkpoint("sd1"), tmp_path / "net.pth", "pickle|never opened")
