"""Run a pipeline with the interface of diffusers' pipelines."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from ..line import Timed, Wish
from .clock import Clock


def draw_pipeline(pipeline: Any, clock: Clock, wish: Wish) -> Timed:
    """Generate 8-bit images, or videos, from the given initial latents, which all subjects share."""
    film = bool(wish.image_noise)
    draw = _videos if film else _images
    clock.clear()
    start = perf_counter()
    found = draw(pipeline, wish)
    total = perf_counter() - start
    pictures: tuple[str, ...] = ()
    if wish.keep is not None:
        pictures = tuple(f"{wish.keep}-{name}.png" for name in found)
        for image, path in zip(found.values(), pictures, strict=True):
            image.save(path)
    return Timed(
        text_encoder=None if film else sum(clock.calls("text_encoder")),
        image_encoder=sum(clock.calls("image_encoder")) if film else None,
        denoiser=clock.calls("denoiser"),
        vae_decoder=sum(clock.calls("vae_decoder")),
        total=total,
        pictures=pictures,
    )


def _images(pipeline: Any, wish: Wish) -> dict[str, Any]:
    """Pillow images by the names of their files."""
    import numpy as np
    import torch

    latents = torch.from_numpy(np.load(wish.latents))  # pyright: ignore[reportUnknownMemberType]
    request = wish.request
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
    return {str(index): image for index, image in enumerate(images)}


def _videos(pipeline: Any, wish: Wish) -> dict[str, Any]:
    """Pillow images of all frames by the names of their files."""
    import numpy as np
    from PIL import Image

    from .video import run_diffusers

    with Image.open(wish.files["image"]) as image:
        videos = run_diffusers(pipeline, wish.request, image, np.load(wish.latents), np.load(wish.image_noise))
    return {f"{index}-{frame:03}": image for index, one in enumerate(videos) for frame, image in enumerate(one)}
