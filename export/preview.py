"""A linear map from latents to colours, for previews: fitted on a VAE's own encodings of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..sampling.scaling import scaled
from ..scenes.render import render
from ..scenes.world import sample
from .reference import run

if TYPE_CHECKING:
    import torch

    from ..checkpoints.parts import PartSpec
    from ..core.model import Model

PICTURES = 12
"""Rendered scenes that the map is fitted on."""

SIDE = 16
"""Side of their latents."""


def fit_preview(spec: PartSpec, encoder: torch.nn.Module, model: Model) -> tuple[tuple[float, ...], ...]:
    """For red, green and blue in [-1, 1], a factor for each channel of the latents and a constant, by least squares.

    `encoder` is the VAE's, in PyTorch; latents are in the denoiser's scale, and each is compared with the mean colour
    of its pixels.
    """
    latents: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    for seed in range(PICTURES):
        picture = render(sample(seed), SIDE * model.downscale, seed).astype(np.float32) / np.float32(127.5) - 1
        (parameters,) = run(encoder, spec, {spec.inputs[0].name: picture.transpose(2, 0, 1)[None]}).values()
        means = scaled(model, np.split(parameters, 2, axis=1)[0])[0]
        latents.append(means.reshape(len(means), -1).T)
        cells = picture.reshape(SIDE, model.downscale, SIDE, model.downscale, 3)
        colours.append(cells.mean(axis=(1, 3)).reshape(-1, 3))
    known = np.concatenate(latents)
    rows = np.linalg.lstsq(np.column_stack([known, np.ones(len(known))]), np.concatenate(colours))[0].T
    return tuple(tuple(round(float(one), 6) for one in row) for row in rows)
