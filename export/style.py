"""IP-Adapters in references: style images, what diffusers' pipeline makes of them, and what it passes to the UNet."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checkpoints.parts.ip_adapter import SCALE, cross_attentions
from ..core.images import pixels_sha256
from ..core.tensors import Array
from ..core.wires import IMAGE_TOKENS


@dataclass(frozen=True)
class AskedStyle:
    """The style image of a reference image: its height and width in pixels, and its strength."""

    size: tuple[int, int]
    strength: float


STYLES: dict[str, AskedStyle] = {
    "whole": AskedStyle((287, 341), 0.8),
    "wide": AskedStyle((500, 61), 1.0),
    "single": AskedStyle((224, 224), 0.6),
    "long": AskedStyle((120, 131), 0.45),
}
"""Style images of the reference images, by name: larger and smaller than what CLIP reads, of several proportions."""

USUAL = AskedStyle((256, 200), 0.7)
"""That of the others."""


@dataclass(frozen=True)
class Styled:
    """A style image that diffusers has encoded."""

    image: NDArray[np.uint8]
    pixel_values: Array
    """What the image encoder read, [1, 3, size, size]."""
    embeds: Any
    """Embeddings of negative and positive rows, as diffusers' pipelines take them."""
    strength: float

    def asked(self) -> dict[str, Any]:
        """The settings as fields of a request."""
        return {"style_strength": self.strength, "style_sha256": pixels_sha256(self.image)}

    def given(self, *, guided: bool) -> dict[str, Any]:
        """The embeddings as arguments of diffusers' pipelines."""
        return {"ip_adapter_image_embeds": [self.embeds if guided else self.embeds[1:]]}


def encoder_parts(encoder: Any) -> dict[str, Any]:
    """The image encoder and the image processor of diffusers' pipeline, as its `load_ip_adapter` makes them."""
    from transformers import CLIPImageProcessor

    side = encoder.config.image_size
    return {
        "image_encoder": encoder,
        "feature_extractor": cast("Any", CLIPImageProcessor)(size=side, crop_size=side),
    }


def encoded(pipeline: Any, image: NDArray[np.uint8], strength: float, *, plus: bool) -> Styled:
    """The style image as diffusers' pipeline encodes it."""
    import torch

    read: list[Array] = []

    def keep(_module: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        read.append((arguments[0] if arguments else given["pixel_values"]).detach().float().numpy().copy())

    hook = pipeline.image_encoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            positive, negative = pipeline.encode_image(Image.fromarray(image), "cpu", 1, plus)
    finally:
        hook.remove()
    return Styled(image, read[0], torch.cat([negative[None], positive[None]]), strength)


@contextmanager
def recorded_style(pipeline: Any, adapter: Any) -> Generator[Callable[[], dict[str, Array]]]:
    """Give a pipeline's UNet the IP-Adapter, as `load_ip_adapter` does: the function gives the denoiser's inputs of the
    last call.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import MultiIPAdapterImageProjection

    unet, last = pipeline.unet, list[Array]()
    found = cross_attentions(unet)
    before = [one.processor for one in found]
    projection = MultiIPAdapterImageProjection([adapter.image_proj])

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        last[:] = [output[0].detach().float().numpy()[:, 0].copy()]

    hook = projection.register_forward_hook(keep)
    for one, layer in zip(found, adapter.layers, strict=True):
        width, read = layer.to_k_ip.weight.shape
        processor: Any = IPAdapterAttnProcessor2_0(width, read)
        processor.to_k_ip[0], processor.to_v_ip[0] = layer.to_k_ip, layer.to_v_ip
        one.processor = processor
    unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = projection, "ip_image_proj"

    def feeds() -> dict[str, Array]:
        scale = np.float32(found[0].processor.scale[0])
        return {IMAGE_TOKENS: last[0], SCALE: np.full((len(last[0]), 1), scale)}

    try:
        yield feeds
    finally:
        hook.remove()
        unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = None, None
        for one, processor in zip(found, before, strict=True):
            del one.processor
            one.processor = processor
