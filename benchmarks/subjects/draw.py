"""Run a pipeline with the interface of diffusers' pipelines."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from ..line import Timed, Wish
from .clock import Clock


def draw_pipeline(pipeline: Any, clock: Clock, wish: Wish) -> Timed:
    """Generate 8-bit images from the given initial latents, which all subjects share."""
    import numpy as np
    import torch

    latents = torch.from_numpy(np.load(wish.latents))  # pyright: ignore[reportUnknownMemberType]
    request = wish.request
    clock.clear()
    start = perf_counter()
    images = pipeline(
        prompt=request["prompt"],
        negative_prompt=request["negative_prompt"] or None,  # XL takes zeros for None alone
        width=request["width"],
        height=request["height"],
        num_images_per_prompt=request["count"],
        num_inference_steps=request["steps"],
        guidance_scale=request["guidance"],
        latents=latents,
        output_type="pil",
    ).images
    total = perf_counter() - start
    pictures: tuple[str, ...] = ()
    if wish.keep is not None:
        pictures = tuple(f"{wish.keep}-{index}.png" for index in range(request["count"]))
        for image, path in zip(images, pictures, strict=True):
            image.save(path)
    return Timed(
        text_encoder=sum(clock.calls("text_encoder")),
        denoiser=clock.calls("denoiser"),
        vae_decoder=sum(clock.calls("vae_decoder")),
        total=total,
        pictures=pictures,
    )
