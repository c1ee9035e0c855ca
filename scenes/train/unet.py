"""The denoiser and its text encoder, trained together on the autoencoder's latents."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..caption import full_caption
from ..world import EXAMINED, sample
from . import text, vae
from .course import Course, run_course, trained
from .pictures import Pictures
from .words import Words, described

CONFIG: dict[str, Any] = {
    "sample_size": vae.SIDE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [64, 96, 128],
    "layers_per_block": 1,
    "cross_attention_dim": text.WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
"""Stable Diffusion's schedule with more noise at its end, so that little of a dark or bright image remains visible."""

BATCH = 32
UNCONDITIONAL = 0.1
"""How often a caption is left out, for guidance."""

TOLD_WHOLE = 0.5
"""How often a caption names everything. Random captions name a size or a side only two times in five, which is too rare
to learn them well."""

SNR_LIMIT = 5.0
"""At low noise, errors of v are weighted as in min-SNR weighting (Hang et al., 2023, arXiv:2303.09556).

Elsewhere all count alike, where in min-SNR weighting a step with a signal of a fifth of the noise counts a sixth. With
the weights that were trained so for 13,500 steps, another count, size or side in the caption changed the squared error
of v three to nine times as much there and beyond as where signal and noise are alike; and those were learned worst.
"""

SHEET_GUIDANCE = 4.0


class Denoiser(nn.Module):
    """The text encoder and the UNet."""

    def __init__(self, encoder: Any, unet: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """From latents [batch, 4, h, w], timesteps [batch] and ids [batch, 77] to v [batch, 4, h, w]."""
        states = self.encoder(ids).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=states).sample


def latents_of(folder: Path) -> tuple[Tensor, float]:
    """The training pictures' latents, scaled to a deviation of one, [count, 4, h, w] f16; and the scale.

    Computed once with the current autoencoder and kept.
    """
    kept = folder / "latents.pt"
    if not kept.exists():
        model = vae.load_narrow(folder)
        pictures = Pictures(folder, vae.SIDE, vae.COUNT)
        found: list[Tensor] = []
        with torch.no_grad():
            for first in range(0, pictures.count, 32):
                batch = torch.stack([vae.to_tensor(pictures[first + i]) for i in range(32)])
                batch = batch.contiguous(memory_format=torch.channels_last)
                found.append(model.encode(batch).latent_dist.mode().contiguous())
        whole = torch.cat(found)
        scale = 1 / whole.std().item()
        torch.save({"latents": (whole * scale).half(), "scale": scale}, kept)
    loaded = torch.load(kept, weights_only=True)
    return loaded["latents"], loaded["scale"]


def course(steps: int) -> Course:
    """The denoiser's course: 2 steps per second on two CPU cores of 2023."""
    return Course(
        "unet",
        steps,
        matrix_rate=3e-3,
        other_rate=1e-3,
        warm_up=100,
        cool_down=2 * steps // 5,
        ema=0.999,
        save_every=500,
    )


def train(folder: Path, steps: int) -> nn.Module:
    """Train the denoiser and return it."""
    latents, scale = latents_of(folder)
    words = Words(folder / "tokenizer")
    decoder = vae.load(folder)
    kept = schedule().alphas_cumprod
    torch.manual_seed(0)
    model = Denoiser(text.load(folder, words), _quiet(UNet2DConditionModel(**CONFIG)))

    def loss(model: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return _loss(model, latents, words, kept, step)

    def show(model: Any, step: int) -> Mapping[str, float]:
        captions = [full_caption(sample(EXAMINED + i, "any")) for i in range(24)]
        drawn = draw(model, decoder, words, captions, scale)
        Image.fromarray(_sheet(drawn, 8)).save(folder / "unet" / f"sheet-{step:06}.png")
        return {}

    return run_course(course(steps), model, loss, folder / "unet", show)


def load(folder: Path, words: Words) -> Denoiser:
    """The denoiser as trained so far."""
    model = Denoiser(text.new_encoder(words), UNet2DConditionModel(**CONFIG))
    trained(model, folder / "unet")
    return model


def draw(
    model: Any, decoder: Any, words: Words, captions: list[str], scale: float, steps: int = 20
) -> list[NDArray[np.uint8]]:
    """Images for the captions, by DPM++ 2M with guidance."""
    scheduler = schedule()
    scheduler.set_timesteps(steps)
    ids = torch.tensor(words.ids([""] * len(captions) + captions))
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn((len(captions), 4, vae.SIDE // 8, vae.SIDE // 8), generator=noise)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            plain, guided = model(latents.repeat(2, 1, 1, 1), timestep, ids).chunk(2)
            latents = scheduler.step(plain + SHEET_GUIDANCE * (guided - plain), timestep, latents).prev_sample
        return [vae.to_picture(image) for image in decoder.decode(latents / scale).sample]


def schedule() -> Any:
    """The scheduler of the checkpoint."""
    return DPMSolverMultistepScheduler(**SCHEDULER)


def _quiet(unet: Any) -> Any:
    """A new UNet with zero output, from which it learns fastest."""
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def _loss(model: Any, latents: Tensor, words: Words, kept: Tensor, step: int) -> tuple[Tensor, Mapping[str, float]]:
    numbers: list[int] = torch.randint(len(latents), (BATCH,)).tolist()
    chosen = zip(numbers, _by_chance(TOLD_WHOLE), _by_chance(UNCONDITIONAL), strict=True)
    captions = ["" if without else described(number, step + 1, whole).text for number, whole, without in chosen]
    ids = torch.tensor(words.ids(captions))
    return velocity_loss(lambda noisy, timesteps: model(noisy, timesteps, ids), latents[numbers].float(), kept)


def velocity_loss(
    predict: Callable[[Tensor, Tensor], Tensor], clean: Tensor, kept: Tensor
) -> tuple[Tensor, Mapping[str, float]]:
    """The weighted error of v that `predict` finds from noisy latents and timesteps, spread evenly over the rows."""
    count, noise = len(clean), torch.randn_like(clean)
    timesteps = (torch.arange(count) * 1000 + torch.randint(1000, (count,))) // count
    share = kept[timesteps].view(-1, 1, 1, 1)
    noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
    wanted = share.sqrt() * noise - (1 - share).sqrt() * clean
    squared = (predict(noisy, timesteps) - wanted).square().mean(dim=(1, 2, 3))
    ratio = kept[timesteps] / (1 - kept[timesteps])
    return (squared * (SNR_LIMIT / (ratio + 1)).clamp(max=1)).mean(), {"squared": squared.mean().item()}


def _by_chance(share: float) -> list[bool]:
    return (torch.rand(BATCH) < share).tolist()


def _sheet(pictures: list[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows)
