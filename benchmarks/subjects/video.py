"""Diffusers' own videos: a baseline, and the reference of the suite."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.bundle import Bundle
from ...core.request import Request
from ...core.tensors import Array
from ...sampling.host import image_shape
from ...sampling.image import Pixels
from ...sampling.noise import image_noise
from ..suite import Video


def diffusers_videos(bundle: Bundle) -> tuple[str, Video]:
    """Diffusers' own pipeline with the checkpoint that a bundle was exported from, in f32 on the CPU, and its name.

    Raises `CheckpointError` if the checkpoint was moved or changed.
    """
    import diffusers
    import torch

    from ...compiler.targets import origin_of
    from ...export.video import diffusers_pipeline
    from ...runtimes.torch import open_origin

    pipeline = diffusers_pipeline(open_origin(origin_of(bundle)))

    def video(request: Request, image: Pixels, latents: Array) -> NDArray[np.uint8]:
        noise = image_noise(request.seed or 0, image_shape(bundle.manifest.model, request))
        (frames,) = run_diffusers(pipeline, request.model_dump(), Image.fromarray(image), latents, noise)
        return np.stack([np.asarray(frame) for frame in frames])

    return f"diffusers {diffusers.__version__} with torch {torch.__version__} CPU f32", video


def run_diffusers(
    pipeline: Any, request: Mapping[str, Any], image: Image.Image, latents: Array, noise: Array
) -> list[list[Image.Image]]:
    """Generate the frames of each video with diffusers' StableVideoDiffusionPipeline, from given noise.

    `request` has the fields of a completed request. Diffusers adds the same noise to the image for all of its videos,
    the first of `noise`, [count, 3, height, width]. Raises `ValueError` if diffusers takes its noise in another way.
    """
    import torch

    with _drawing(pipeline, torch.from_numpy(noise[:1])):  # pyright: ignore[reportUnknownMemberType]
        return pipeline(
            image,
            width=request["width"],
            height=request["height"],
            num_inference_steps=request["steps"],
            min_guidance_scale=request["min_guidance"],
            max_guidance_scale=request["guidance"],
            fps=request["fps"],
            motion_bucket_id=request["motion_bucket_id"],
            noise_aug_strength=request["noise_aug_strength"],
            decode_chunk_size=request.get("decode_chunk_size"),
            num_videos_per_prompt=request["count"],
            latents=torch.from_numpy(latents.copy()),  # pyright: ignore[reportUnknownMemberType]
            output_type="pil",
        ).frames


@contextmanager
def _drawing(pipeline: Any, noise: Any) -> Generator[None]:
    """Have the module of a pipeline draw this noise, once."""
    module: Any = sys.modules[type(pipeline).__module__]
    own, drawn = module.randn_tensor, list[Any]()

    def given(shape: Any, **_: Any) -> Any:
        drawn.append(tuple(shape))
        return noise

    module.randn_tensor = given
    try:
        yield
    finally:
        module.randn_tensor = own
    if drawn != [tuple(noise.shape)]:
        raise ValueError(
            f"diffusers drew noise of the shapes {drawn}, not of {tuple(noise.shape)} once: this version of the "
            "library works differently."
        )
