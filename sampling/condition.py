"""From what the text encoders say to what the UNet is fed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.bundle import Model
from ..core.tensors import Array


def condition(model: Model, encoded: Mapping[str, Mapping[str, Array]], size: tuple[int, int]) -> dict[str, Array]:
    """The UNet's inputs that don't change over the steps.

    `encoded` holds each text encoder's outputs by part, [rows, 77, width] f32; `size` is (height, width)
    in pixels. Gives `encoder_hidden_states` [rows, 77, sum of widths] and, for models that take them,
    `text_embeds` [rows, width] and `time_ids` [rows, 6]: original size, crop (0, 0), target size, each as
    (height, width). Source: SDXL, arXiv 2307.01952, section 2.2.
    """
    embeddings = [encoded[encoder.part][encoder.embedding] for encoder in model.text_encoders]
    feeds = {"encoder_hidden_states": np.concatenate(embeddings, axis=-1)}
    for encoder in model.text_encoders:
        if encoder.pooled:
            feeds["text_embeds"] = encoded[encoder.part][encoder.pooled]
    if model.time_ids:
        rows = len(embeddings[0])
        feeds["time_ids"] = np.tile(np.array([*size, 0, 0, *size], dtype=np.float32), (rows, 1))
    return feeds
