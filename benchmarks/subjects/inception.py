"""The features behind FID: Inception v3 as it was published with TensorFlow in 2015.

The packages that provide it need torchvision, so its graph is implemented here, for the weights of pytorch-fid and
torch-fidelity. It differs from torchvision's Inception: averages leave the padding out, and the last block pools by
maximum. Sources: Szegedy et al. (2016), arXiv:1512.00567; Heusel et al. (2017), arXiv:1706.08500.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

StateDict = Mapping[str, Any]
"""Published weights by name."""
SIDE = 299
EPSILON = 1e-3


def features(state: StateDict, pictures: Any) -> Any:
    """The 2048 features of images, uint8 [n, 3, h, w], scaled to 299 x 299 as pytorch-fid does: f32 [n, 2048]."""
    with _torch().inference_mode():
        values = _nn().interpolate(pictures.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return _network(state, 2 * values - 1)


def _torch() -> Any:
    """PyTorch, imported on demand."""
    return import_module("torch")


def _nn() -> Any:
    return import_module("torch.nn.functional")


def _network(state: StateDict, values: Any) -> Any:
    layer = partial(_layer, state)
    values = layer("Conv2d_1a_3x3", values, stride=2)
    values = layer("Conv2d_2a_3x3", values)
    values = layer("Conv2d_2b_3x3", values, padding=1)
    values = layer("Conv2d_3b_1x1", _nn().max_pool2d(values, 3, 2))
    values = _nn().max_pool2d(layer("Conv2d_4a_3x3", values), 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        values = _block_a(partial(_branch, state, name), values)
    values = _block_b(partial(_branch, state, "Mixed_6a"), values)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        values = _block_c(partial(_branch, state, name), values)
    values = _block_d(partial(_branch, state, "Mixed_7a"), values)
    values = _block_e(partial(_branch, state, "Mixed_7b"), values, _averaged)
    values = _block_e(partial(_branch, state, "Mixed_7c"), values, lambda given: _nn().max_pool2d(given, 3, 1, 1))
    return values.mean(dim=(2, 3))


Branch = Callable[..., Any]


def _layer(state: StateDict, name: str, values: Any, stride: int = 1, padding: int | tuple[int, int] = 0) -> Any:
    """Convolution, batch normalization, ReLU."""
    values = _nn().conv2d(values, state[f"{name}.conv.weight"], None, stride, padding)
    mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    return (
        _nn()
        .batch_norm(values, mean, variance, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=EPSILON)
        .relu()
    )


def _branch(state: StateDict, block: str, name: str, values: Any, **options: Any) -> Any:
    return _layer(state, f"{block}.{name}", values, **options)


def _averaged(values: Any) -> Any:
    return _nn().avg_pool2d(values, 3, 1, 1, count_include_pad=False)


def _block_a(layer: Branch, values: Any) -> Any:
    five = layer("branch5x5_2", layer("branch5x5_1", values), padding=2)
    three = layer("branch3x3dbl_2", layer("branch3x3dbl_1", values), padding=1)
    three = layer("branch3x3dbl_3", three, padding=1)
    pooled = layer("branch_pool", _averaged(values))
    return _torch().cat([layer("branch1x1", values), five, three, pooled], 1)


def _block_b(layer: Branch, values: Any) -> Any:
    three = layer("branch3x3dbl_2", layer("branch3x3dbl_1", values), padding=1)
    three = layer("branch3x3dbl_3", three, stride=2)
    return _torch().cat([layer("branch3x3", values, stride=2), three, _nn().max_pool2d(values, 3, 2)], 1)


WIDE, TALL = (0, 3), (3, 0)
"""Padding of kernels of 1 x 7 and 7 x 1."""


def _block_c(layer: Branch, values: Any) -> Any:
    seven = layer("branch7x7_2", layer("branch7x7_1", values), padding=WIDE)
    seven = layer("branch7x7_3", seven, padding=TALL)
    double = layer("branch7x7dbl_1", values)
    for place, padding in ((2, TALL), (3, WIDE), (4, TALL), (5, WIDE)):
        double = layer(f"branch7x7dbl_{place}", double, padding=padding)
    pooled = layer("branch_pool", _averaged(values))
    return _torch().cat([layer("branch1x1", values), seven, double, pooled], 1)


def _block_d(layer: Branch, values: Any) -> Any:
    three = layer("branch3x3_2", layer("branch3x3_1", values), stride=2)
    seven = layer("branch7x7x3_2", layer("branch7x7x3_1", values), padding=WIDE)
    seven = layer("branch7x7x3_4", layer("branch7x7x3_3", seven, padding=TALL), stride=2)
    return _torch().cat([three, seven, _nn().max_pool2d(values, 3, 2)], 1)


def _block_e(layer: Branch, values: Any, pool: Callable[[Any], Any]) -> Any:
    three = layer("branch3x3_1", values)
    double = layer("branch3x3dbl_2", layer("branch3x3dbl_1", values), padding=1)
    split = [
        layer(f"{name}{side}", given, padding=padding)
        for name, given in (("branch3x3_2", three), ("branch3x3dbl_3", double))
        for side, padding in (("a", (0, 1)), ("b", (1, 0)))
    ]
    return _torch().cat([layer("branch1x1", values), *split, layer("branch_pool", pool(values))], 1)
