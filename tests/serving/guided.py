"""A tiny model with two ControlNets and an IP-Adapter, and images for them."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image

NETS = 2


def picture(seed, side=64):
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def png(array):
    """The file of an image."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def text_of(array):
    """The file of an image in base64."""
    return base64.b64encode(png(array)).decode()


def pixels(text):
    """The image of a file in base64."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))
