"""The autoencoder once more, wider where pictures are largest, for the latents that there are.

The denoiser learned latents of the narrow one. So the decoder learns to draw those, and the encoder to give them: what
fits is taken over from the narrow one, the rest begins anew.
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
LATENTS_WEIGHT = 0.5
"""How much latents that are off count, against a picture that is; in units of their deviation."""


def course(steps: int) -> Course:
    """Its course."""
    return Course(
        "wider", steps, matrix_rate=1e-3, other_rate=1e-3, warm_up=100, cool_down=steps // 3, ema=0.998, save_every=250,
        weight_decay=0.3,
    )  # fmt: skip


def train(folder: Path, steps: int) -> nn.Module:
    """Train the wider autoencoder and return it."""
    latents, scale = unet.latents_of(folder)
    pictures = Pictures(folder, vae.SIDE, vae.COUNT)
    seen = vae.unseen()
    torch.manual_seed(0)
    model = taken_over(vae.load_narrow(folder), AutoencoderKL(**vae.WIDE))

    def loss(model: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        del step
        numbers: list[int] = torch.randint(pictures.count, (BATCH,)).tolist()
        batch = torch.stack([vae.to_tensor(pictures[number]) for number in numbers])
        batch = batch.contiguous(memory_format=torch.channels_last)
        wanted = latents[numbers].float()
        drawn = (model.decode(wanted / scale).sample - batch).square().mean()
        given = model.encode(batch).latent_dist
        off = ((given.mean * scale - wanted).square() + given.var * scale**2).mean()
        return 10 * drawn + LATENTS_WEIGHT * off, {"squared": drawn.item(), "off": off.item()}

    def show(model: Any, step: int) -> Mapping[str, float]:
        return vae.show(model, seen, folder / "wider" / f"sheet-{step:06}.png")

    trained = run_course(course(steps), model, loss, folder / "wider", show)
    (folder / "wider" / vae.DONE).touch()
    return trained


def taken_over(narrow: Any, wide: Any) -> Any:
    """The wide one with those of the narrow one's weights that have the same name and shape."""
    has = wide.state_dict()
    given = narrow.state_dict()
    fits = {name: given[name] for name in given.keys() & has.keys() if given[name].shape == has[name].shape}
    wide.load_state_dict(has | fits)
    return wide
