"""Checkpoints in the original layout, made from tiny ones by renaming the other way round."""

import json
import re
import shutil
from pathlib import Path

import pytest

UNET = "model.diffusion_model."
VAE = "first_stage_model."

_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("time_emb_proj.", "emb_layers.1."),
    ("conv_shortcut.", "skip_connection."),
)
_UNET_ENDS = (
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
)
_VAE_ATTENTION = (
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
)
_OPENCLIP = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.", "attn."),
)


def _replaced(name: str, pairs) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def unet_name(name: str, config) -> str:
    per_level = config["layers_per_block"] + 1
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if match:
        side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if side == "down":
            block = f"input_blocks.{1 + level * per_level + index}"
        else:
            block = f"output_blocks.{level * per_level + index}"
        if kind == "resnets":
            return f"{block}.0.{_replaced(rest, _RESNET)}"
        if kind == "attentions":
            return f"{block}.1.{rest}"
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.0.op.{rest.removeprefix('conv.')}"
        slot = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        return f"output_blocks.{(level + 1) * per_level - 1}.{slot}.{rest}"
    match = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    if match:
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{_replaced(match[3], _RESNET)}"
    for old, new in _UNET_ENDS:
        if name.startswith(old):
            return name.replace(old, new)
    raise AssertionError(name)


def vae_entry(name: str, tensor, levels: int):
    attention = re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", name)
    if attention:
        rest = _replaced(attention[2], _VAE_ATTENTION)
        if rest.endswith("weight") and not rest.startswith("norm"):
            tensor = tensor[:, :, None, None]  # linear layers were 1x1 convolutions
        return f"{attention[1]}.mid.attn_1.{rest}", tensor
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut"), tensor


def openclip(tensors):
    import torch

    found = {}
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif ".q_proj." in name:
            rows = [tensors[name.replace(".q_proj.", f".{which}_proj.")] for which in "qkv"]
            kind = name.rsplit(".", 1)[1]
            joined = _replaced(name.removeprefix("text_model."), _OPENCLIP).replace(f"q_proj.{kind}", f"in_proj_{kind}")
            found[joined] = torch.cat(rows)
        elif not re.search(r"\.[kv]_proj\.", name):
            found[_replaced(name.removeprefix("text_model."), _OPENCLIP)] = tensor
    found["logit_scale"] = torch.ones(())
    return found


