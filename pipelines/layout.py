"""What is generated of a picture: the canvas, the part of it that is drawn, and the size at which it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import RequestError
from ..core.model import Model
from ..core.request import MAX_SIDE, Request
from ..sampling.image import Pixels, resized
from ..sampling.inpaint import generated, latent_mask, pasted, shares, softened

OVERLAP = 8
"""Least number of pixels of the image beside an extended side that are generated too."""

FAR = 2.0
"""Factor by which the number of pixels may differ from the model's native size: a larger or smaller image is scaled."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first beyond."""


@dataclass(frozen=True)
class Layout:
    """An image and its mask as they are drawn, and where the result belongs."""

    image: Pixels
    mask: NDArray[np.uint8] | None
    canvas: Pixels
    """The whole picture, into which a part is pasted."""
    area: NDArray[np.bool_] | None = None
    """Where the whole picture is generated, if only a part of it is drawn; None if all of it is."""
    soft: NDArray[np.uint8] | None = None
    """The shares of the blurred mask of the whole picture, if the request blurs it and only a part is drawn."""
    box: Box = (0, 0, 0, 0)
    """The part of the canvas that is drawn."""
    inner: Box = (0, 0, 0, 0)
    """Where that part is in what is drawn."""
    notices: tuple[str, ...] = ()

    def placed(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The whole pictures from the images that were drawn."""
        if self.area is None:
            return images
        left, top, right, bottom = self.box
        within = self.inner
        found: list[NDArray[np.uint8]] = []
        for one in images:
            whole = self.canvas.copy()
            part = np.ascontiguousarray(one[within[1] : within[3], within[0] : within[2]])
            whole[top:bottom, left:right] = resized(part, right - left, bottom - top)
            found.append(pasted(whole[None], self.canvas, self.area, self.soft)[0])
        return np.stack(found)


def enlarged(request: Request, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the canvas of an image of this size."""
    left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
    return size[0] + left + right, size[1] + top + bottom


def result_size(request: Request, image: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the results of a completed request: with `crop`, those of the canvas of its image."""
    if request.crop is not None and image is not None:
        return enlarged(request, image)
    return request.width or 0, request.height or 0


def size_of(
    request: Request, model: Model, image: tuple[int, int] | None, sizes: Sequence[tuple[int, int]] = ()
) -> tuple[int, int]:
    """Width and height in pixels of a request: its own, or a default. `image` is the size of the image.

    An image keeps its proportions, and its size, rounded down to what the model can draw; one with `FAR` times as many
    pixels as the model's native size, or as few, is scaled to that number. Of the `sizes` that engines were built for,
    if they are fixed, the one with the most similar proportions is used. Raises `RequestError`.
    """
    own = model.own_size
    if request.outpaint is not None and image is not None and request.crop is None:
        return _outpainted(request, model, image)
    if request.width or request.height or image is None or model.reads_image or request.crop is not None:
        return request.width or own[0], request.height or own[1]
    width, height = image
    if sizes:
        return min(sizes, key=lambda one: (abs(math.log(one[0] * height / (one[1] * width))), -one[0] * one[1]))
    scale = math.sqrt(own[0] * own[1] / (width * height))
    scale = 1.0 if 1 / FAR <= scale**2 <= FAR else scale
    step = model.downscale * model.patch
    most = MAX_SIDE if model.largest_side is None else min(MAX_SIDE, model.largest_side * model.downscale)
    scale = min(scale, most / max(width, height))
    least = -(-64 // step) * step
    made = [max(least, int(side * scale + 1e-6) // step * step) for side in (width, height)]
    return made[0], made[1]


def _outpainted(request: Request, model: Model, image: tuple[int, int]) -> tuple[int, int]:
    """Size of an extended image, which is drawn as it is."""
    step, size = model.downscale * model.patch, enlarged(request, image)
    if any(side % step for side in size):
        more = [-side % step for side in size]
        raise RequestError(
            f"Extended by {_shown(request)}, the image of {image[0]}x{image[1]} pixels has {size[0]}x{size[1]}, but "
            f"this model generates multiples of {step}. Extend it by {more[0]} more pixels in width and {more[1]} in "
            "height, or draw the new area by itself, at any size: --crop 32 (in Python: crop=32)."
        )
    if (request.width or size[0], request.height or size[1]) != size:
        raise RequestError(
            f"Extended by {_shown(request)}, the image of {image[0]}x{image[1]} pixels has {size[0]}x{size[1]}, which "
            f"is the size that is drawn; {request.width or size[0]}x{request.height or size[1]} was requested. Leave "
            "the size out, or resize the image first."
        )
    return size


def _shown(request: Request) -> str:
    return ",".join(map(str, request.outpaint or ()))


def lay_out(
    request: Request, model: Model, image: Pixels, mask: NDArray[np.uint8] | None, about: Sequence[str] = ()
) -> Layout:
    """The layout of a completed request with an image. Raises `RequestError` for a mask that selects nothing, with the
    notices `about` it.

    Source of the part that is drawn with `crop`: diffusers' `padding_mask_crop`.
    """
    assert request.width is not None
    assert request.height is not None
    width, height = request.width, request.height
    notices: list[str] = []
    wide, high = enlarged(request, (image.shape[1], image.shape[0]))
    if wide * high > MAX_SIDE**2:
        raise RequestError(f"The extended image has {wide}x{high} pixels, but the limit is {MAX_SIDE**2:,} pixels.")
    if mask is not None and request.mask_blur is not None:
        mask = softened(mask, request.mask_blur)
    if request.outpaint is not None:
        image, mask = _extended(request, model, image, mask)
        notices.append(f"The image was extended to {image.shape[1]}x{image.shape[0]} pixels.")
    if mask is None:
        return Layout(image, None, image)
    if request.crop is None:
        notices += _check_area(mask, width, height, model.downscale, about)
        return Layout(image, mask, image, notices=tuple(notices))
    area = generated(mask, image.shape[1], image.shape[0])
    if not area.any():
        raise RequestError(_nothing(model.downscale, width, height, about))
    blur = request.mask_blur
    soft = None if blur is None else shares(mask, image.shape[1], image.shape[0], blur)
    box = around(area if soft is None else soft > 0, width, height, request.crop)
    left, top, right, bottom = box
    part, inner = framed(np.ascontiguousarray(image[top:bottom, left:right]), width, height)
    white = (area.astype(np.uint8) * 255 if soft is None else soft)[top:bottom, left:right]
    cut, _ = framed(np.ascontiguousarray(white), width, height)
    notices += _check_area(cut, width, height, model.downscale, about)
    notices.append(
        f"Only {right - left}x{bottom - top} pixels around the mask, from ({left}, {top}), were drawn, at {width}x"
        f"{height}."
    )
    return Layout(part, cut, image, area, soft, box, inner, tuple(notices))


def _check_area(mask: NDArray[np.uint8], width: int, height: int, downscale: int, about: Sequence[str]) -> list[str]:
    """Notices about what a mask selects at this size; raises `RequestError` if it selects nothing."""
    area = generated(mask, width, height)
    latents = latent_mask(area, downscale)[0, 0] > 0
    if not latents.any():
        raise RequestError(_nothing(downscale, width, height, about))
    covered = latents.repeat(downscale, axis=0).repeat(downscale, axis=1)[:height, :width]
    if (area & ~spread(covered, downscale)).any():
        thin = f"Parts of the mask that are thinner than {downscale} pixels at {width}x{height} select nothing"
        return [f"{thin}: nothing new is generated there."]
    return []


def spread(area: NDArray[Any], by: int) -> NDArray[Any]:
    """The largest value up to `by` pixels away along rows and columns, of an area or a mask [height, width]."""
    for _ in range(2):
        found, count, whole = np.pad(area, ((by, by), (0, 0))), 1, 2 * by + 1
        while count < whole:  # the largest of `count` rows, then of up to twice as many
            more = min(count, whole - count)
            found = np.maximum(found[:-more], found[more:])
            count += more
        area = found.T
    return area


def _nothing(downscale: int, width: int, height: int, about: Sequence[str]) -> str:
    message = (
        f"The mask selects nothing: it is black, or its white areas are thinner than {downscale} pixels at "
        f"{width}x{height}. White is generated, and black is kept."
    )
    return " ".join([message, *about])


def _extended(
    request: Request, model: Model, image: Pixels, mask: NDArray[np.uint8] | None
) -> tuple[Pixels, NDArray[np.uint8]]:
    """The image with more pixels at its sides, copies of its edge, and the mask that selects them and the overlap."""
    left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
    height, width = image.shape[:2]
    own = np.zeros((height, width), np.uint8) if mask is None else resized(mask, width, height)
    sides = ((top, bottom), (left, right))
    canvas, area = np.pad(image, (*sides, (0, 0)), mode="edge"), np.pad(own, sides, mode="edge")
    step = model.downscale  # whole latents: the overlap ends where one does
    ends = [-(-(side + OVERLAP) // step) * step if side else 0 for side in (left, top)]
    begins = [
        (whole - side - OVERLAP) // step * step if side else whole
        for side, whole in ((right, canvas.shape[1]), (bottom, canvas.shape[0]))
    ]
    area[: ends[1]] = area[max(begins[1], 0) :] = 255
    area[:, : ends[0]] = area[:, max(begins[0], 0) :] = 255
    return np.ascontiguousarray(canvas), np.ascontiguousarray(area)


def around(area: NDArray[np.bool_], width: int, height: int, margin: int) -> Box:
    """The box around an area, [height, width], with a margin in pixels, extended to the proportions of what is drawn.

    It stays within the picture, so that it may have other proportions there. Source: diffusers' `get_crop_region`.
    """
    spans: list[list[int]] = []
    for axis, size in ((0, area.shape[1]), (1, area.shape[0])):
        there = np.flatnonzero(area.any(axis=axis))
        spans.append([max(int(there[0]) - margin, 0), min(int(there[-1]) + 1 + margin, size)])
    (left, right), (top, bottom) = spans
    wide = (right - left) / (bottom - top) > width / height
    if wide:
        more = int((right - left) / (width / height) - (bottom - top))
        top, bottom = _stretched(top, bottom, more, area.shape[0])
    else:
        more = int((bottom - top) * (width / height) - (right - left))
        left, right = _stretched(left, right, more, area.shape[1])
    return left, top, right, bottom


def _stretched(first: int, beyond: int, more: int, size: int) -> tuple[int, int]:
    """A span that is `more` longer, moved to lie between 0 and `size`, and cut there."""
    first, beyond = first - more // 2, beyond + more - more // 2
    if beyond >= size:
        first, beyond = first - (beyond - size), size
    if first < 0:
        first, beyond = 0, beyond - first
    return first, min(beyond, size)


def framed(image: NDArray[np.uint8], width: int, height: int) -> tuple[NDArray[np.uint8], Box]:
    """The image or mask resized into a frame of this size in its own proportions, and where it is; around it, its edge
    is continued. Source: diffusers' resize mode `fill`.
    """
    high, wide = image.shape[:2]
    if width / height < wide / high:
        inner = (width, max(high * width // wide, 1))
    else:
        inner = (max(wide * height // high, 1), height)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    part = Image.fromarray(resized(image, *inner))
    made = Image.new(part.mode, (width, height))
    made.paste(part, (left, top))
    for first, beyond, edge in ((0, left, 0), (left + inner[0], width, inner[0])):
        if beyond > first:
            made.paste(part.resize((beyond - first, height), box=(edge, 0, edge, height)), (first, 0))
    for first, beyond, edge in ((0, top, 0), (top + inner[1], height, inner[1])):
        if beyond > first:
            made.paste(part.resize((width, beyond - first), box=(0, edge, width, edge)), (0, first))
    return np.asarray(made), (left, top, left + inner[0], top + inner[1])
