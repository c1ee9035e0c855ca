"""ControlNets in references: their images and settings, and what diffusers' pipeline passes to them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checkpoints.parts.controlnet import SCALES
from ..core.images import pixels_sha256
from ..core.tensors import Array
from ..core.wires import CONTROL_IMAGE


@dataclass(frozen=True)
class AskedControl:
    """Settings of the ControlNets of a reference image; those of a second one and so on differ a little."""

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False
    image: tuple[int, int] | None = None
    """Height and width of the images in pixels; None for the generated image's."""

    def scales(self, count: int) -> tuple[float, ...]:
        """The scale of each ControlNet."""
        return tuple(round(self.scale * (1 - 0.2 * index), 3) for index in range(count))

    def asked(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        """The settings as fields of a request."""
        count = len(images)
        return {
            "control_scale": self.scales(count),
            "control_start": (self.start,) * count,
            "control_end": (self.end,) * count,
            "guess_mode": self.guess,
            "control_sha256": tuple(pixels_sha256(one) for one in images),
        }

    def given(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        """The settings as arguments of diffusers' pipelines, which take lists only for several ControlNets."""
        count, shown = len(images), [Image.fromarray(one) for one in images]
        several = count > 1
        return {
            "image": shown if several else shown[0],
            "controlnet_conditioning_scale": list(self.scales(count)) if several else self.scales(1)[0],
            "control_guidance_start": [self.start] * count,
            "control_guidance_end": [self.end] * count,
            "guess_mode": self.guess,
        }


CONTROLS: dict[str, AskedControl] = {
    "whole": AskedControl(),
    "wide": AskedControl(scale=0.8, guess=True, image=(61, 190)),
    "single": AskedControl(scale=1.3, guess=True, end=0.7),
    "long": AskedControl(scale=0.7, start=0.4, image=(200, 200)),
    "own": AskedControl(),
}
"""Settings of each reference image, by its name: each setting is used by one of them."""


def drawn_image(random: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A synthetic image for a ControlNet: large patches of random colours with sharp edges."""
    patches = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST))


@contextmanager
def recorded_controls(nets: Mapping[str, Any]) -> Generator[Callable[[int], dict[str, Array]]]:
    """Record the arguments of the ControlNets' calls: the function gives those of the last call as feeds, for a
    denoiser with this many rows.
    """
    last: dict[str, dict[str, Any]] = {}
    hooks = [net.register_forward_pre_hook(_keeping(last, name), with_kwargs=True) for name, net in nets.items()]

    def feeds(rows: int) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for index, (name, net) in enumerate(nets.items()):
            end = "" if index == 0 else f"_{index + 1}"
            image, factors = _fed(net, last[name], rows)
            made |= {f"{CONTROL_IMAGE}{end}": image, f"{SCALES}{end}": factors}
        return made

    try:
        yield feeds
    finally:
        for hook in hooks:
            hook.remove()


def _keeping(last: dict[str, dict[str, Any]], name: str) -> Any:
    """A hook that keeps the arguments of a call; `MultiControlNetModel` passes all but two by position."""
    places = ("sample", "timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale")

    def hook(_module: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        last[name] = dict(zip(places, arguments, strict=False)) | given

    return hook


def _fed(net: Any, given: Mapping[str, Any], rows: int) -> tuple[Array, Array]:
    """The image of a call, and the factors that its scale and guess mode stand for, in rows of the denoiser.

    In guess mode with guidance the pipeline passes positive rows only, and zeros replace the residuals of the others.
    """
    image: Array = given["controlnet_cond"].detach().float().numpy()
    count = len(net.controlnet_down_blocks) + 1
    pooled = net.config.global_pool_conditions
    shares = np.logspace(-1, 0, count) if given.get("guess_mode") and not pooled else np.ones(count)
    factors = np.zeros((rows, count), np.float32)
    factors[rows - len(image) :] = shares * float(given["conditioning_scale"])
    return np.ascontiguousarray(np.resize(image, (rows, *image.shape[1:]))), factors
