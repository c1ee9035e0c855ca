"""Names of a UNet's modules in the original layout, as adapters for Stable Diffusion XL have them.

Source: kohya-ss/sd-scripts `library/sdxl_model_util.py` (`make_unet_conversion_map`); diffusers
`loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIRECT = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {("resnets", 0): 0, ("attentions", 0): 1, ("resnets", 1): 2}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_names(names: Iterable[str]) -> dict[str, str]:
    """The UNet's modules by their names in the original layout; `names` are those of diffusers.

    A module that the original layout doesn't have is left out.
    """
    held = list(names)
    blocks = [match for name in held if (match := _BLOCK.fullmatch(name))]
    layers = 1 + max((int(one[4]) for one in blocks if one[1] == "down" and one[3] == "resnets"), default=0)
    attended = {int(one[2]) for one in blocks if one[1] == "up" and one[3] == "attentions"}
    found: dict[str, str] = {}
    for name in held:
        if name in _DIRECT:
            found[_DIRECT[name]] = name
        elif match := _MID.fullmatch(name):
            number = _MIDDLE.get((match[1], int(match[2])))
            if number is not None and (inner := _inner(match[1], match[3])):
                found[f"middle_block.{number}.{inner}"] = name
        elif (match := _BLOCK.fullmatch(name)) and (inner := _inner(match[3], match[5])):
            found[f"{_outer(match, layers, attended)}.{inner}"] = name
    return found


def _inner(kind: str, module: str) -> str | None:
    if kind == "resnets":
        return _RESNET.get(module)
    return "op" if kind == "downsamplers" and module == "conv" else module


def _outer(match: re.Match[str], layers: int, attended: set[int]) -> str:
    """The position of a layer: input blocks are counted from 1, output blocks from 0, one for each layer."""
    block, number = int(match[2]), int(match[4])
    if match[1] == "down":
        at = (layers + 1) * (block + 1) if match[3] == "downsamplers" else (layers + 1) * block + number + 1
        return f"input_blocks.{at}.{int(match[3] == 'attentions')}"
    if match[3] == "upsamplers":  # in the last layer of its block, after the attention if there is one
        return f"output_blocks.{(layers + 1) * block + layers}.{1 + (block in attended)}"
    return f"output_blocks.{(layers + 1) * block + number}.{int(match[3] == 'attentions')}"
