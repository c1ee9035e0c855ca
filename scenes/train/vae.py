"""The autoencoder: images to latents of an eighth of the width, and back."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..world import EXAMINED
from .course import Course, run_course, trained
from .pictures import Pictures, picture_of

SIDE = 128
CROP = 64
CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 96],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": SIDE,
}
WIDE: dict[str, Any] = {**CONFIG, "block_out_channels": [48, 32, 64, 96]}
"""The config of the wider autoencoder of `wider.py`."""

DONE = "done"
COUNT = 40960
KL_WEIGHT = 2e-4
"""Weight of the KL loss; a hundredth of it while colours are still being learned."""

FREE = 1000
"""Steps with that lower weight."""


def course(steps: int) -> Course:
    """The autoencoder's course: 3.5 steps per second on two CPU cores of 2023."""
    return Course(
        "vae", steps, matrix_rate=2e-3, other_rate=1e-3, warm_up=50, cool_down=steps // 3, ema=0.998, save_every=250,
        weight_decay=0.3,
    )  # fmt: skip


def train(folder: Path, steps: int) -> nn.Module:
    """Train the autoencoder and return it."""
    pictures = Pictures(folder, SIDE, COUNT)
    torch.manual_seed(0)
    model = _begun(AutoencoderKL(**CONFIG))
    seen = unseen()

    def loss(model: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return _loss(model, _batch(pictures, step), KL_WEIGHT * (0.01 if step < FREE else 1.0))

    def tell(model: Any, step: int) -> Mapping[str, float]:
        return show(model, seen, folder / "vae" / f"sheet-{step:06}.png")

    return run_course(course(steps), model, loss, folder / "vae", tell)


def unseen() -> Tensor:
    """64 images that are not used for training, [64, 3, h, w]."""
    return torch.stack([to_tensor(picture_of(EXAMINED + i, SIDE, "any")) for i in range(64)])


def show(model: Any, seen: Tensor, sheet: Path) -> Mapping[str, float]:
    """Reconstruct images, write some of them to a sheet, and return how close they are."""
    with torch.no_grad():
        found = model.decode(model.encode(seen).latent_dist.mode()).sample
    _sheet(sheet, seen[:16], found[:16])
    return {"psnr_db": psnr(seen, found)}


def _begun(model: Any) -> Any:
    """A new model whose latents are strong and have little noise, so that colours are learned three times faster."""
    with torch.no_grad():
        half = model.quant_conv.out_channels // 2
        model.quant_conv.weight[:half] *= 3
        model.quant_conv.weight[half:] *= 0.1
        model.quant_conv.bias[half:] = -6
    return model


def load(folder: Path) -> Any:
    """The autoencoder as trained so far: the wider one, once it has been trained."""
    if (folder / "wider" / DONE).exists():
        return trained(AutoencoderKL(**WIDE), folder / "wider")
    return load_narrow(folder)


def load_narrow(folder: Path) -> Any:
    """The autoencoder whose latents the denoiser learns."""
    return trained(AutoencoderKL(**CONFIG), folder / "vae")


def to_tensor(picture: NDArray[np.uint8]) -> Tensor:
    """From uint8 [h, w, 3] to [3, h, w] in [-1, 1]."""
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def to_picture(image: Tensor) -> NDArray[np.uint8]:
    """From [3, h, w] in [-1, 1] to uint8 [h, w, 3]."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def psnr(wanted: Tensor, found: Tensor) -> float:
    """The median over images of 10 log10(2^2 / MSE) in dB, for values in [-1, 1]."""
    errors = (found.clamp(-1, 1) - wanted).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / errors)).median().item()


def _batch(pictures: Pictures, step: int) -> Tensor:
    """Whole images every fourth step, crops otherwise; mirrored at random."""
    rng = np.random.default_rng((1, step))
    side, count = (SIDE, 4) if step % 4 == 0 else (CROP, 16)
    found: list[NDArray[np.uint8]] = []
    for _ in range(count):
        picture = pictures[int(rng.integers(pictures.count))]
        top, left = rng.integers(SIDE - side + 1, size=2)
        found.append(picture[top : top + side, left : left + side, :: rng.choice((-1, 1))])
    batch = torch.stack([to_tensor(picture) for picture in found])
    return batch.contiguous(memory_format=torch.channels_last)


def _loss(model: Any, batch: Tensor, kl_weight: float) -> tuple[Tensor, Mapping[str, float]]:
    latent = model.encode(batch).latent_dist
    error = model.decode(latent.sample()).sample - batch
    squared, kl = error.square().mean(), latent.kl().mean() / latent.mean[0].numel()
    figures = {"squared": squared.item(), "kl": kl.item(), "spread": latent.std.mean().item()}
    return 10 * squared + error.abs().mean() + kl_weight * kl, figures


def _sheet(path: Path, wanted: Tensor, found: Tensor) -> None:
    """Pairs of picture and reconstruction, one above the other, eight pairs in a row."""
    rows = [torch.cat([*part], dim=2) for pair in zip(wanted.split(8), found.split(8), strict=True) for part in pair]
    Image.fromarray(to_picture(torch.cat(rows, dim=1))).save(path)
