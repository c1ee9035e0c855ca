"""ControlNets: layouts, what fits a checkpoint, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentc.checkpoints.controls import about_controls, controlled
from latentc.checkpoints.controls_sd3 import about_colours
from latentc.checkpoints.families import find_family
from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.others import controls_of
from latentc.checkpoints.parts import model_facts
from latentc.checkpoints.parts.controlnet import facts_of
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


@pytest.mark.parametrize("name", ["control_v11e_sd15_shuffle_fp16", "control_v11p_sd15_canny"])
def test_a_file_without_a_config_is_pooled_by_its_name(checkpoint, net, tmp_path, name):
    place, plain = as_file(net("sd1"), tmp_path / f"{name}.safetensors"), str(net("sd1"))
    opened = open_checkpoint(checkpoint("sd1"), components=controls_of([plain, str(place)]))
    pooled = facts_of(opened.configs["controlnet_2"], {}).pooled
    assert pooled == bool(about_controls(opened)) == ("shuffle" in name)
    if pooled:
        with pytest.raises(CheckpointError, match=r"shuffle_fp16.safetensors averages its .* Pass it last"):
            open_checkpoint(checkpoint("sd1"), components=controls_of([str(place), plain]))


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
    refused(
        checkpoint("sd3"), net("sd1"), "is a ControlNet of another family .Stable Diffusion 1, .*but .* Diffusion 3"
    )
    refused(checkpoint("sd1_inpainting"), net("sd1"), "ControlNets of that family are not supported yet")
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


def mmdit_net(folder, transformer, **changes):
    """Write a tiny ControlNet of Stability AI's kind for a transformer in `folder`."""
    import diffusers
    import torch

    own = json.loads((transformer / "config.json").read_text())
    torch.manual_seed(1)
    settings = {
        "num_layers": 2,
        "attention_head_dim": own["attention_head_dim"],
        "num_attention_heads": own["num_attention_heads"],
        "joint_attention_dim": None,
        "caption_projection_dim": own["caption_projection_dim"],
        "pooled_projection_dim": own["pooled_projection_dim"],
        "pos_embed_max_size": None,
        "pos_embed_type": None,
        "use_pos_embed": False,
        "force_zeros_for_pooled_projection": False,
    }
    diffusers.SD3ControlNetModel(**{**settings, **changes}).save_pretrained(folder)
    return folder


MMDIT_NAMES = {
    "attn.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1.linear": "adaLN_modulation.1",
}


def as_stability(folder, path, kind):
    """Write a ControlNet of 3.5 Large under the names that Stability AI gives it."""
    tensors, joined = {}, {}
    for name, array in tensors_of(folder).items():
        if found := re.fullmatch(r"(transformer_blocks\.\d+\.attn)\.to_([qkv])\.(.*)", name):
            joined.setdefault(f"{found[1]}.qkv.{found[3]}", {})[found[2]] = array
            continue
        for new, old in MMDIT_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = array
    tensors |= {name: np.concatenate([each[one] for one in "qkv"]) for name, each in joined.items()}
    save_file(tensors | ({} if kind is None else {"control_type": np.array(kind)}), path)
    return path


@pytest.mark.parametrize(
    ("kind", "name", "colours"),
    [
        (np.float32(1), "net", (0.5, 128)),
        (np.int32(2), "canny", (-1, 1)),
        (np.float16(0), "net", (-1, 1)),
        (None, "sd3.5_large_controlnet_canny", (0.5, 128)),
        (None, "sd3.5_large_controlnet_depth", (-1, 1)),
    ],
)
def test_stability_ais_files_are_read(checkpoint, tmp_path, kind, name, colours):
    folder = mmdit_net(tmp_path / "net", checkpoint("sd35l") / "transformer")
    path = as_stability(folder, tmp_path / f"{name}.safetensors", kind)
    opened = open_checkpoint(checkpoint("sd35l"), components=controls_of([str(path)]))
    expected, module = tensors_of(folder), opened.module("controlnet")
    found = {one: tensor.numpy() for one, tensor in module.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[one], expected[one]) for one in expected)
    (control,) = model_facts(opened).controls
    assert (control.colours, control.latent_shift, control.residuals) == (colours, 0.0609, 2)
    assert [name.split("_")[-1] in one for one in about_colours(opened)] == ([] if kind is not None else [True])


def test_a_folder_says_by_its_name_what_it_reads(checkpoint, tmp_path):
    folder = mmdit_net(tmp_path / "my-Canny-net", checkpoint("sd35l") / "transformer")
    opened = open_checkpoint(checkpoint("sd35l"), components=controls_of([str(folder)]))
    assert model_facts(opened).controls[0].colours == (0.5, 128)
    assert about_colours(opened)[0].endswith("they are edges (Canny), which Stability AI encodes with another range.")


