"""ControlNets and T2I-Adapters in references: their images, settings, and what diffusers' pipeline passes to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checkpoints.parts.controlnet import SCALES
from ..core.images import pixels_sha256
from ..core.model import ControlNet, Model
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

    def fitted(self, model: Model, takes: Collection[str]) -> AskedControl:
        """The settings that diffusers has for the model's ControlNets, whose pipeline takes these arguments."""
        if not model.controls:
            return AskedControl()
        guess = self.guess and all(one.guesses for one in model.controls)
        if model.controls[0].kind == "ControlNet":
            return replace(self, guess=guess)
        end = self.end if ADAPTER_END in takes else 1.0
        return replace(self, guess=guess, start=0.0, end=end)

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

    def given(
        self, images: Sequence[NDArray[np.uint8]], model: Model, takes: Collection[str], rows: int
    ) -> dict[str, Any]:
        """The settings as arguments of diffusers' pipeline, which takes lists only for several ControlNets.

        `rows` is the number of images that are generated: T2I-Adapters read their image for each.
        """
        facts, count = model.controls, len(images)
        shown = [grey_or_colour(one, fact.channels) for one, fact in zip(images, facts, strict=True)]
        adapts = facts[0].kind == "T2I-Adapter"
        each: list[Any] = [[one] * rows for one in shown] if adapts else shown
        several = count > 1
        scale = list(self.scales(count)) if several else self.scales(1)[0]
        made: dict[str, Any] = {"control_image" if "control_image" in takes else "image": each if several else each[0]}
        if adapts:
            end = {ADAPTER_END: self.end} if ADAPTER_END in takes else {}
            return {**made, "adapter_conditioning_scale": scale, **end}
        made |= {
            "controlnet_conditioning_scale": scale,
            "control_guidance_start": [self.start] * count,
            "control_guidance_end": [self.end] * count,
        }
        return made | ({"guess_mode": self.guess} if "guess_mode" in takes else {})


ADAPTER_END = "adapter_conditioning_factor"
"""The argument of the pipeline of Stable Diffusion XL for the share of steps at which T2I-Adapters end."""

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


def grey_or_colour(image: NDArray[np.uint8], channels: int) -> Image.Image:
    """An image with this number of channels, 1 or 3."""
    shown = Image.fromarray(image)
    return shown.convert("L") if channels == 1 else shown


def read_as(fact: ControlNet, image: NDArray[np.uint8], rows: int) -> Array:
    """What a ControlNet that reads images is fed for one: values from 0 to 1, in the same rows each."""
    shares = np.asarray(grey_or_colour(image, fact.channels), np.float32) / np.float32(255)
    planes = np.moveaxis(shares, -1, 0) if shares.ndim == 3 else shares[None]
    return np.repeat(planes[None], 1 if fact.kind == "T2I-Adapter" else rows, axis=0)


def colouring(pipeline: Any, facts: Sequence[ControlNet]) -> None:
    """Make a pipeline of Stable Diffusion 3 prepare the images of Canny ControlNets as diffusers documents it."""
    plain, processor, turns = pipeline.image_processor.preprocess, pipeline.image_processor, cycle(facts)
    shares = type(processor)(vae_scale_factor=processor.config.vae_scale_factor, do_normalize=False)

    def preprocess(image: Any, **given: Any) -> Any:
        usual = next(turns).colours == (-1, 1)
        return plain(image, **given) if usual else shares.preprocess(image, **given) * 255 * 0.5 + 0.5

    processor.preprocess = preprocess


@contextmanager
def recorded_controls(
    nets: Mapping[str, Any], model: Model, settings: AskedControl
) -> Generator[Callable[[int, Mapping[str, Any]], dict[str, Array]]]:
    """Record the arguments of the ControlNets' calls: the function gives those of the last call as feeds, for a
    denoiser with this many rows and these arguments.
    """
    last: dict[str, dict[str, Any]] = {}
    hooks = [net.register_forward_pre_hook(_keeping(last, name), with_kwargs=True) for name, net in nets.items()]

    def feeds(rows: int, fed: Mapping[str, Any]) -> dict[str, Array]:
        made: dict[str, Array] = {}
        scales = settings.scales(len(nets)) if fed.get(INTRABLOCK) is not None else (0.0,) * len(nets)
        for index, (name, fact) in enumerate(zip(nets, model.controls, strict=True)):
            end = "" if index == 0 else f"_{index + 1}"
            if fact.kind == "T2I-Adapter":
                image: Array = last[name]["sample"].detach().float().numpy()[:1]
                factors = np.full((rows, fact.residuals), scales[index], np.float32)
            else:
                image, factors = _fed(fact, last[name], rows)
            made |= {f"{CONTROL_IMAGE}{end}": image, f"{SCALES}{end}": factors}
        return made

    try:
        yield feeds
    finally:
        for hook in hooks:
            hook.remove()


INTRABLOCK = "down_intrablock_additional_residuals"
"""The UNet's argument for the features of T2I-Adapters; None at steps without them."""


def _keeping(last: dict[str, dict[str, Any]], name: str) -> Any:
    """A hook that keeps the arguments of a call; `MultiControlNetModel` passes all but two by position."""
    places = ("sample", "timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale")

    def hook(_module: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        last[name] = dict(zip(places, arguments, strict=False)) | given

    return hook


def _fed(fact: ControlNet, given: Mapping[str, Any], rows: int) -> tuple[Array, Array]:
    """What a ControlNet read in a call, and the factors that its scale and guess mode stand for, in rows of the
    denoiser.

    In guess mode with guidance the pipeline passes positive rows only, and zeros replace the residuals of the others.
    """
    image: Array = given["controlnet_cond"].detach().float().numpy()
    guess = given.get("guess_mode") and not fact.pooled
    shares = np.logspace(-1, 0, fact.residuals) if guess else np.ones(fact.residuals)
    factors = np.zeros((rows, fact.residuals), np.float32)
    factors[rows - len(image) :] = shares * float(given["conditioning_scale"])
    return np.ascontiguousarray(np.resize(image, (rows, *image.shape[1:]))), factors
