"""A text encoder by formula, so that stored values of other libraries need no weights."""

import numpy as np


def toy_encoder(ids, mask=1):
    """States [rows, length, 2] of ids [rows, length], each of which depends on its own id and on all before it that the
    mask shows, and a pooled one.
    """
    places = np.arange(ids.shape[1]) % 7 + 1
    own = ids * places * 1e-4
    phase = np.cumsum(own * mask, axis=1) + own * (1 - mask)
    states = np.stack([np.sin(phase), np.cos(1.7 * phase)], axis=-1)
    return states.astype(np.float32), states.mean(axis=1).astype(np.float32)
