"""ControlNets of Stable Diffusion 3 and 3.5: whether they fit a checkpoint, and their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import CheckpointError
from ..core.record import shown
from .bounds import check_config
from .families import CONTROL_SD3, FAMILIES, MMDIT, Config, Family
from .fields import check_fields
from .mmdit_names import CONTROL_TYPE
from .names import CONTROL_PREFIX
from .original_configs import TensorShapes, axis, numbers
from .original_mmdit import head_width
from .others import Replacement
from .parts.controlnet_sd3 import EDGES, KIND, zeroed
from .refusals import refuse_quantized
from .source import check_class
from .stored import stored_bytes

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_FITS = ("in_channels", "patch_size", "pooled_projection_dim")
_DEFAULTS = {"in_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "joint_attention_dim": 4096}
"""Fields in which a ControlNet has to equal the transformer, and values of a config without them, as in diffusers."""

_TYPES = {0: "blurred images", EDGES: "edges (Canny)", 2: "depth"}
"""What a ControlNet of Stability AI reads, by the tensor `control_type` of its file."""


def mmdit_control(other: Replacement, family: Family, configs: Mapping[str, Config]) -> Config:
    """The config of a ControlNet for a transformer; raises CheckpointError for one that doesn't fit it."""
    where, transformer = other.source.location, configs[family.denoiser]
    if other.config is not None:
        check_class(where, CONTROL_SD3, other.config)
        check_fields(other.where, CONTROL_SD3, other.config)
        config = dict(other.config)
    elif other.layout == "original":
        config = _derived(other)
    else:
        raise CheckpointError(
            f"{where} has no config.json beside it, and its tensors do not show what it reads. Pass the folder that it "
            "was published in."
        )
    check_config(other.where, config, len(other.tensors))
    _check_width(where, family, config, transformer)
    for key in _FITS:
        if (has := config.get(key, _DEFAULTS[key])) != (wanted := transformer.get(key, _DEFAULTS[key])):
            raise CheckpointError(
                f"{where} is a ControlNet for a transformer with {key} = {shown(has)}, but the checkpoint's has "
                f"{shown(wanted)}. Pass a ControlNet of {family.title}."
            )
    joint = config.get("joint_attention_dim", _DEFAULTS["joint_attention_dim"])
    if joint is not None and (joint, config.get("qk_norm")) != (
        transformer["joint_attention_dim"],
        transformer.get("qk_norm"),
    ):
        raise CheckpointError(
            f"{where} is a ControlNet for a transformer with joint_attention_dim = {shown(joint)} and qk_norm = "
            f"{shown(config.get('qk_norm'))}, unlike the checkpoint's. Pass a ControlNet of {family.title}."
        )
    if config.get("extra_conditioning_channels"):
        raise CheckpointError(
            f"{where} is a ControlNet for inpainting, which reads a mask too, and is not supported yet. Pass one that "
            "reads an image only."
        )
    if config["num_layers"] > transformer["num_layers"]:
        raise CheckpointError(
            f"{where} has {config['num_layers']} layers, but the checkpoint's transformer has only "
            f"{transformer['num_layers']}. Pass a ControlNet of {family.title}."
        )
    refuse_quantized(where, config, other.tensors)
    stated = _stated(other)
    if zeroed(config):  # InstantX's read every image alike
        return config
    return config | {KIND: EDGES if stated is None and _named_canny(other) else stated}


def check_alike(configs: Sequence[Config]) -> None:
    """Raise CheckpointError for ControlNets that diffusers' pipeline would treat as the first of them is."""
    if len({(zeroed(one), one.get("joint_attention_dim", 0) is None) for one in configs}) > 1:
        raise CheckpointError(
            "The ControlNets are of two kinds: some read the prompt, or pooled embeddings, and others do not. "
            "Pass those of one kind."
        )


def about_colours(opened: Checkpoint) -> tuple[str, ...]:
    """Notices about ControlNets that don't state how they read images."""
    return tuple(
        f"{other.source.location} does not state which images it reads. By its name, they are "
        + ("edges (Canny), which Stability AI encodes with another range." if _named_canny(other) else "not edges.")
        for name, other in opened.others.items()
        if KIND in opened.configs.get(name, {}) and _stated(other) is None
    )


def _named_canny(other: Replacement) -> bool:
    return "canny" in Path(other.source.location).name.lower()


def _stated(other: Replacement) -> int | None:
    """What a file in Stability AI's layout states that it reads; None for one that doesn't."""
    tensor = other.tensors.get(f"{CONTROL_PREFIX}{CONTROL_TYPE}")
    if tensor is None:
        return None
    raw = b"".join(stored_bytes(tensor))
    if tensor.dtype == "BF16":  # the upper half of f32
        raw, kind = b"\0\0" + raw, "F32"
    else:
        kind = tensor.dtype
    known = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
    values = np.frombuffer(raw, known[kind]) if kind in known else np.zeros(0)
    if values.size != 1 or float(values[0]) not in _TYPES:
        listed = ", ".join(f"{number} ({what})" for number, what in _TYPES.items())
        raise CheckpointError(
            f"{other.source.location} has a tensor {CONTROL_TYPE} with another value than {listed}. Download it again."
        )
    return int(values[0])


def _check_width(where: str, family: Family, config: Config, transformer: Config) -> None:
    """Raise CheckpointError for a ControlNet of another family's transformer, by its width."""
    width, wanted = (one["num_attention_heads"] * one.get("attention_head_dim", 64) for one in (config, transformer))
    if width == wanted:
        return
    rows = [one for one in FAMILIES if one.component(one.denoiser).cls == MMDIT]
    published = {one.title: one.config(one.denoiser)["num_attention_heads"] * 64 for one in rows}
    kinds = " or ".join(title for title, own in published.items() if own == width)
    raise CheckpointError(
        f"{where} is a ControlNet {f'of {kinds}' if kinds else f'for a transformer of width {width}'}, but the "
        f"checkpoint is {family.title}, whose transformer is {wanted} wide. Pass a ControlNet of that family."
    )


def _derived(other: Replacement) -> Config:
    """The config of a file in Stability AI's layout: a ControlNet of 3.5 Large, which has no text stream."""
    shapes: TensorShapes = {name.removeprefix(CONTROL_PREFIX): tensor.shape for name, tensor in other.tensors.items()}
    width = axis(shapes, "pos_embed_input.proj.weight", 0)
    head = head_width(width)
    return {
        "in_channels": axis(shapes, "pos_embed_input.proj.weight", 1),
        "patch_size": axis(shapes, "pos_embed_input.proj.weight", 2),
        "num_layers": len(numbers(shapes, r"transformer_blocks\.(\d+)\.")),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "pooled_projection_dim": axis(shapes, "time_text_embed.text_embedder.linear_1.weight", 1),
        "joint_attention_dim": None,
        "pos_embed_max_size": None,
        "pos_embed_type": None,
        "use_pos_embed": False,
        "force_zeros_for_pooled_projection": False,
    }
