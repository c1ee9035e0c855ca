"""Configs of single components with diffusers' names but no config.json, derived from the tensors' shapes.

Each is a base config, updated from the shapes. `original_configs` does the same for the original layout.
"""

from __future__ import annotations

from .families import Config, Family, norm_groups
from .original_configs import TensorShapes, axis, depth, numbers, transformers, uneven


def named_unet(shapes: TensorShapes, family: Family, start: Config) -> Config:
    """The UNet's config: `start`, updated where the shapes differ from it."""
    levels = numbers(shapes, r"down_blocks\.(\d+)\.")
    down = [_blocks(shapes, f"down_blocks.{level}") for level in levels]
    up = [_blocks(shapes, f"up_blocks.{level}") for level in numbers(shapes, r"up_blocks\.(\d+)\.")]
    layers = {len(level) for level in down} | {len(level) - 1 for level in up}
    if len(layers) != 1 or 0 in layers or len(up) != len(down):
        raise uneven([len(level) for level in down], [len(level) for level in up])
    widths = [axis(shapes, f"down_blocks.{level}.resnets.0.conv1.weight", 0) for level in levels]
    stated: Config = {
        "in_channels": axis(shapes, "conv_in.weight", 1),
        "out_channels": axis(shapes, "conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": layers.pop(),
        "down_block_types": ["CrossAttnDownBlock2D" if any(found) else "DownBlock2D" for found in down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(found) else "UpBlock2D" for found in up],
        **transformers(shapes, down, up, depth(shapes, "mid_block.attentions.0")),
    }
    if "time_embedding.cond_proj.weight" in shapes:
        stated["time_cond_proj_dim"] = axis(shapes, "time_embedding.cond_proj.weight", 1)
    if "add_embedding.linear_1.weight" in shapes:
        stated["projection_class_embeddings_input_dim"] = axis(shapes, "add_embedding.linear_1.weight", 1)
    linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    if linear != bool(start.get("use_linear_projection")):
        stated["use_linear_projection"] = linear
    if list(start.get("block_out_channels", ())) != widths:
        stated |= {"attention_head_dim": family.heads(widths), "norm_num_groups": norm_groups(widths[0])}
    return start | stated


def named_vae(shapes: TensorShapes, _family: Family, start: Config) -> Config:
    """The VAE's config: `start`, updated where the shapes differ from it."""
    levels = numbers(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = [axis(shapes, f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 0) for level in levels]
    stated: Config = {
        "in_channels": axis(shapes, "encoder.conv_in.weight", 1),
        "out_channels": axis(shapes, "decoder.conv_out.weight", 0),
        "latent_channels": axis(shapes, "decoder.conv_in.weight", 1),
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": len(numbers(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
    }
    if list(start.get("block_out_channels", ())) != widths:
        stated["norm_num_groups"] = norm_groups(min(widths, default=0))
    return start | stated


def _blocks(shapes: TensorShapes, level: str) -> list[int]:
    """Depth of the transformer after each resnet of a level."""
    found = numbers(shapes, rf"{level.replace('.', chr(92) + '.')}\.resnets\.(\d+)\.")
    return [depth(shapes, f"{level}.attentions.{block}") for block in found]
