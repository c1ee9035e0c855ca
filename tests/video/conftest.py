"""Images to make videos of."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo():
    """`photo(height, width)`: pixels with colours, edges and noise."""

    def make(height=97, width=170, seed=0):
        random = np.random.default_rng(seed)
        down, across = np.mgrid[0:height, 0:width]
        waves = np.stack([np.sin(down / 9 + across / place) for place in (5, 11, 23)], axis=-1)
        edges = ((down // 13 + across // 19) % 2)[..., None] * 50
        return np.clip(110 + 70 * waves + edges + random.uniform(-9, 9, waves.shape), 0, 255).astype(np.uint8)

    return make


@pytest.fixture
def photo_file(photo, tmp_path):
    """A PNG."""
    path = tmp_path / "photo.png"
    Image.fromarray(photo()).save(path)
    return path
