"""The reference images that an export generates, and the additional calls of the denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.request import Request

SEED = 20261122
MAX_PIXELS = 256
"""Most references are generated at the model's native size, up to this side in pixels: larger ones take minutes."""

COSTLY_PARAMETERS = 1_000_000_000
"""A transformer of more parameters, each of which takes part in every token of text and image, has smaller and fewer
references: with those of a UNet, the references of Stable Diffusion 3.5 Medium alone took over half an hour on two
shared cores.
"""
MAX_COSTLY_PIXELS = 128

GUIDANCE = 7.5
BROWNIAN = ("DPMSolverSDEScheduler", "KDPM2AncestralDiscreteScheduler")
"""Schedulers that references cannot record, so that they use `DRAWS_INSTEAD`: one takes its noise from a Brownian tree
of torchsde, and of the other diffusers rounds timesteps and noise levels in float32.
"""

WRONG_FROM_AN_IMAGE = ("PNDMScheduler", "LMSDiscreteScheduler")
"""Schedulers that diffusers starts wrongly in the middle, from an image: there, references use `DRAWS_INSTEAD`."""

STRENGTH = 0.6
"""Strength of the reference images of inpainting that begin from their image, and of image to image."""

OTHER_SCALES: Mapping[str, float] = {"image_guidance": 2.25, "aesthetic_score": 4.5, "negative_aesthetic_score": 3.25}
"""Scales and scores of one reference image, unlike the defaults, by the name of the request's field."""

REFINED_STEPS = 4
"""Further steps of the reference images of a refiner, which runs only some of them."""
REFINED_FROM = (0.55, 0.3)
"""Shares from which it runs: of most reference images, and of one."""

ARGUMENTS = {"image_guidance": "image_guidance_scale", "refine_from": "denoising_start"}
"""Names of these in diffusers' pipelines, where they differ."""

DRAWS_INSTEAD = "ddim"
"""The scheduler of references where the checkpoint's own can't be used."""

AT_SHARES = (
    *(1.0, 0.951, 0.907, 0.861, 0.818, 0.767, 0.722, 0.676, 0.631, 0.577, 0.532, 0.486, 0.441, 0.387, 0.342, 0.296),
    *(0.251, 0.207, 0.161, 0.118, 0.083, 0.049, 0.021, 0.0),
)
"""Timesteps of the additional calls, as shares of the last timestep. Not round numbers, which steps fall on."""

COSTLY_SHARES = (*AT_SHARES[:-1:3], AT_SHARES[-1])
"""Those of a costly transformer."""

OTHER_TEXT_EACH = 8
"""One in this many of these calls is repeated with another text and nothing else changed."""


@dataclass(frozen=True)
class Asked:
    """A reference image to generate."""

    name: str
    prompts: tuple[str, ...]
    """Chunks of the prompt; joined with spaces they are the request's prompt."""
    negative: str
    size: tuple[int, int]
    """Height and width in latents."""
    steps: int
    count: int = 1
    guidance: float = GUIDANCE
    decoder: Literal["tiny"] | None = None
    calls: int | None = None
    """Number of denoiser calls to record; None records all of them and the image."""
    strength: float | None = None
    """Of inpainting and image to image; None for an image from noise."""
    more: Mapping[str, float] = field(default_factory=dict[str, float])
    """Scales and scores that only some models take, by the name of the request's field."""

    def request(
        self,
        downscale: int,
        *,
        scheduler: str | None = None,
        variant: str | None = None,
        more: Mapping[str, Any] = {},
    ) -> Request:
        """The same as a request; `downscale` is the number of pixels per latent along each side, and `more` holds
        the fields of ControlNets and of a style image.
        """
        height, width = (side * downscale for side in self.size)
        return Request(
            prompt=" ".join(self.prompts),
            negative_prompt=self.negative,
            width=width,
            height=height,
            steps=self.steps,
            guidance=self.guidance,
            count=self.count,
            scheduler=scheduler,
            variant=variant,
            strength=self.strength,
            decoder=self.decoder,
            **self.more,
            **more,
        )


def exact(timestep: float) -> int:
    """The nearest timestep that bf16 represents exactly. The last one, and the images, test rounded timesteps."""
    unit = 4 if timestep > 512 else 2 if timestep > 256 else 1
    return round(timestep / unit) * unit
