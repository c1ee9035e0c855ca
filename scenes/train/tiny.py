"""A tiny decoder for the published checkpoint: its VAE's decoder, distilled into diffusers' AutoencoderTiny."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from ..world import EXAMINED
from . import vae
from .base import COUNT, Base, latents_of, open_base
from .course import Course, run_course, trained
from .pictures import picture_of

SETTINGS: dict[str, Any] = {
    "encoder_block_out_channels": [4, 4, 4, 4],
    "decoder_block_out_channels": [24, 24, 24, 24],
    "num_encoder_blocks": [1, 1, 1, 1],
    "num_decoder_blocks": [2, 2, 2, 1],
}
"""The encoder is not trained, and as small as possible."""

BATCH = 8
SPREAD = 0.1
"""Deviation of the noise that is added to latents, as drawn ones are not exact."""


def course(steps: int) -> Course:
    """The decoder's course."""
    return Course(
        "tiny", steps, matrix_rate=3e-3, other_rate=1e-3, warm_up=50, cool_down=steps // 2, ema=0.995, save_every=500,
        weight_decay=0.1,
    )  # fmt: skip


def train(folder: Path, steps: int) -> nn.Module:
    """Train the tiny decoder and return it."""
    base = open_base()
    latents = latents_of(folder, "plain", base)
    torch.manual_seed(0)
    model = AutoencoderTiny(**SETTINGS)
    model.encoder.requires_grad_(False)
    seen = torch.stack([vae.to_tensor(picture_of(EXAMINED + i, vae.SIDE, "any")) for i in range(32)])
    with torch.no_grad():
        unseen = base.vae.encode(seen).latent_dist.mode() * base.vae.config.scaling_factor

    def loss(model: Any, _step: int) -> tuple[Tensor, Mapping[str, float]]:
        clean = latents[torch.randint(COUNT, (BATCH,))].float()
        clean = clean + SPREAD * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(clean)
        error = model.decode(clean).sample - _decoded(base, clean)
        squared = error.square().mean()
        return error.abs().mean() + squared, {"squared": squared.item()}

    def show(model: Any, _step: int) -> Mapping[str, float]:
        with torch.no_grad():
            found = model.decode(unseen).sample
        return {
            "to_vae_db": vae.psnr(_decoded(base, unseen).clamp(-1, 1), found),
            "to_render_db": vae.psnr(seen, found),
        }

    return run_course(course(steps), model, loss, folder / "tiny", show)


def _decoded(base: Base, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return base.vae.decode(latents / base.vae.config.scaling_factor).sample


def load(state: Path) -> Any:
    """The tiny decoder as trained so far."""
    return trained(AutoencoderTiny(**SETTINGS), state / "tiny")
