"""T2IAdapter, whose features of an image are added to the UNet's down blocks; it is exported with it, as one part.

The features are the same in every row and at every step. They are computed with the UNet all the same, in one row: as
inputs of the UNet, their sizes would be halves and quarters of the latents' sides, rounded up, which no axis states.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...core.model import ControlNet
from .controlnet import no_parts, summed
from .part import ComponentClass

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ..families import Config

T2I_ADAPTER = "T2IAdapter"

PLAIN, LIGHT, XL = "full_adapter", "light_adapter", "full_adapter_xl"
"""Values of `adapter_type`."""

DEFAULTS: Config = {
    "in_channels": 3,
    "channels": [320, 640, 1280, 1280],
    "num_res_blocks": 2,
    "downscale_factor": 8,
    "adapter_type": PLAIN,
}
"""Values of a config without them, as in diffusers."""


def widths(config: Config) -> list[int]:
    """Channels of its features, from the finest to the coarsest."""
    channels = list((DEFAULTS | config)["channels"])
    return [*channels, channels[-1]] if config.get("adapter_type") == LIGHT else channels


def facts_of(config: Config, _vae: Config) -> ControlNet:
    """What the pipeline must know about a T2I-Adapter with this config."""
    return ControlNet(kind="T2I-Adapter", residuals=len(widths(config)), channels=(DEFAULTS | config)["in_channels"])


def read_by(config: Config) -> tuple[tuple[int | str, ...], int]:
    """Axes of the image that it reads, one row as all rows have the same; and the number of its features."""
    return (1, (DEFAULTS | config)["in_channels"], "8*height", "8*width"), len(widths(config))


def patch_of(config: Config) -> int:
    """Latents per side that its first features join: sides are multiples of it."""
    return (DEFAULTS | config)["downscale_factor"] // 8


def added(nets: Sequence[Any], images: Sequence[Any], scales: Sequence[Any]) -> list[Any]:
    """The features of all T2I-Adapters together, from the finest to the coarsest.

    `scales` are [batch, features]. Source: diffusers' `MultiAdapter`.
    """
    sums: list[Any] = []
    for net, image, factors in zip(nets, images, scales, strict=True):
        with pooling(net):
            features = net(image)
        sums = summed(sums, [one * factors[:, at, None, None, None] for at, one in enumerate(features)])
    return sums


@contextmanager
def pooling(net: Any) -> Generator[None]:
    """Make a T2I-Adapter halve features without `ceil_mode`, which the tracer accepts for some sizes only."""
    import torch

    pools: list[Any] = [one for one in net.modules() if isinstance(one, torch.nn.AvgPool2d)]
    for one in pools:
        one.forward = halved
    try:
        yield
    finally:
        for one in pools:
            del one.forward


def halved(features: Any) -> Any:
    """Averages of 2x2 features; where a side is odd, its last ones are averages of those that are there."""
    import torch

    for axis in (-2, -1):
        last = features.narrow(axis, features.shape[axis] - 1, 1)
        features = torch.cat((features, last), axis)  # the copy is outside of all averages where the side is even
    return torch.nn.functional.avg_pool2d(features, 2)


_READS = frozenset({"in_channels", "channels", "num_res_blocks", "downscale_factor", "adapter_type"})

CLASSES = {T2I_ADAPTER: ComponentClass(no_parts, _READS)}
