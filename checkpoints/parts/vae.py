"""AutoencoderKL: images to latents, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The decoder (latents to pixels in [-1, 1]) and the encoder (pixels to means and log variances of latents)."""
    channels, factor = checkpoint.configs[component.name]["latent_channels"], checkpoint.downscale
    picture = floats("sample", "batch", 3, f"{factor}*height", f"{factor}*width")
    latents = floats("latent_sample", "batch", channels, "height", "width")
    moments = floats("latent_parameters", "batch", 2 * channels, "height", "width")
    name = component.name
    return (
        PartSpec(f"{name}_decoder", "decoder", name, (latents,), (picture,), _decode),
        PartSpec(f"{name}_encoder", "encoder", name, (picture,), (moments,), _encode),
    )


def _decode(model: Any, _outputs: tuple[str, ...], latents: Any) -> tuple[Any, ...]:
    return model.decode(latents, return_dict=False)


def _encode(model: Any, _outputs: tuple[str, ...], image: Any) -> tuple[Any, ...]:
    return (model.encode(image, return_dict=False)[0].parameters,)


_READS = frozenset({
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "act_fn", "latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor", "latents_mean",
    "latents_std", "force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
})  # fmt: skip

CLASSES = {"AutoencoderKL": ComponentClass(parts, _READS, {"block_out_channels": list, "latent_channels": int})}
