"""Edges of an image, for ControlNets that read them: Canny's detector, by scikit-image."""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import RequestError, RuntimeMissing
from ..core.files import unwritable, write_bytes
from ..core.install import install
from .picture import ImageLike, load_picture

LOW, HIGH, SIGMA = 0.1, 0.2, 1.0
"""Default thresholds of the gradient, in shares of the range of brightness, and deviation of the blur in pixels."""


def canny(image: ImageLike, *, low: float = LOW, high: float = HIGH, sigma: float = SIGMA) -> NDArray[np.uint8]:
    """The edges of an image, white on black, uint8 [height, width, 3]: the input of a Canny ControlNet.

    `low` and `high` are the thresholds of the gradient, from 0 to 1: edges above `high` are kept, and those above `low`
    that are connected to them. `sigma` is the deviation in pixels of the blur before. The image is loaded as
    `load_picture` does.

    Raises `RequestError` for an image that can't be loaded or values out of range, and `RuntimeMissing` without
    scikit-image. Source: J. Canny, 1986, "A Computational Approach to Edge Detection".
    """
    if not (0 <= low <= high <= 1 and 0 <= sigma <= 100):
        raise RequestError(
            f"Thresholds of {low:g} and {high:g} with a sigma of {sigma:g} are not possible: 0 <= low <= high <= 1 and "
            "0 <= sigma <= 100 were expected."
        )
    try:
        feature: Any = import_module("skimage.feature")
        color: Any = import_module("skimage.color")
    except ImportError as exc:
        raise RuntimeMissing(f"Detecting edges needs scikit-image ({exc}). {install('canny')}") from exc
    grey = color.rgb2gray(load_picture(image).pixels)
    found: NDArray[np.bool_] = feature.canny(grey, sigma=sigma, low_threshold=low, high_threshold=high)
    return np.repeat(found[..., None], 3, axis=2).astype(np.uint8) * 255


def write(edges: NDArray[np.uint8], path: Path) -> None:
    """Write edges as a PNG; raises `RequestError` if the file exists or can't be written."""
    if path.suffix.lower() != ".png":
        raise RequestError(
            f"{path} is not the name of a PNG. Edges are written as PNG: use {path.with_suffix('.png')}."
        )
    content = BytesIO()
    Image.fromarray(edges).save(content, format="PNG")
    try:
        write_bytes(path, content.getvalue(), replace=False)
    except FileExistsError as exc:
        raise RequestError(f"{path} exists already. Remove it, or choose another name.") from exc
    except OSError as exc:
        raise RequestError(unwritable(path, exc)) from exc
