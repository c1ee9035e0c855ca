"""The guard against NaN and infinity: an error that says where, never a black picture."""

from __future__ import annotations

import numpy as np

from ..core.errors import NotFiniteError
from ..core.tensors import Array


def check_finite(array: Array, what: str, part: str, engine: str) -> None:
    """Raise `NotFiniteError` if the array holds NaN or infinity.

    `what` is the start of the sentence, `part` computed it, and `engine` is what ran the part.
    """
    wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
    if wrong:
        raise NotFiniteError(
            f"{what}: {wrong} of {array.size} values are NaN or infinite, and finite numbers were expected. "
            f'{part} ran on {engine}; set {part} = "f32" under [precision] in the profile and build again. '
            "If it is f32 already, try a lower guidance or another scheduler."
        )
