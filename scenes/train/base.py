"""The published checkpoint, from which adapters are trained, and the latents that they learn from."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from ..caption import CHANCE, attributes, describe
from ..judge import attributes_of, prepare, scene_score, scores_by_attribute, unpacked
from ..world import EXAMINED, sample
from . import vae
from .pictures import picture_of
from .save import CHECKPOINT
from .unet import TOLD_WHOLE, schedule
from .words import Words, described

COUNT = 8192
"""Scenes that adapters learn from: the first ones of those that the checkpoint was trained on."""

Picture = NDArray[np.uint8]
Draw = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""From noise [n, 4, h, w], encodings of captions [n, 77, width] and the scenes' numbers to latents [n, 4, h, w]."""


@dataclass(frozen=True)
class Base:
    """The published parts, in f32, eval mode and without gradients."""

    encoder: Any
    unet: Any
    vae: Any
    words: Words
    kept: Tensor
    """The share of signal power at each timestep, [1000]."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        """The encodings of captions, [n, 77, width]."""
        with torch.no_grad():
            return self.encoder(torch.tensor(self.words.ids(captions))).last_hidden_state

    def captioned(self, numbers: Sequence[int], step: int) -> Tensor:
        """Encodings of the scenes' captions for training; their wording depends on the step."""
        whole = (torch.rand(len(numbers)) < TOLD_WHOLE).tolist()
        return self.encode([described(n, step + 1, all_).text for n, all_ in zip(numbers, whole, strict=True)])

    def share(self, timesteps: Tensor) -> Tensor:
        """The share of signal power at timesteps [n], as [n, 1, 1, 1]."""
        return self.kept[timesteps].view(-1, 1, 1, 1)

    def pictures(self, latents: Tensor) -> list[Picture]:
        """Decode latents [n, 4, h, w] as the denoiser returns them."""
        with torch.no_grad():
            return [vae.to_picture(image) for image in self.vae.decode(latents / self.vae.config.scaling_factor).sample]


def open_base() -> Base:
    """Load the checkpoint that ships with latentc."""
    encoder: Any = CLIPTextModel.from_pretrained(CHECKPOINT, subfolder="text_encoder")
    unet: Any = UNet2DConditionModel.from_pretrained(CHECKPOINT, subfolder="unet")
    decoder: Any = AutoencoderKL.from_pretrained(CHECKPOINT, subfolder="vae")
    encoder, unet, decoder = (part.float().eval().requires_grad_(False) for part in (encoder, unet, decoder))
    return Base(encoder, unet, decoder, Words(CHECKPOINT / "tokenizer"), schedule().alphas_cumprod)


def latents_of(
    folder: Path, name: str, base: Base, paint: Callable[[Picture], Picture] = lambda picture: picture
) -> Tensor:
    """Scaled latents of the scenes' pictures after `paint`, [COUNT, 4, h, w] f16; computed once and kept by `name`."""
    kept = folder / f"latents-{name}.pt"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found: list[Tensor] = []
        with torch.no_grad():
            for first in range(0, COUNT, 32):
                batch = torch.stack([vae.to_tensor(paint(picture_of(first + i, vae.SIDE))) for i in range(32)])
                found.append(base.vae.encode(batch).latent_dist.mode().half())
        torch.save(torch.cat(found) * base.vae.config.scaling_factor, kept)
    return torch.load(kept, weights_only=True)


@dataclass(frozen=True)
class Exam:
    """Scenes that training never saw, what captions tell of them, and noise to draw them from."""

    numbers: Sequence[int]
    captions: Sequence[str]
    said: Sequence[Mapping[str, str]]
    """The attributes that each caption names."""
    noise: Tensor

    def draw(self, base: Base, draw: Draw, sheet: Path) -> list[Picture]:
        """Draw the captions, and write the first 24 pictures to a sheet."""
        with torch.no_grad():
            drawn = base.pictures(draw(self.noise, base.encode(self.captions), self.numbers))
        rows = [np.concatenate(drawn[first : first + 8], axis=1) for first in range(0, 24, 8)]
        Image.fromarray(np.concatenate(rows)).save(sheet)
        return drawn


def exam(count: int = 64, chance: Mapping[str, float] = CHANCE) -> Exam:
    """The first scenes of the evaluation; `chance` is how often a caption names each attribute."""
    numbers = range(EXAMINED, EXAMINED + count)
    captions = [describe(sample(number, "any"), number, chance) for number in numbers]
    said = [
        {key: value for key, value in attributes(sample(number, "any")).items() if key in caption.said}
        for number, caption in zip(numbers, captions, strict=True)
    ]
    noise = torch.randn((count, 4, vae.SIDE // 8, vae.SIDE // 8), generator=torch.Generator().manual_seed(0))
    return Exam(numbers, [caption.text for caption in captions], said, noise)


def judged(pictures: Sequence[Picture], said: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The judge's score of these attributes of the pictures, by name, and of all of them as `score`."""
    session = ort.InferenceSession(unpacked(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {"image": prepare(np.stack(pictures))})
    read = attributes_of({name: np.asarray(output) for name, output in zip(names, outputs, strict=True)})
    return {**scores_by_attribute(read, said), "score": scene_score(read, said)}


def guided(base: Base, unet: Any, scheduler: Any, steps: int, guidance: float, noise: Tensor, states: Tensor) -> Tensor:
    """Latents drawn with `scheduler` by `unet`, called with latents, timestep and encodings."""
    scheduler.set_timesteps(steps)
    both = guidance != 1
    rows = torch.cat([base.encode([""] * len(states)), states]) if both else states
    latents = noise
    for timestep in scheduler.timesteps:
        found = unet(latents.repeat(2, 1, 1, 1) if both else latents, timestep, rows)
        if both:
            plain, prompted = found.chunk(2)
            found = plain + guidance * (prompted - plain)
        latents = scheduler.step(found, timestep, latents).prev_sample
    return latents
