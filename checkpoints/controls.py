"""ControlNets and T2I-Adapters that a checkpoint is exported with: whether they fit it, and their configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .controls_sd3 import about_colours, check_alike, mmdit_control
from .families import CONTROL, CONTROL_SD3, CONTROLS, FAMILIES, IP_ADAPTER, T2I_ADAPTER, Config, Family
from .fields import check_fields
from .names import CONTROL_PREFIX
from .original_configs import TensorShapes, axis, numbers
from .others import Replacement, is_control
from .parts import CLASSES
from .refusals import refuse_quantized
from .source import check_class
from .t2i_adapters import unet_adapter

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_POOLED = "global_pool_conditions"
_FITS = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
"""Fields in which a ControlNet has to equal the UNet, whose activations its residuals are added to."""

_EMBEDDING = (16, 32, 96, 256)
"""Widths of a published ControlNet's image encoder."""

_KINDS = (
    ("a ControlLoRA", ("lora_controlnet",)),
    ("a ControlNet-LLLite", ("lllite_",)),
    ("a ControlNet++ (union)", ("control_add_embedding.", "task_embedding", "transformer_layes.")),
    ("an InstantID ControlNet", ("image_proj.",)),
)
"""Other kinds, by how names of their tensors begin."""


def controlled(
    family: Family, configs: Mapping[str, Config], others: Mapping[str, Replacement]
) -> tuple[Family, dict[str, Config]]:
    """The family with the ControlNets and T2I-Adapters among `others`, and the configs with theirs.

    Raises CheckpointError for one of another family or kind, and for both together.
    """
    names = [name for name in others if is_control(name)]
    if not names:
        return family, dict(configs)
    classes = {name: control_class(others[name]) for name in names}
    for name, cls in classes.items():
        where = others[name].source.location
        refuse_kind(where, _shapes(others[name]))
        if cls not in family.controlled:
            alike = ", ".join(one.title for one in FAMILIES if cls in one.controlled)
            takes = " and ".join(f"{_TITLES[one]}s of its family" for one in family.controlled)
            raise CheckpointError(
                f"{where} is a {_TITLES[cls]} of another family ({alike}), but the checkpoint is {family.title}. "
                + (
                    f"Pass {takes}."
                    if takes
                    else "ControlNets of that family are not supported yet. Leave out --controlnet."
                )
            )
    if len(set(classes.values())) > 1:
        raise CheckpointError(
            "ControlNets and T2I-Adapters cannot be combined: diffusers has no pipeline with both. Pass either."
        )
    if T2I_ADAPTER.cls in classes.values() and IP_ADAPTER.name in others:
        raise CheckpointError("T2I-Adapters and IP-Adapters cannot be combined yet. Leave out one of them.")
    found = {name: _READERS[cls](others[name], family, configs) for name, cls in classes.items()}
    check_alike([config for name, config in found.items() if classes[name] == CONTROL_SD3.cls])
    pooled = [bool(config.get(_POOLED)) for config in found.values()]
    if pooled[0] and not all(pooled):
        raise CheckpointError(
            f"{others[names[0]].source.location} averages its residuals over the image, and diffusers adds those of "
            "others to it only if it is not the first. Pass it last."
        )
    components = (*family.components, *(CONTROLS[cls].named(name) for name, cls in classes.items()))
    return replace(family, components=components), {**configs, **found}


def about_controls(opened: Checkpoint) -> tuple[str, ...]:
    """Notices about ControlNets that don't state how they read images, or what their residuals are."""
    pooled = tuple(
        f"{other.source.location} does not state whether its residuals are averaged over the image. By its name, it "
        "reads shuffled images, so they are."
        for name, other in opened.others.items()
        if other.config is None and opened.configs.get(name, {}).get(_POOLED)
    )
    return (*about_colours(opened), *pooled)


def _named_shuffle(other: Replacement) -> bool:
    """Whether it is lllyasviel's `control_v11e_sd15_shuffle`, which no tensor shows; ComfyUI goes by the name too."""
    return "shuffle" in Path(other.source.location).name.lower()


def control_class(other: Replacement) -> str:
    """The class of a ControlNet or T2I-Adapter: its config's, or by its tensors' names."""
    if other.config is not None and other.config.get("_class_name") in CONTROLS:
        return str(other.config["_class_name"])
    names = tuple(name.removeprefix(CONTROL_PREFIX) for name in other.tensors)
    if any(name.startswith("pos_embed_input.") for name in names):
        return CONTROL_SD3.cls
    return T2I_ADAPTER.cls if any(name.startswith(("adapter.", "body.")) for name in names) else CONTROL.cls


def _shapes(other: Replacement) -> TensorShapes:
    """Shapes of its tensors under their names without a prefix."""
    return {name.removeprefix(CONTROL_PREFIX): tensor.shape for name, tensor in other.tensors.items()}


def refuse_kind(where: object, names: TensorShapes) -> None:
    """Raise CheckpointError for another kind of network, by its tensors' names."""
    for what, starts in _KINDS:
        if any(name.startswith(starts) for name in names):
            raise CheckpointError(
                f"{where} is {what}, which is not supported yet. Pass a ControlNet (diffusers' ControlNetModel or "
                "SD3ControlNetModel), or a T2I-Adapter."
            )


def _config(other: Replacement, family: Family, configs: Mapping[str, Config]) -> Config:
    where, shapes, unet = other.source.location, _shapes(other), configs[family.denoiser]
    if other.config is not None:
        check_class(where, CONTROL, other.config)
        check_fields(other.where, CONTROL, other.config)
        config = other.config
    else:
        config = _derived(shapes, unet)
        config |= {_POOLED: True} if _named_shuffle(other) else {}
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
    levels = len(configs[family.vae]["block_out_channels"])
    if (has := len(config.get("conditioning_embedding_out_channels") or _EMBEDDING)) != levels:
        raise CheckpointError(
            f"{where} reads images of {2 ** (has - 1)} pixels per latent, but the checkpoint's VAE has "
            f"{2 ** (levels - 1)}. Pass a ControlNet that was trained with it."
        )
    refuse_quantized(where, config, other.tensors)
    return config


def _check_family(where: str, shapes: TensorShapes, family: Family, unet: Config) -> None:
    """Raise CheckpointError for a ControlNet that was trained with a UNet of another family."""
    widths = {shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2}
    added = any(name.startswith(("label_emb.", "add_embedding.")) for name in shapes)
    if added == (family.pooled is not None) and widths <= {unet["cross_attention_dim"]}:
        return
    alike = [one for one in FAMILIES if CONTROL.cls in one.controlled]
    published = {one.title: one.config(one.denoiser).get("cross_attention_dim") for one in alike}
    pooled = {one.title: one.pooled is not None for one in alike}
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


_TITLES = {CONTROL.cls: "ControlNet", CONTROL_SD3.cls: "ControlNet", T2I_ADAPTER.cls: "T2I-Adapter"}
_READERS: Mapping[str, Callable[[Replacement, Family, Mapping[str, Config]], Config]] = {
    CONTROL.cls: _config,
    CONTROL_SD3.cls: mmdit_control,
    T2I_ADAPTER.cls: unet_adapter,
}
"""For each class, what gives the config of one for a family and its configs, or raises CheckpointError."""
