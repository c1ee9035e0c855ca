"""IP-Adapter: image tokens, which the UNet attends to beside those of the text.

It is exported with two parts: its projection with the image encoder (see `parts.vision`), and its layers with the UNet
(see `parts.unet`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...core.wires import IMAGE_TOKENS, STYLE, Wire
from .controlnet import no_parts
from .part import ComponentClass, floats

if TYPE_CHECKING:
    from ...core.manifest import TensorInfo
    from ..families import Config

IP_ADAPTER = "IPAdapter"

SCALE = "ip_adapter_scale"
"""The denoiser's input for the factor of what the image tokens add, [batch, 1]."""


def inputs_of(config: Config) -> tuple[tuple[TensorInfo, ...], tuple[Wire, ...]]:
    """The denoiser's further inputs, and the wire of the factor; that of the tokens is the family's."""
    tokens = floats(IMAGE_TOKENS, "batch", config["tokens"], config["cross_attention_dim"])
    return (tokens, floats(SCALE, "batch", 1)), (Wire(input=SCALE, source=STYLE),)


def cross_attentions(unet: Any) -> list[Any]:
    """The cross-attentions of a UNet, in the order in which an IP-Adapter has layers for them."""
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


class _Attending:
    """An attention processor: diffusers' own of IP-Adapters, whose factor is an input, a number for each row.

    What the tokens add is linear in their values, so that the factor is that of the values.
    """

    def __init__(self, layer: Any, tokens: Any, scale: Any) -> None:
        self.to_k_ip = [layer.to_k_ip]

        def scaled(states: Any) -> Any:
            return layer.to_v_ip(states) * scale[:, :, None]

        self.to_v_ip = [scaled]
        self.scale = [1.0]
        self.tokens = tokens

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None,
        temb: Any = None,
    ) -> Any:  # fmt: skip
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

        processor: Any = IPAdapterAttnProcessor2_0
        both = (encoder_hidden_states, [self.tokens])
        return processor.__call__(self, attn, hidden_states, both, attention_mask, temb)


@contextmanager
def attending(unet: Any, adapter: Any, tokens: Any, scale: Any) -> Generator[None]:
    """Make a UNet attend to image tokens, [batch, tokens, width], with a factor for each row, [batch, 1]."""
    found = cross_attentions(unet)
    before = [one.processor for one in found]
    try:
        for one, layer in zip(found, adapter.layers, strict=True):
            one.processor = _Attending(layer, tokens, scale)
        yield
    finally:
        for one, processor in zip(found, before, strict=True):
            one.processor = processor


CLASSES = {IP_ADAPTER: ComponentClass(no_parts, frozenset())}