def test_a_type_that_is_not_known_is_refused(checkpoint, tmp_path):
    folder = mmdit_net(tmp_path / "net", checkpoint("sd35l") / "transformer")
    path = as_stability(folder, tmp_path / "net.safetensors", np.float32(7))
    refused(checkpoint("sd35l"), path, "control_type with another value than 0 .blurred images., 1 .edges .Canny..")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"num_attention_heads": 8},
            "for a transformer of width 64, but .* Stable Diffusion 3.5 Large, whose .* 32 wide",
        ),
        (
            {"attention_head_dim": 64, "num_attention_heads": 24},
            "is a ControlNet of Stable Diffusion 3 or .* 3.5 Medium",
        ),
        ({"extra_conditioning_channels": 1}, "for inpainting, which reads a mask too"),
        ({"num_layers": 4}, "has 4 layers, but the checkpoint's transformer has only 3"),
        ({"pooled_projection_dim": 8}, "for a transformer with pooled_projection_dim = 8"),
        ({"joint_attention_dim": 32, "caption_projection_dim": 32}, "qk_norm = None, unlike the checkpoint's"),
    ],
)
def test_controlnets_of_other_transformers_are_refused(checkpoint, tmp_path, changes, match):
    folder = mmdit_net(tmp_path / "net", checkpoint("sd35l") / "transformer", **changes)
    refused(checkpoint("sd35l"), folder, match)


def test_two_kinds_for_a_transformer_are_refused(checkpoint, tmp_path):
    transformer = checkpoint("sd3") / "transformer"
    one = mmdit_net(tmp_path / "one", transformer)
    text = {"joint_attention_dim": 32, "use_pos_embed": True, "pos_embed_max_size": 24, "pos_embed_type": "sincos"}
    other = mmdit_net(tmp_path / "two", transformer, force_zeros_for_pooled_projection=True, **text)
    with pytest.raises(CheckpointError, match="The ControlNets are of two kinds"):
        open_checkpoint(checkpoint("sd3"), components=controls_of([str(one), str(other)]))
    refused(checkpoint("sd1"), one, "is a ControlNet of another family .Stable Diffusion 3, .*is Stable Diffusion 1")
    renamed = as_file(other, tmp_path / "net.safetensors", rename=False)
    refused(checkpoint("sd3"), renamed, "has no config.json beside it")


