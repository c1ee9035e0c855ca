"""CLIPVisionModelWithProjection: CLIP's image encoder, of which denoisers read the projected embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.wires import IMAGE_TOKENS, NEGATIVE_TOKENS
from .ip_adapter import IP_ADAPTER
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ...core.manifest import TensorInfo
    from ..checkpoint import Checkpoint
    from ..families import Component


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours of CLIP's training images, as in transformers' `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`."""


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The image encoder: normalized pixels to one embedding for each image."""
    config, side = checkpoint.configs[component.name], checkpoint.configs[component.name]["image_size"]
    pixels = floats("pixel_values", "batch", 3, side, side)
    adapter = next((one.name for one in checkpoint.family.components if one.cls == IP_ADAPTER), None)
    if adapter is not None:
        return (_with_adapter(checkpoint, component, adapter, pixels),)
    embeds = floats("image_embeds", "batch", config["projection_dim"])
    return (PartSpec(component.name, "image_encoder", component.name, (pixels,), (embeds,), _call),)


def _with_adapter(checkpoint: Checkpoint, component: Component, adapter: str, pixels: TensorInfo) -> PartSpec:
    """The image encoder with the projection of an IP-Adapter: normalized pixels to the tokens that positive rows of the
    denoiser attend to, and those of negative rows.

    Negative rows take an embedding of zeros, or the hidden states of zero pixels. Source: diffusers' `encode_image`.
    """
    config = checkpoint.configs[adapter]
    shape = ("batch", config["tokens"], config["cross_attention_dim"])
    outputs = tuple(floats(name, *shape) for name in (IMAGE_TOKENS, NEGATIVE_TOKENS))

    def call(model: Any, _outputs: tuple[str, ...], pixels: Any, also: tuple[Any, ...]) -> tuple[Any, ...]:
        import torch

        rows = pixels.shape[0]
        if config["plus"]:
            both = torch.cat([pixels, torch.zeros_like(pixels)])
            embeds = model(pixel_values=both, output_hidden_states=True).hidden_states[-2]
        else:
            found = model(pixel_values=pixels).image_embeds
            embeds = torch.cat([found, torch.zeros_like(found)])
        tokens = also[0].image_proj(embeds)
        return tokens[:rows], tokens[rows:]

    name = component.name
    return PartSpec(name, "image_encoder", name, (pixels,), outputs, call, also=(adapter,))


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
