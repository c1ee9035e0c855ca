"""T2I-Adapters of Stable Diffusion 1 and XL: whether they fit a checkpoint, and their configs."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import CheckpointError
from ..core.record import shown
from .bounds import check_config
from .families import T2I_ADAPTER, Config, Family
from .fields import check_fields
from .names import CONTROL_PREFIX, adapter_names
from .original_configs import TensorShapes, axis, numbers
from .others import Replacement
from .parts.t2i_adapter import DEFAULTS, LIGHT, PLAIN, XL, widths
from .refusals import refuse_quantized
from .source import check_class

_FACTORS = {PLAIN: 8, LIGHT: 8, XL: 16}
"""Pixels per latent of the first features, along each side: those of Stable Diffusion XL are half as large."""


def unet_adapter(other: Replacement, family: Family, configs: Mapping[str, Config]) -> Config:
    """The config of a T2I-Adapter for a UNet; raises CheckpointError for one that doesn't fit it."""
    where, unet = other.source.location, configs[family.denoiser]
    if other.config is not None:
        check_class(where, T2I_ADAPTER, other.config)
        check_fields(other.where, T2I_ADAPTER, other.config)
        config = DEFAULTS | other.config
    else:
        config = _derived(other)
    check_config(other.where, config, len(other.tensors))
    kind = config["adapter_type"]
    if not isinstance(kind, str) or kind not in _FACTORS or config["downscale_factor"] != _FACTORS[kind]:
        raise CheckpointError(
            f"{where} has adapter_type = {shown(kind)} and downscale_factor = {shown(config['downscale_factor'])}, "
            f"which is not supported: known are {', '.join(f'{one} with {size}' for one, size in _FACTORS.items())}."
        )
    if (kind == XL) != (family.pooled is not None):
        raise CheckpointError(
            f"{where} is a T2I-Adapter of Stable Diffusion {'XL' if kind == XL else '1'}, but the checkpoint is "
            f"{family.title}. Pass a T2I-Adapter of that family."
        )
    blocks, found = unet["block_out_channels"], widths(config)
    if found[: len(blocks)] != blocks or len(found) > len(blocks) + 1 or set(found[len(blocks) :]) - {blocks[-1]}:
        raise CheckpointError(
            f"{where} is a T2I-Adapter for a UNet with block_out_channels = {shown(found)}, but the checkpoint's has "
            f"{shown(blocks)}. Pass a T2I-Adapter of {family.title}."
        )
    if config["in_channels"] not in (1, 3):
        raise CheckpointError(f"{where} reads images of {shown(config['in_channels'])} channels; 1 or 3 were expected.")
    refuse_quantized(where, config, other.tensors)
    return config


def _derived(other: Replacement) -> Config:
    """The config of a T2I-Adapter without one, from its tensors' shapes."""
    bare = {name.removeprefix(CONTROL_PREFIX): tensor.shape for name, tensor in other.tensors.items()}
    names = {name: name for name in bare} if other.layout == "diffusers" else adapter_names(bare)
    shapes: TensorShapes = {names[name]: bare[name] for name in bare}
    light = "adapter.conv_in.weight" not in shapes
    levels = numbers(shapes, r"adapter\.body\.(\d+)\.")
    read = axis(shapes, f"adapter.{'body.0.in_conv' if light else 'conv_in'}.weight", 1)
    kind = LIGHT if light else XL if read in (256, 3 * 256) else PLAIN
    last = "out_conv" if light else "resnets.0.block2"
    channels = [axis(shapes, f"adapter.body.{level}.{last}.weight", 0) for level in levels]
    return {
        "in_channels": read // _FACTORS[kind] ** 2,
        "channels": channels[:-1] if light else channels,
        "num_res_blocks": len(numbers(shapes, r"adapter\.body\.0\.resnets\.(\d+)\.")),
        "downscale_factor": _FACTORS[kind],
        "adapter_type": kind,
    }