def t2i_adapter(folder, **settings):
    """Write a tiny T2I-Adapter in `folder`."""
    import diffusers
    import torch

    torch.manual_seed(1)
    diffusers.T2IAdapter(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def even(checkpoint, tmp_path_factory):
    """A tiny checkpoint of Stable Diffusion 1 whose last two levels are equally wide, as light adapters need."""
    import diffusers

    folder = tmp_path_factory.mktemp("even") / "sd1"
    shutil.copytree(checkpoint("sd1"), folder)
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    shutil.rmtree(folder / "unet")
    diffusers.UNet2DConditionModel.from_config({**config, "block_out_channels": [32, 32]}).save_pretrained(
        folder / "unet"
    )
    return folder


T2I = {
    "full": ("sd1", {"channels": [32, 64], "adapter_type": "full_adapter"}),
    "grey": ("sd1", {"channels": [32, 64], "adapter_type": "full_adapter", "in_channels": 1}),
    "light": ("even", {"channels": [32], "adapter_type": "light_adapter", "num_res_blocks": 4}),
    "xl": ("sdxl", {"channels": [32, 48], "adapter_type": "full_adapter_xl", "downscale_factor": 16}),
}


def tencent_name(name):
    """The name that the original T2I-Adapter's code gives to a tensor."""
    name = name.removeprefix("adapter.")
    if found := re.fullmatch(r"body\.(\d+)\.in_conv\.(.*)", name):
        return f"body.{2 * int(found[1])}.in_conv.{found[2]}"
    found = re.fullmatch(r"body\.(\d+)\.resnets\.(\d+)\.(.*)", name)
    return f"body.{2 * int(found[1]) + int(found[2])}.{found[3]}" if found else name


T2I_LAYOUTS = {
    "folder": lambda folder, _: folder,
    "diffusers' names": lambda folder, path: as_file(folder, path / "net.safetensors", rename=False),
    "TencentARC's names": lambda folder, path: tencent(folder, path / "net.safetensors"),
}


def tencent(folder, path):
    tensors = tensors_of(folder)
    rename = tencent_name if "adapter.conv_in.weight" in tensors else light_name
    save_file({rename(name): array for name, array in tensors.items()}, path)
    return path


def light_name(name):
    return name.removeprefix("adapter.").replace(".resnets.", ".body.")


@pytest.mark.parametrize("layout", T2I_LAYOUTS)
@pytest.mark.parametrize("case", T2I)
def test_every_layout_gives_the_same_t2i_adapter(checkpoint, even, tmp_path, case, layout):
    family, settings = T2I[case]
    folder = t2i_adapter(tmp_path / "net", **settings)
    place = T2I_LAYOUTS[layout](folder, tmp_path)
    whole = even if family == "even" else checkpoint(family)
    opened = open_checkpoint(whole, components=controls_of([str(place)]))
    expected, module = tensors_of(folder), opened.module("controlnet")
    found = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    facts = model_facts(opened)
    assert facts.controls[0].kind == "T2I-Adapter"
    assert (facts.controls[0].channels, facts.patch) == (settings.get("in_channels", 3), 2 if case == "xl" else 1)


def test_the_folder_of_a_whole_adapter_pipeline_holds_one(checkpoint, tmp_path):
    t2i_adapter(tmp_path / "whole" / "adapter", channels=[32, 64])
    shutil.copyfile(checkpoint("sd1") / "model_index.json", tmp_path / "whole" / "model_index.json")
    opened = open_checkpoint(checkpoint("sd1"), components=controls_of([str(tmp_path / "whole")]))
    assert opened.others["controlnet"].where.endswith("whole/adapter/config.json")


def test_t2i_adapters_that_do_not_fit_are_refused(checkpoint, net, tmp_path):
    folders = {name: t2i_adapter(tmp_path / name, **settings) for name, (_, settings) in T2I.items()}
    refused(checkpoint("sdxl"), folders["full"], "is a T2I-Adapter of Stable Diffusion 1, but .* Stable Diffusion XL")
    refused(checkpoint("sd1"), folders["xl"], "is a T2I-Adapter of Stable Diffusion XL, but .* Stable Diffusion 1")
    refused(checkpoint("sd2"), folders["full"], "is a T2I-Adapter of another family")
    wide = t2i_adapter(tmp_path / "wide", channels=[32, 96], adapter_type="full_adapter")
    refused(checkpoint("sd1"), wide, "for a UNet with block_out_channels = .32, 96., but the checkpoint's has .32, 64.")
    six = t2i_adapter(tmp_path / "six", channels=[32, 64], in_channels=6)
    refused(checkpoint("sd1"), six, "reads images of 6 channels; 1 or 3 were expected")
    coarse = t2i_adapter(tmp_path / "coarse", channels=[32, 64], downscale_factor=16)
    refused(
        checkpoint("sd1"), coarse, "adapter_type = 'full_adapter' and downscale_factor = 16, which is not supported"
    )
    with pytest.raises(CheckpointError, match="ControlNets and T2I-Adapters cannot be combined"):
        open_checkpoint(checkpoint("sd1"), components=controls_of([str(net("sd1")), str(folders["full"])]))
    opened = open_checkpoint(checkpoint("sd1"), components=controls_of([str(folders["full"])]))
    both = {**opened.others, "ip_adapter": opened.others["controlnet"]}
    with pytest.raises(CheckpointError, match="T2I-Adapters and IP-Adapters cannot be combined yet"):
        controlled(find_family("sd1"), opened.configs, both)
    (tmp_path / "t2iadapter_sketch_sd14v1.pth").write_bytes(b"x")
    refused(checkpoint("sd1"), tmp_path / "t2iadapter_sketch_sd14v1.pth", "pickle|never opened")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"channels": 32}, "channels = 32, but a list of 1 to 8 levels"),
        ({"channels": ["a"]}, "channels = .'a'., but an integer from 1"),
        ({"num_res_blocks": 10**9}, "num_res_blocks = 1000000000"),
        ({"adapter_type": ["full_adapter"]}, "adapter_type = .'full_adapter'."),
        ({"in_channels": "3"}, "in_channels = '3'"),
    ],
)
def test_a_t2i_adapters_config_is_not_trusted(checkpoint, tmp_path, values, match):
    folder = t2i_adapter(tmp_path / "net", channels=[32, 64])
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    refused(checkpoint("sd1"), folder, match)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_layers": 10**9}, "num_layers = 1000000000"),
        ({"attention_head_dim": "8"}, "attention_head_dim = '8'"),
        ({"num_attention_heads": None}, "num_attention_heads = None; an integer was expected"),
        ({"new_field": 1}, "has a field 'new_field'"),
    ],
)
def test_an_sd3_controlnets_config_is_not_trusted(checkpoint, tmp_path, values, match):
    folder = mmdit_net(tmp_path / "net", checkpoint("sd35l") / "transformer")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    refused(checkpoint("sd35l"), folder, match)
