"""The digest of an image's pixels, by which a stored request knows its image."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def pixels_sha256(image: NDArray[np.uint8]) -> str:
    """SHA-256 in hex of the size and the pixels of an image, [height, width, 3], or a mask, as it was decoded."""
    digest = hashlib.sha256(f"{image.shape[1]}x{image.shape[0]} ".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
