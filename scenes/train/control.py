"""A ControlNet for the published checkpoint that reads edges."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor, nn

from ..caption import CHANCE, attributes
from ..world import sample
from . import vae
from .base import COUNT, Base, Picture, exam, guided, judged, latents_of, open_base
from .course import Course, run_course, trained
from .pictures import picture_of
from .unet import CONFIG, SHEET_GUIDANCE, schedule, velocity_loss

LAYOUT = ("position", "size")
"""What a caption of the exam leaves out, and edges tell."""

SETTINGS: dict[str, Any] = {
    "in_channels": 4,
    "conditioning_channels": 3,
    "down_block_types": ["DownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2D",
    "block_out_channels": CONFIG["block_out_channels"],
    "layers_per_block": CONFIG["layers_per_block"],
    "norm_num_groups": CONFIG["norm_num_groups"],
    "cross_attention_dim": CONFIG["cross_attention_dim"],
    "conditioning_embedding_out_channels": [8, 12, 16, 24],
}
"""Without attention, which takes half of the parameters: the edges are where they act."""

BATCH = 16


def course(steps: int) -> Course:
    """The ControlNet's course."""
    return Course(
        "control", steps, matrix_rate=2e-3, other_rate=1e-3, warm_up=50, cool_down=steps // 2, ema=0.99, save_every=250
    )


def new_control(unet: Any) -> Any:
    """A ControlNet without effect, whose other layers have the UNet's weights where they have one of that name."""
    torch.manual_seed(0)
    model: Any = ControlNetModel(**SETTINGS)
    given = unet.state_dict()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    fits = {key: value for key, value in given.items() if shapes.get(key) == value.shape}
    model.load_state_dict(fits, strict=False)
    return model


def edges_of(picture: Picture) -> Tensor:
    """A picture's edges, f32 [3, h, w] in 0 and 1, as the ControlNet reads them."""
    return torch.from_numpy(_canny(picture)).float().expand(3, -1, -1)


def _canny(picture: Picture) -> NDArray[np.bool_]:
    """The edges, [h, w], with the thresholds of `latentc canny`."""
    return canny(rgb2gray(picture), sigma=1.0, low_threshold=0.1, high_threshold=0.2)


def train(folder: Path, steps: int) -> nn.Module:
    """Train the ControlNet and return it."""
    base = open_base()
    latents = latents_of(folder, "plain", base)
    edges = _all_edges(folder)

    def loss(control: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        numbers = torch.randint(COUNT, (BATCH,)).tolist()
        states = base.captioned(numbers, step)
        states[torch.rand(BATCH) < 0.3] = base.encode([""])
        seen = edges[numbers].float().repeat(1, 3, 1, 1)
        return velocity_loss(
            lambda noisy, t: _controlled(base, control, noisy, t, states, seen), latents[numbers].float(), base.kept
        )

    def show(control: Any, step: int) -> Mapping[str, float]:
        return measure(base, control, folder / "control" / f"sheet-{step:06}.png")

    return run_course(course(steps), new_control(base.unet), loss, folder / "control", show)


def measure(base: Base, control: Any, sheet: Path) -> Mapping[str, float]:
    """Draw captions that leave the layout out, with the edges of their scenes, and return the judge's scores of it."""
    asked = exam(32, {**CHANCE, **dict.fromkeys(LAYOUT, 0.0)})
    seen = torch.stack([edges_of(picture_of(number, vae.SIDE, "any")) for number in asked.numbers])

    def draw(noise: Tensor, states: Tensor, _numbers: Sequence[int]) -> Tensor:
        def predict(noisy: Tensor, timestep: Tensor, rows: Tensor) -> Tensor:
            return _controlled(base, control, noisy, timestep, rows, seen.repeat(len(rows) // len(seen), 1, 1, 1))

        return guided(base, predict, schedule(), 20, SHEET_GUIDANCE, noise, states)

    drawn = asked.draw(base, draw, sheet)
    return judged(drawn, [attributes(sample(number, "any")) for number in asked.numbers])


def _controlled(base: Base, control: Any, noisy: Tensor, timesteps: Tensor, states: Tensor, seen: Tensor) -> Tensor:
    downs, middle = control(noisy, timesteps, states, controlnet_cond=seen, return_dict=False)
    return base.unet(
        noisy, timesteps, states, down_block_additional_residuals=downs, mid_block_additional_residual=middle
    ).sample


def _all_edges(folder: Path) -> Tensor:
    """The edges of all training scenes, bool [COUNT, 1, h, w]; computed once and kept."""
    kept = folder / "edges.pt"
    if not kept.exists():
        found = np.stack([_canny(picture_of(number, vae.SIDE)) for number in range(COUNT)])
        torch.save(torch.from_numpy(found)[:, None], kept)
    return torch.load(kept, weights_only=True)


def load(state: Path) -> Any:
    """The ControlNet as trained so far."""
    return trained(ControlNetModel(**SETTINGS), state / "control")
