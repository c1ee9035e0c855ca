"""A wider decoder for the autoencoder, with more channels at the largest resolutions, for the existing latents.

The denoiser was trained on latents of the narrow autoencoder. So the encoder's function stays the same, in more
channels, and the decoder learns to reconstruct better from its latents.
"""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from . import unet, vae
from .course import Course, run_course
from .pictures import Pictures

BATCH = 8
ENCODER = ("encoder", "quant_conv")
"""Modules of the encoder side, which stay frozen."""

APART = 0.1
"""How differently copies of a channel are weighted, relative to the weights' standard deviation."""


def course(steps: int) -> Course:
    """Its course."""
    return Course(
        "wider", steps, matrix_rate=1e-3, other_rate=5e-4, warm_up=100, cool_down=steps // 2, ema=0.998, save_every=250,
        weight_decay=0.3,
    )  # fmt: skip


def train(folder: Path, steps: int) -> nn.Module:
    """Train the wider decoder and return the autoencoder."""
    latents, scale = unet.latents_of(folder)
    pictures = Pictures(folder, vae.SIDE, vae.COUNT)
    seen = vae.unseen()
    torch.manual_seed(0)
    model = widened(vae.load_narrow(folder), AutoencoderKL(**vae.WIDE))
    for name in ENCODER:
        getattr(model, name).requires_grad_(requires_grad=False)

    def loss(model: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        del step
        numbers: list[int] = torch.randint(pictures.count, (BATCH,)).tolist()
        batch = torch.stack([vae.to_tensor(pictures[number]) for number in numbers])
        batch = batch.contiguous(memory_format=torch.channels_last)
        squared = (model.decode(latents[numbers].float() / scale).sample - batch).square().mean()
        return 10 * squared, {"squared": squared.item()}

    def show(model: Any, step: int) -> Mapping[str, float]:
        return vae.show(model, seen, folder / "wider" / f"sheet-{step:06}.png")

    trained = run_course(course(steps), model, loss, folder / "wider", show)
    (folder / "wider" / vae.DONE).touch()
    return trained


def widened(narrow: Any, wide: Any) -> Any:
    """The wide autoencoder, with the same function as the narrow one: each channel is repeated several times.

    So the groups of norms keep their means and deviations (Net2WiderNet: Chen et al., 2016, arXiv:1511.05641). Copies
    of a channel get unequal weights in the next layer, so that they learn different things.
    """
    given = narrow.state_dict()
    wide.load_state_dict({name: _copied(given[name], like) for name, like in wide.state_dict().items()})
    return wide


def _copied(value: Tensor, like: Tensor) -> Tensor:
    value = value.repeat_interleave(like.shape[0] // value.shape[0], dim=0)
    if value.ndim < 2 or value.shape[1] == like.shape[1]:
        return value
    times = like.shape[1] // value.shape[1]
    noise = APART * value.std() * torch.randn(value.shape[0], value.shape[1], times, *value.shape[2:])
    shares = value.unsqueeze(2) / times + noise - noise.mean(dim=2, keepdim=True)
    return shares.flatten(1, 2)
