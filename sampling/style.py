"""What an IP-Adapter reads of a request's style image: tokens that the denoiser attends to beside those of the text.

Source: diffusers' `IPAdapterMixin`, and `prepare_ip_adapter_image_embeds` of its pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.model import Model, Role
from ..core.tensors import Array, check_finite
from .image import Pixels, for_encoder
from .prompt import Call


def read_style(
    model: Model,
    roles: Mapping[str, Role],
    widths: Mapping[str, tuple[int | str, ...]],
    style: Pixels | None,
    count: int,
    call: Call,
    engines: Mapping[str, str],
) -> dict[str, dict[str, Array]]:
    """Run the image encoder on the style image of a request; returns its outputs by part and name.

    Each is [count, tokens, width], f32. `widths` are the shapes of the denoiser's inputs without rows. Without an
    image, the tokens are zeros, which have no effect: their strength is zero too, and no part is run. Raises
    `NotFiniteError`.
    """
    made: dict[str, dict[str, Array]] = {}
    for wire in model.wires:
        if not wire.of_part or roles[wire.owner] != "image_encoder" or model.image_reader is None:
            continue
        names, part = model.read_of(wire.owner), wire.owner
        if style is None:
            tokens = dict.fromkeys(names, np.zeros((1, *map(int, widths[wire.input])), np.float32))
        else:
            tokens = call(part, {"pixel_values": for_encoder(style, model.image_reader)})
        for name in names:
            check_finite(tokens[name], f"The style image's {name}", part, engines.get(part, "its engine"))
        made[part] = {name: np.repeat(tokens[name], count, axis=0) for name in names}
    return made
