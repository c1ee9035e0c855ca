"""An IP-Adapter as a torch module; imported only when one is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection


class _Layer(torch.nn.Module):
    """Keys and values of image tokens, for one cross-attention of the UNet."""

    def __init__(self, width: int, tokens_width: int) -> None:
        super().__init__()
        self.to_k_ip = torch.nn.Linear(tokens_width, width, bias=False)
        self.to_v_ip = torch.nn.Linear(tokens_width, width, bias=False)


class IPAdapter(torch.nn.Module):
    """The projection of image embeddings to tokens, and a layer for each cross-attention of the UNet."""

    def __init__(self, image_proj: torch.nn.Module, layers: list[_Layer]) -> None:
        super().__init__()
        self.image_proj = image_proj
        self.layers = torch.nn.ModuleList(layers)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The module of a config that `ip_adapter.styled` has derived."""
        projection: Any = IPAdapterPlusImageProjection if config["plus"] else ImageProjection
        tokens_width = config["cross_attention_dim"]
        return cls(projection(**config["projection"]), [_Layer(width, tokens_width) for width in config["widths"]])
