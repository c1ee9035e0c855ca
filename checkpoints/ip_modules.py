"""An IP-Adapter as a torch module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class IPAdapter:
    """What builds it, as diffusers' classes do."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> torch.nn.Module:
        """The module of a config that `ip_adapter.styled` has derived.

        `image_proj` projects image embeddings to tokens; `layers` have the keys and values, `to_k_ip` and `to_v_ip`, of
        each cross-attention of the UNet.
        """
        import torch
        from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection

        nn: Any = torch.nn
        projection: Any = IPAdapterPlusImageProjection if config["plus"] else ImageProjection
        read, names = config["cross_attention_dim"], ("to_k_ip", "to_v_ip")
        layers = [
            nn.ModuleDict({name: nn.Linear(read, width, bias=False) for name in names}) for width in config["widths"]
        ]
        module = nn.Module()
        module.image_proj, module.layers = projection(**config["projection"]), nn.ModuleList(layers)
        return module
