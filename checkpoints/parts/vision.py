"""CLIPVisionModelWithProjection: CLIP's image encoder, of which denoisers read the projected embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The image encoder: normalized pixels to one embedding for each image."""
    config, side = checkpoint.configs[component.name], checkpoint.configs[component.name]["image_size"]
    pixels = floats("pixel_values", "batch", 3, side, side)
    embeds = floats("image_embeds", "batch", config["projection_dim"])
    return (PartSpec(component.name, "image_encoder", component.name, (pixels,), (embeds,), _call),)


def _call(model: Any, _outputs: tuple[str, ...], pixels: Any) -> tuple[Any, ...]:
    return (model(pixel_values=pixels).image_embeds,)


_READS = frozenset({
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor",
})  # fmt: skip
_REQUIRED: dict[str, type] = {
    "hidden_size": int,
    "num_hidden_layers": int,
    "projection_dim": int,
    "image_size": int,
    "patch_size": int,
}

CLASSES = {"CLIPVisionModelWithProjection": ComponentClass(parts, _READS, _REQUIRED)}
