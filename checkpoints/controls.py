"""ControlNets that a checkpoint is exported with: whether they fit it, and their configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .families import CONTROL, FAMILIES, Config, Family
from .fields import check_fields
from .names import CONTROL_PREFIX
from .original_configs import TensorShapes, axis, numbers
from .others import Replacement, is_control
from .parts import CLASSES
from .refusals import refuse_quantized
from .source import check_class

_FITS = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
"""Fields in which a ControlNet has to equal the UNet, whose activations its residuals are added to."""

_EMBEDDING = (16, 32, 96, 256)
"""Widths of a published ControlNet's image encoder."""

_KINDS = (
    ("a ControlLoRA", ("lora_controlnet",)),
    ("a ControlNet-LLLite", ("lllite_",)),
    ("a ControlNet++ (union)", ("control_add_embedding.", "task_embedding", "transformer_layes.")),
    ("a T2I-Adapter", ("adapter.body.", "body.0.", "adapter.conv_in.")),
    ("a ControlNet of Stable Diffusion 3", ("pos_embed_input.", "controlnet_blocks.")),
    ("an InstantID ControlNet", ("image_proj.",)),
)
"""Other kinds, by how names of their tensors begin."""


def controlled(
    family: Family, configs: Mapping[str, Config], others: Mapping[str, Replacement]
) -> tuple[Family, dict[str, Config]]:
    """The family with the ControlNets among `others`, and the configs with theirs.

    Raises CheckpointError for a ControlNet of another family or kind.
    """
    names = [name for name in others if is_control(name)]
    if not names:
        return family, dict(configs)
    if family.controlled is None:
        alike = ", ".join(one.title for one in FAMILIES if one.controlled)
        raise CheckpointError(
            f"ControlNets of {family.title} are not supported yet; those of {alike} are. Leave out --controlnet."
        )
    found = {name: _config(others[name], family, configs[family.denoiser]) for name in names}
    levels = len(configs[family.vae]["block_out_channels"])
    for name, config in found.items():
        if (has := len(config.get("conditioning_embedding_out_channels") or _EMBEDDING)) != levels:
            raise CheckpointError(
                f"{others[name].source.location} reads images of {2 ** (has - 1)} pixels per latent, but the "
                f"checkpoint's VAE has {2 ** (levels - 1)}. Pass a ControlNet that was trained with it."
            )
    components = (*family.components, *(CONTROL.named(name) for name in names))
    return replace(family, components=components), {**configs, **found}


def refuse_kind(where: object, names: TensorShapes) -> None:
    """Raise CheckpointError for another kind of network, by its tensors' names."""
    for what, starts in _KINDS:
        if any(name.startswith(starts) for name in names):
            raise CheckpointError(
                f"{where} is {what}, which is not supported yet. Pass a ControlNet (diffusers' ControlNetModel)."
            )


def _config(other: Replacement, family: Family, unet: Config) -> Config:
    where = other.source.location
    shapes = {name.removeprefix(CONTROL_PREFIX): tensor.shape for name, tensor in other.tensors.items()}
    refuse_kind(where, shapes)
    if other.config is not None:
        check_class(where, CONTROL, other.config)
        check_fields(other.where, CONTROL, other.config)
        config = other.config
    else:
        config = _derived(shapes, unet)
    _check_family(where, shapes, family, unet)
    for key in _FITS:
        if config.get(key, unet.get(key)) != unet.get(key):
            raise CheckpointError(
                f"{where} is a ControlNet for a UNet with {key} = {shown(config.get(key))}, but the checkpoint's has "
                f"{shown(unet.get(key))}. Pass a ControlNet of {family.title}."
            )
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(key):
            raise CheckpointError(
                f"{where} has {key} = {shown(config[key])}, which is not supported yet. Use a ControlNet without it."
            )
    if (channels := config.get("conditioning_channels") or 3) != 3:
        raise CheckpointError(f"{where} reads images of {channels} channels; 3 were expected.")
    refuse_quantized(where, config, other.tensors)
    return config


def _check_family(where: str, shapes: TensorShapes, family: Family, unet: Config) -> None:
    """Raise CheckpointError for a ControlNet that was trained with a UNet of another family."""
    widths = {shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2}
    added = any(name.startswith(("label_emb.", "add_embedding.")) for name in shapes)
    if added == (family.pooled is not None) and widths <= {unet["cross_attention_dim"]}:
        return
    published = {one.title: one.config(one.denoiser).get("cross_attention_dim") for one in FAMILIES if one.controlled}
    pooled = {one.title: one.pooled is not None for one in FAMILIES if one.controlled}
    kinds = [title for title, width in published.items() if {width} == widths and pooled[title] == added]
    kind = f"of {kinds[0]}" if kinds else f"for prompt embeddings of width {shown(sorted(widths))[:LONGEST]}"
    raise CheckpointError(
        f"{where} is a ControlNet {kind}, but the checkpoint is {family.title}. Pass a ControlNet of that family."
    )


def _derived(shapes: TensorShapes, unet: Config) -> Config:
    """The config of a ControlNet without one: the UNet's, whose copy it is, and its image encoder's from the shapes."""
    read = CLASSES[CONTROL.cls].reads
    config = {key: value for key, value in unet.items() if key in read}
    if "input_hint_block.0.weight" in shapes:
        places = numbers(shapes, r"input_hint_block\.(\d+)\.")
        widths = [axis(shapes, f"input_hint_block.{place}.weight", 0) for place in places]
        channels = axis(shapes, "input_hint_block.0.weight", 1)
        embedding = widths[:-1:2]
    else:
        blocks = numbers(shapes, r"controlnet_cond_embedding\.blocks\.(\d+)\.")
        embedding = [
            axis(shapes, "controlnet_cond_embedding.conv_in.weight", 0),
            *(axis(shapes, f"controlnet_cond_embedding.blocks.{block}.weight", 0) for block in blocks[1::2]),
        ]
        channels = axis(shapes, "controlnet_cond_embedding.conv_in.weight", 1)
    return config | {"conditioning_channels": channels, "conditioning_embedding_out_channels": embedding}
