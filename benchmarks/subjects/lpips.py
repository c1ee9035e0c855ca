"""LPIPS: a perceptual distance of two images, by a network calibrated on human judgments.

The lpips package needs torchvision for two plain networks, so they are implemented here, for the published weights.
Source: Zhang, Isola, Efros, Shechtman and Wang (2018), "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", arXiv:1801.03924, version 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .inception import StateDict

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10

Pool = tuple[int, int]
"""Kernel and stride."""
Layer = tuple[int, int, int]
"""Index in the published sequence, stride, padding."""

STAGES: dict[str, tuple[tuple[Pool | None, tuple[Layer, ...]], ...]] = {
    "alex": (
        (None, ((0, 4, 2),)),
        ((3, 2), ((3, 1, 2),)),
        ((3, 2), ((6, 1, 1),)),
        (None, ((8, 1, 1),)),
        (None, ((10, 1, 1),)),
    ),
    "vgg": (
        (None, ((0, 1, 1), (2, 1, 1))),
        ((2, 2), ((5, 1, 1), (7, 1, 1))),
        ((2, 2), ((10, 1, 1), (12, 1, 1), (14, 1, 1))),
        ((2, 2), ((17, 1, 1), (19, 1, 1), (21, 1, 1))),
        ((2, 2), ((24, 1, 1), (26, 1, 1), (28, 1, 1))),
    ),
}
"""Stages of AlexNet and VGG16: pooling before the stage, and its convolutions, each followed by a ReLU."""


def distances(net: str, trunk: StateDict, linear: StateDict, reference: Any, other: Any) -> list[float]:
    """LPIPS of each pair of images, both uint8 [n, 3, h, w]; 0 for equal images.

    `trunk` is the state of torchvision's `alexnet` or `vgg16`, `linear` that of the lpips package for it.
    """
    torch: Any = import_module("torch")
    nn: Any = import_module("torch.nn.functional")
    total: Any = 0.0
    with torch.inference_mode():
        both = zip(_features(net, trunk, reference), _features(net, trunk, other), strict=True)
        for stage, (mine, theirs) in enumerate(both):
            weights = linear[f"lin{stage}.model.1.weight"]
            total = total + nn.conv2d((_unit(mine) - _unit(theirs)) ** 2, weights).mean(dim=(1, 2, 3))
    return [float(value) for value in total]


def _features(net: str, trunk: StateDict, pictures: Any) -> Sequence[Any]:
    """The outputs of each stage."""
    torch: Any = import_module("torch")
    nn: Any = import_module("torch.nn.functional")
    values: Any = pictures.float() / 127.5 - 1
    values = (values - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
    found: list[Any] = []
    for pool, layers in STAGES[net]:
        values = nn.max_pool2d(values, *pool) if pool else values
        for place, stride, padding in layers:
            weight, bias = trunk[f"features.{place}.weight"], trunk[f"features.{place}.bias"]
            values = nn.conv2d(values, weight, bias, stride, padding).relu()
        found.append(values)
    return found


def _unit(features: Any) -> Any:
    """Features of each position, normalized to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)
