"""Configs of a checkpoint in the original single-file layout, derived from its tensors' shapes.

Each starts from the family's published config and is updated from the shapes (widths, layers, depths),
so that tiny and pruned variants open too. What shapes don't show comes from the family's rules: attention
heads, groups of the norms, activations. `shapes` is keyed by the tensors' names without their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..core.errors import CheckpointError
from .families import Config, Family, TextLayout, norm_groups, text_heads
from .names import drops_last_layer, openclip_layers

MAX_BLOCKS = 256
"""Blocks of a UNet; published ones have 25."""

TensorShapes = Mapping[str, tuple[int, ...]]


def unet_config(shapes: TensorShapes, family: Family, start: Config | None = None) -> Config:
    """The UNet's config: levels are recognized by their downsamplers, depths by their transformer blocks.

    `start` is the config to update; None is the family's.
    """
    down = _levels(shapes, "input_blocks")
    up = _levels(shapes, "output_blocks")
    if (blocks := sum(map(len, (*down, *up)))) > MAX_BLOCKS:
        raise CheckpointError(
            f"The UNet has {blocks:,} blocks, but the limit is {MAX_BLOCKS}. Use a checkpoint with a published "
            "structure."
        )
    layers = {len(level) for level in down} | {len(level) - 1 for level in up}
    if len(layers) != 1 or 0 in layers or len(up) != len(down):
        raise uneven([len(level) for level in down], [len(level) for level in up])
    widths = [axis(shapes, f"input_blocks.{level[0]}.0.out_layers.3.weight", 0) for level in down]
    down_depths = [[depth(shapes, f"input_blocks.{block}.1") for block in level] for level in down]
    up_depths = [[depth(shapes, f"output_blocks.{block}.1") for block in level] for level in up]
    config = (start or family.config("unet")) | {
        "in_channels": axis(shapes, "input_blocks.0.0.weight", 1),
        "out_channels": axis(shapes, "out.2.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": layers.pop(),
        "down_block_types": ["CrossAttnDownBlock2D" if any(d) else "DownBlock2D" for d in down_depths],
        "up_block_types": ["CrossAttnUpBlock2D" if any(d) else "UpBlock2D" for d in up_depths],
        "attention_head_dim": family.heads(widths),
        "norm_num_groups": norm_groups(widths[0]),
    }
    if "transformer_layers_per_block" in config:  # published ones may be deeper
        config["transformer_layers_per_block"] = [1] * len(widths)
    config |= transformers(shapes, down_depths, up_depths, depth(shapes, "middle_block.1"))
    linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    if linear != bool(config.get("use_linear_projection")):
        config["use_linear_projection"] = linear
    if config.get("addition_embed_type"):
        projected = axis(shapes, "label_emb.0.0.weight", 1)
        config["projection_class_embeddings_input_dim"] = projected
    return config


def vae_config(shapes: TensorShapes, family: Family, start: Config | None = None) -> Config:
    """The VAE's config; `start` is the config to update, None is the family's."""
    blocks = numbers(shapes, r"encoder\.down\.(\d+)\.block\.")
    widths = [axis(shapes, f"encoder.down.{block}.block.0.conv2.weight", 0) for block in blocks]
    return (start or family.config("vae")) | {
        "in_channels": axis(shapes, "encoder.conv_in.weight", 1),
        "out_channels": axis(shapes, "decoder.conv_out.weight", 0),
        "latent_channels": axis(shapes, "decoder.conv_in.weight", 1),
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": len(numbers(shapes, r"encoder\.down\.0\.block\.(\d+)\.")),
        "norm_num_groups": norm_groups(min(widths, default=0)),
    }


def text_config(shapes: TensorShapes, family: Family, text: TextLayout) -> Config:
    """A text encoder's config."""
    if text.style == "openclip":
        names = {"token": "token_embedding.weight", "position": "positional_embedding"}
        names["hidden"] = "transformer.resblocks.0.mlp.c_fc.weight"
        layers = openclip_layers(shapes)
        layers -= drops_last_layer(text, shapes, layers)
    else:
        shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
        names = {
            "token": "embeddings.token_embedding.weight",
            "position": "embeddings.position_embedding.weight",
        }
        names["hidden"] = "encoder.layers.0.mlp.fc1.weight"
        layers = len(numbers(shapes, r"encoder\.layers\.(\d+)\."))
    width = axis(shapes, names["token"], 1)
    config = family.config(text.component) | {
        "vocab_size": axis(shapes, names["token"], 0),
        "hidden_size": width,
        "intermediate_size": axis(shapes, names["hidden"], 0),
        "num_hidden_layers": layers,
        "num_attention_heads": text_heads(width),
        "max_position_embeddings": axis(shapes, names["position"], 0),
    }
    if family.component(text.component).cls == "CLIPTextModelWithProjection":
        name = "text_projection.weight" if text.style == "transformers" else "text_projection"
        config["projection_dim"] = axis(shapes, name, 1) if name in shapes or text.style == "openclip" else width
    return config