def original(family: str, tensors, configs):
    """The tensors of each component, under diffusers' names, as one file of the original layout names them."""
    import torch

    found = {UNET + unet_name(name, configs["unet"]): tensor for name, tensor in tensors["unet"].items()}
    levels = len(configs["vae"]["block_out_channels"])
    entries = [vae_entry(name, tensor, levels) for name, tensor in tensors["vae"].items()]
    found |= {VAE + name: tensor for name, tensor in entries}
    text = tensors.get("text_encoder")
    if family == "sdxl_refiner":
        found |= {f"conditioner.embedders.0.model.{k}": t for k, t in openclip(tensors["text_encoder_2"]).items()}
    elif family.startswith("sd1"):
        prefix = "cond_stage_model.transformer."
        found |= {prefix + name: tensor for name, tensor in text.items()}
        found[prefix + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    elif family.startswith("sd2"):
        named = openclip(text)
        last = configs["text_encoder"]["num_hidden_layers"] - 1
        mark, width = f"resblocks.{last}.", configs["text_encoder"]["hidden_size"]
        named |= {
            k.replace(mark, f"resblocks.{last + 1}."): torch.full_like(t, 7) for k, t in named.items() if mark in k
        }
        named["text_projection"] = torch.ones(width, width)
        found |= {f"cond_stage_model.model.{name}": tensor for name, tensor in named.items()}
    else:
        found |= {f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in text.items()}
        found |= {f"conditioner.embedders.1.model.{k}": t for k, t in openclip(tensors["text_encoder_2"]).items()}
    found |= {"betas": torch.ones(4), "model_ema.decay": torch.ones(())}
    found |= {"model_ema.diffusion_modelout2bias": torch.zeros(4)}
    return found


MMDIT_TEXTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
MMDIT_ENDS = (
    ("pos_embed.proj.", "x_embedder.proj."),
    ("pos_embed.pos_embed", "pos_embed"),
    ("time_text_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("time_text_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("time_text_embed.text_embedder.linear_1.", "y_embedder.mlp.0."),
    ("time_text_embed.text_embedder.linear_2.", "y_embedder.mlp.2."),
    ("proj_out.", "final_layer.linear."),
)
MMDIT_BLOCK = (
    ("norm1_context.linear.", "context_block.adaLN_modulation.1."),
    ("norm1.linear.", "x_block.adaLN_modulation.1."),
    ("ff_context.net.0.proj.", "context_block.mlp.fc1."),
    ("ff_context.net.2.", "context_block.mlp.fc2."),
    ("ff.net.0.proj.", "x_block.mlp.fc1."),
    ("ff.net.2.", "x_block.mlp.fc2."),
    ("attn.to_out.0.", "x_block.attn.proj."),
    ("attn.to_add_out.", "context_block.attn.proj."),
    ("attn.norm_q.", "x_block.attn.ln_q."),
    ("attn.norm_k.", "x_block.attn.ln_k."),
    ("attn.norm_added_q.", "context_block.attn.ln_q."),
    ("attn.norm_added_k.", "context_block.attn.ln_k."),
    ("attn2.to_out.0.", "x_block.attn2.proj."),
    ("attn2.norm_q.", "x_block.attn2.ln_q."),
    ("attn2.norm_k.", "x_block.attn2.ln_k."),
)
MMDIT_JOINED = (
    (("attn.to_q.", "attn.to_k.", "attn.to_v."), "x_block.attn.qkv."),
    (("attn2.to_q.", "attn2.to_k.", "attn2.to_v."), "x_block.attn2.qkv."),
    (("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."), "context_block.attn.qkv."),
)


def swapped(tensor):
    import torch

    return torch.cat(tensor.chunk(2)[::-1])


def mmdit_names(tensors):
    """The transformer's tensors of Stable Diffusion 3, without prefix, as Stability AI names them."""
    import torch

    last = max(int(re.match(r"transformer_blocks\.(\d+)", name)[1]) for name in tensors if "blocks." in name)
    found = {}
    for name, tensor in tensors.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.*)", name)
        if block is None:
            if name.startswith("norm_out.linear."):
                found[name.replace("norm_out.linear.", "final_layer.adaLN_modulation.1.")] = swapped(tensor)
                continue
            for old, new in MMDIT_ENDS:
                if name.startswith(old):
                    name = name.replace(old, new)
                    break
            found[name] = tensor
            continue
        start, rest = f"joint_blocks.{block[1]}.", block[2]
        joined = next(((parts, new) for parts, new in MMDIT_JOINED if rest.startswith(parts)), None)
        if joined:
            parts, new = joined
            if rest.startswith(parts[0]):
                kind = rest.removeprefix(parts[0])
                rows = [tensors[f"transformer_blocks.{block[1]}.{part}{kind}"] for part in parts]
                found[f"{start}{new}{kind}"] = torch.cat(rows)
            continue
        old, new = next((old, new) for old, new in MMDIT_BLOCK if rest.startswith(old))
        swaps = int(block[1]) == last and old == "norm1_context.linear."
        found[start + rest.replace(old, new)] = swapped(tensor) if swaps else tensor
    return found


def encoder_files(tensors):
    """The text encoders' files: tensors by the stem of the published name."""
    return {stem: dict(tensors[name]) for name, stem in MMDIT_TEXTS.items() if name in tensors}


@pytest.fixture(scope="session")
def as_original():
    """`as_original(family, tensors, configs)`: diffusers' names turned into the original ones."""
    return original


@pytest.fixture(scope="session")
def read_folder():
    """`read_folder(folder)`: tensors and configs of a diffusers folder, by component."""
    from safetensors.torch import load_file

    def read(folder: Path):
        files = {path.parent.name: path for path in folder.glob("*/*.safetensors")}
        tensors = {name: load_file(path) for name, path in files.items()}
        configs = {name: json.loads((path.parent / "config.json").read_text()) for name, path in files.items()}
        return tensors, configs

    return read


@pytest.fixture(scope="session")
def single_file(checkpoint, read_folder, tmp_path_factory):
    """`single_file(family)`: the tiny checkpoint as one file of the original layout. Don't change it."""
    from safetensors.torch import save_file

    made = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("original") / f"{family}.safetensors"
            save_file(original(family, *read_folder(checkpoint(family))), made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def mmdit_file(checkpoint, read_folder):
    """`mmdit_file(family)`: tensors of Stable Diffusion 3's single file, and of each text encoder's own file."""

    def make(family: str):
        tensors, configs = read_folder(checkpoint(family))
        levels = len(configs["vae"]["block_out_channels"])
        found = {UNET + name: tensor for name, tensor in mmdit_names(tensors["transformer"]).items()}
        entries = (vae_entry(name, tensor, levels) for name, tensor in tensors["vae"].items())
        return found | {VAE + name: tensor for name, tensor in entries}, encoder_files(tensors)

    return make


@pytest.fixture(scope="session")
def named_mmdit():
    """`named_mmdit(tensors)`: diffusers' names of the transformer turned into the original ones."""
    return mmdit_names


@pytest.fixture
def own(checkpoint, tmp_path):
    """`own(family)`: a copy of the tiny checkpoint, to change at will."""

    def make(family: str = "sd1") -> Path:
        return Path(shutil.copytree(checkpoint(family), tmp_path / f"own-{family}"))

    return make
