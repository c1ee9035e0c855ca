"""The Fréchet distance between two sets of features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def frechet_distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features, each [n, d]. Raises ValueError for n < 2.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)), of which the last trace is the sum of the singular values of
    X Y^T, where X and Y are the centred features over the root of n - 1. That is exact even for fewer images than
    features, unlike the root of a singular product. Source: Heusel et al. (2017), arXiv:1706.08500, formula 6.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{min(len(one), len(other))} images are too few: a distribution needs at least two.")
    means = [features.mean(axis=0, dtype=np.float64) for features in (one, other)]
    centred = [
        (features - mean) / np.sqrt(len(features) - 1) for features, mean in zip((one, other), means, strict=True)
    ]
    if all(len(each) > each.shape[1] for each in centred):  # smaller triangular matrices with the same singular values
        centred = [np.asarray(np.linalg.qr(each, mode="r"), np.float64) for each in centred]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    spread = sum(float((each**2).sum()) for each in centred)
    return float(((means[0] - means[1]) ** 2).sum() + spread - 2 * shared)