def time_embed_width(unet: Config, texts: Mapping[str, Config], family: Family) -> Config:
    """The width per time id: the UNet's added embedding less the pooled text is shared by the time ids."""
    if family.pooled is None:
        return {}
    pooled = texts[family.pooled]["projection_dim"]
    return {"addition_time_embed_dim": (unet["projection_class_embeddings_input_dim"] - pooled) // family.time_ids}


def uneven(down: list[int], up: list[int]) -> CheckpointError:
    """The error for a UNet whose levels have different numbers of layers."""
    return CheckpointError(
        f"The UNet's levels have {down} layers on the way down and {up} on the way up; latentc expects the same number "
        "at each level, plus one on the way up. Pass the checkpoint as a diffusers folder, which states its structure."
    )


def transformers(shapes: TensorShapes, down: list[list[int]], up: list[list[int]], middle: int) -> Config:
    """The config keys that follow from the depths of a UNet's transformers, by level and block, and its shapes."""
    keys = next((name for name in shapes if name.endswith(".attn2.to_k.weight")), None)
    if keys is None:
        raise CheckpointError(
            "The UNet has no cross-attention (no tensor '...attn2.to_k.weight'), so it takes no prompt. "
            "Pass a text-to-image checkpoint."
        )
    depths = [level[0] for level in down]
    same = down == [[depth] * len(down[0]) for depth in depths]
    same = same and up == [[depth] * len(up[0]) for depth in reversed(depths)]
    if not same or middle == 0 or depths[-1] not in (0, middle):
        raise CheckpointError(
            f"The UNet's transformers are {down} blocks deep on the way down, {middle} in the middle and {up} on "
            "the way up; latentc expects one depth per level. Pass the checkpoint as a diffusers folder, which "
            "states its structure."
        )
    found: Config = {"cross_attention_dim": axis(shapes, keys, 1)}
    if max(*depths, middle) > 1:
        found["transformer_layers_per_block"] = [max(1, depth) for depth in depths[:-1]] + [middle]
    return found


def _levels(shapes: TensorShapes, side: str) -> list[list[int]]:
    """Indices of the blocks that hold a resnet, by level; a down- or upsampler ends a level."""
    levels: list[list[int]] = [[]]
    ends = set(numbers(shapes, rf"{side}\.(\d+)\.\d\.(?:op|conv)\.weight$"))
    for block in numbers(shapes, rf"{side}\.(\d+)\."):
        if f"{side}.{block}.0.in_layers.2.weight" in shapes:
            levels[-1].append(block)
        if block in ends:
            levels.append([])
    return levels


def depth(shapes: TensorShapes, attention: str) -> int:
    """Number of transformer blocks of an attention."""
    return len(numbers(shapes, rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\."))


def numbers(shapes: TensorShapes, pattern: str) -> list[int]:
    """The sorted numbers that a pattern's group matches in the names."""
    return sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})


def axis(shapes: TensorShapes, name: str, number: int) -> int:
    """The size of a tensor's axis; raises CheckpointError if the tensor or the axis doesn't exist."""
    if len(shapes.get(name, ())) <= number:
        raise CheckpointError(
            f"Tensor '...{name}' is missing or has a wrong shape, so this is not a whole checkpoint in this layout. "
            "Download it again, or pass the diffusers folder instead."
        )
    return shapes[name][number]
