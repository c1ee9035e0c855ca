"""The image of a request, and its mask: what begins from them, what sees them at each step, and what keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..core.request import Request
from ..core.tensors import Array, check_finite
from ..core.wires import MASK, MASKED
from .denoise import Kept, Walk
from .image import Pixels, encode_image, fitted, resized, sampled
from .inpaint import filled, generated, latent_mask, pasted, shares
from .prompt import Call
from .scaling import scaled
from .schedulers.arrays import mixed

if TYPE_CHECKING:
    from .host import Host


@dataclass(frozen=True)
class Given:
    """The image of a request, and the noise with which it is encoded."""

    image: Pixels
    noise: NDArray[np.float32]
    """Standard normal values of the shape that `image_shape` returns."""
    mask: NDArray[np.uint8] | None = None
    """White where inpainting generates, [height, width]; None to change the whole image."""

    def area(self, request: Request) -> NDArray[np.bool_] | None:
        """Where a request with width and height generates, [height, width]; None for the whole image."""
        assert request.width is not None
        assert request.height is not None
        return None if self.mask is None else generated(self.mask, request.width, request.height)


def read_masked(
    host: Host, request: Request, given: Given | None, call: Call, engines: Mapping[str, str]
) -> dict[str, dict[str, Array]]:
    """What an inpainting model reads beside the latents, by owner and name of the wires: the mask, and the latents of
    the image without the mask's area, with a row for each image that is generated.

    Source: diffusers' StableDiffusionInpaintPipeline, where that area has the value 0, which is grey.
    """
    assert given is not None
    assert host.encoder is not None
    area = given.area(request)
    assert area is not None
    image = np.where(area, np.float32(0), image_sample(request, given))
    latents = image_latents(host, image, given.noise, call, engines)
    owner, _, name = MASK.partition(".")
    mask = np.repeat(latent_mask(area, host.model.downscale), request.count, axis=0)
    return {owner: {name: mask}, host.encoder: {MASKED: latents}}


def read_edited(
    host: Host, request: Request, given: Given | None, call: Call, engines: Mapping[str, str]
) -> dict[str, dict[str, Array]]:
    """What a model for editing reads beside the latents: the mode of the image's latents, not scaled, with a row for
    each image that is generated.

    Source: diffusers' StableDiffusionInstructPix2PixPipeline.
    """
    assert given is not None
    found = encode_image(host.model, host.roles, given.image, image_sample(request, given), call, engines)
    return {
        part: {name: np.repeat(rows, request.count, axis=0) for name, rows in one.items()}
        for part, one in found.items()
    }


def image_sample(request: Request, given: Given) -> NDArray[np.float32]:
    """The image of a request with width and height as the VAE's encoder reads it, [1, 3, height, width]."""
    assert request.width is not None
    assert request.height is not None
    return fitted(given.image, request.width, request.height)


def image_latents(
    host: Host, sample: NDArray[np.float32], noise: NDArray[np.float32], call: Call, engines: Mapping[str, str]
) -> NDArray[np.float32]:
    """Latents of an image, [1, 3, height, width], in the denoiser's scale, drawn with `noise`: a row for each of it."""
    return scaled(host.model, sampled(latent_parameters(host, sample, call, engines), noise))


def latent_parameters(
    host: Host, sample: NDArray[np.float32], call: Call, engines: Mapping[str, str]
) -> NDArray[np.float32]:
    """The distribution of an image's latents, [1, 2 * channels, height / 8, width / 8]: its means come first."""
    assert host.encoder is not None
    parameters = call(host.encoder, {"sample": sample})["latent_parameters"]
    check_finite(parameters, "The image's latents", host.encoder, engines.get(host.encoder, "its engine"))
    return parameters


def begun(
    host: Host,
    request: Request,
    given: Given | None,
    walk: Walk,
    start: NDArray[np.float32],
    call: Call,
    engines: Mapping[str, str] = {},
) -> tuple[NDArray[np.float32], Kept | None]:
    """The latents before the first call of a request with width and height, and what is kept of its image.

    From `start`, standard normal values, or from the image with that noise added. For a refiner, `start` holds the
    latents that it takes over. Inpainting at full strength begins
    from noise alone. A model for inpainting sees the image at each step, so that nothing is kept for it.
    """
    noise = start * np.float32(walk.schedule.init_noise_sigma)
    area = None if given is None else given.area(request)
    model = host.model
    if model.refines:
        return start, None
    if given is None or model.reads_image or model.edits or (model.inpaints and request.strength == 1):
        return noise, None
    sample = image_sample(request, given)
    if area is not None and request.fill == "edge":
        height, width = area.shape
        sample = fitted(filled(resized(given.image, width, height), area), width, height)
    original = image_latents(host, sample, given.noise, call, engines)
    if area is not None and request.fill == "noise":
        drawn = latent_mask(area, host.model.downscale) > 0
        original = np.where(drawn, given.noise, original).astype(np.float32)
    kept: Kept | None = None
    if area is not None and not host.model.inpaints:
        kept = Kept(original, start, latent_mask(area, host.model.downscale))
    if area is not None and request.strength == 1:
        return noise, kept
    share, added = walk.schedule.level(walk.first)
    return mixed((share, original), (added, start)), kept


def with_kept(images: NDArray[np.uint8], request: Request, given: Given) -> NDArray[np.uint8]:
    """Images of a request with width and height, with the image's own pixels where its mask keeps them."""
    area = given.area(request)
    if area is None or given.mask is None:
        return images
    if request.crop is not None and request.mask_blur is not None:
        return images  # mixed once, in the whole picture
    height, width = area.shape
    soft = None if request.mask_blur is None else shares(given.mask, width, height, request.mask_blur)
    return pasted(images, resized(given.image, width, height), area, soft)
