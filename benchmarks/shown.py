"""The images that are passed beside the timed request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.bundle import Bundle
from ..core.images import pixels_sha256
from ..core.request import Request
from ..pipelines.complete import complete
from ..pipelines.control import digested
from ..pipelines.picture import load_controls, load_picture, read_mask, read_picture, size_in
from ..pipelines.style import read_style
from ..sampling.host import SCHEDULER
from ..sampling.image import Pixels
from .moving import MOVING_SCENES


@dataclass(frozen=True)
class Files:
    """Image files, as the arguments of `Pipeline`."""

    image: Path | None = None
    """For image to image and inpainting, or the image of a video, whose default is a rendered scene."""
    mask: Path | None = None
    control: tuple[Path, ...] = ()
    """One for each ControlNet."""
    style: Path | None = None

    @property
    def named(self) -> bool:
        """Whether there are any."""
        return self != Files()


def first_image(files: Files, size: tuple[int, int]) -> Pixels:
    """The image that a request of this width and height begins with: the named one, or a rendered scene.

    Raises `RequestError` for a file that can't be read.
    """
    return MOVING_SCENES[0].image(size) if files.image is None else load_picture(files.image).pixels


def completed(request: Request, bundle: Bundle, files: Files, size: tuple[int, int]) -> Request:
    """The request of this width and height with the defaults that its images have, and with their digests.

    Raises `RequestError` for images that can't be read, and for those that the model doesn't take or needs.
    """
    manifest = bundle.manifest
    begins = files.image is not None or manifest.model.reads_image
    picture = read_picture(request, manifest, first_image(files, size) if begins else None)
    mask, controls = read_mask(request, manifest.model, picture, files.mask), load_controls(files.control)
    asked = complete(
        request,
        manifest.model,
        bundle.json(SCHEDULER),
        image=size_in(picture),
        mask=mask is not None,
        controls=len(controls),
        style=files.style is not None,
    )
    asked, _ = read_style(digested(asked, controls), files.style)
    both = {"image_sha256": picture, "mask_sha256": mask}
    digests = {name: pixels_sha256(one.pixels) for name, one in both.items() if one is not None}
    return asked.model_copy(update={"scheduler": request.scheduler, **digests})
