"""ControlNetModel, which adds residuals to a UNet's; it is exported with the UNet, as one part (see `parts.unet`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.model import ControlNet
from ...core.wires import CONTROL_IMAGE, Wire, control_scale_source, control_source
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.manifest import TensorInfo
    from ..checkpoint import Checkpoint
    from ..families import Component, Config

CONTROLNET = "ControlNetModel"

SCALES = "controlnet_scales"
"""The denoiser's input for the factors of a ControlNet's residuals."""


def no_parts(_checkpoint: Checkpoint, _component: Component) -> tuple[PartSpec, ...]:
    """Nothing: the denoiser's part holds it."""
    return ()


def residuals(config: Config) -> int:
    """Number of residuals: one after the first convolution, each layer and each downsampler, and the middle's."""
    levels = len(config["block_out_channels"])
    return levels * (config.get("layers_per_block") or 2) + levels + 1


def facts_of(config: Config, _vae: Config) -> ControlNet:
    """What the pipeline must know about a ControlNet with this config."""
    return ControlNet(residuals=residuals(config), pooled=bool(config.get("global_pool_conditions")))


def read_by(config: Config) -> tuple[tuple[int | str, ...], int]:
    """Axes of the image that a ControlNet with this config reads, and the number of its residuals."""
    return ("batch", 3, "8*height", "8*width"), residuals(config)


def inputs_of(index: int, shape: tuple[int | str, ...], count: int) -> tuple[tuple[TensorInfo, ...], tuple[Wire, ...]]:
    """The inputs of the ControlNet of this index, from 0, and their wires: what it reads, of this shape, and a factor
    for each of its `count` residuals in each row.
    """
    end = "" if index == 0 else f"_{index + 1}"
    image = floats(f"{CONTROL_IMAGE}{end}", *shape)
    scales = floats(f"{SCALES}{end}", "batch", count)
    wires = (
        Wire(input=image.name, source=control_source(index)),
        Wire(input=scales.name, source=control_scale_source(index)),
    )
    return (image, scales), wires


def summed(before: Sequence[Any], found: Sequence[Any]) -> list[Any]:
    """The residuals of several ControlNets together; `before` are those of the ones so far."""
    return [one + other for one, other in zip(before, found, strict=True)] if before else list(found)


def added(
    nets: Sequence[Any], images: Sequence[Any], scales: Sequence[Any], sample: Any, *given: Any, **more: Any
) -> tuple[list[Any], Any]:
    """The residuals of all ControlNets together: those of the UNet's down blocks, and the middle's.

    `scales` are [batch, residuals]: they replace `conditioning_scale` and `guess_mode` of diffusers' model, which are
    factors too. Source: diffusers' `MultiControlNetModel`.
    """
    sums: list[Any] = []
    for net, image, factors in zip(nets, images, scales, strict=True):
        down, middle = net(sample, *given, controlnet_cond=image, return_dict=False, **more)
        sums = summed(sums, [one * factors[:, at, None, None, None] for at, one in enumerate((*down, middle))])
    return sums[:-1], sums[-1]


_READS = frozenset({
    "in_channels", "conditioning_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "mid_block_type",
    "only_cross_attention", "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor",
    "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "encoder_hid_dim",
    "encoder_hid_dim_type", "attention_head_dim", "num_attention_heads", "use_linear_projection", "class_embed_type",
    "addition_embed_type", "addition_time_embed_dim", "num_class_embeds", "upcast_attention",
    "resnet_time_scale_shift", "projection_class_embeddings_input_dim", "controlnet_conditioning_channel_order",
    "conditioning_embedding_out_channels", "global_pool_conditions", "addition_embed_type_num_heads",
})  # fmt: skip

CLASSES = {
    CONTROLNET: ComponentClass(
        no_parts, _READS, {"in_channels": int, "block_out_channels": list, "cross_attention_dim": int}
    ),
}
