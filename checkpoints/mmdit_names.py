"""Names of the transformer of Stable Diffusion 3 and 3.5 in Stability AI's layout.

Source: Stability-AI/sd3.5 (`mmditx.py`), and diffusers' `convert_sd3_to_diffusers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from .views import Plan, Stored, View, views

_DIRECT = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
# Modules of a block, by their names behind `x_block.` and `context_block.`.
_IMAGE = {
    "attn.proj": "attn.to_out.0",
    "attn.ln_q": "attn.norm_q",
    "attn.ln_k": "attn.norm_k",
    "attn2.proj": "attn2.to_out.0",
    "attn2.ln_q": "attn2.norm_q",
    "attn2.ln_k": "attn2.norm_k",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_TEXT = {
    "attn.proj": "attn.to_add_out",
    "attn.ln_q": "attn.norm_added_q",
    "attn.ln_k": "attn.norm_added_k",
    "mlp.fc1": "ff_context.net.0.proj",
    "mlp.fc2": "ff_context.net.2",
    "adaLN_modulation.1": "norm1_context.linear",
}
_JOINED = {
    ("x_block", "attn.qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x_block", "attn2.qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("context_block", "attn.qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_BLOCK = re.compile(r"joint_blocks\.(\d+)\.(x_block|context_block)\.(.+)\.(weight|bias)$")


def mmdit_plan(tensors: Stored) -> Plan:
    """The plan of a transformer in the original layout, from its tensors without prefix; unknown ones are left out.

    Queries, keys and values are stored as one matrix. In the layers whose modulation has a shift and a scale only, the
    two are stored in the other order than diffusers has them.
    """
    last = max((int(match[1]) for name in tensors if (match := _BLOCK.match(name))), default=0)
    plan: Plan = {}
    for name, view in views(tensors).items():
        stem, _, kind = name.rpartition(".")
        if name == "pos_embed":
            plan["pos_embed.pos_embed"] = view
        elif stem in _DIRECT:
            plan[f"{_DIRECT[stem]}.{kind}"] = view
        elif stem == "final_layer.adaLN_modulation.1":
            plan[f"norm_out.linear.{kind}"] = view.swapped()
        elif match := _BLOCK.match(name):
            plan |= _block(view, int(match[1]), match[2], match[3], kind, last)
    return plan


CONTROL_TYPE = "control_type"
"""The tensor of a ControlNet in Stability AI's layout that states what it reads."""

_CONTROL_BLOCK = re.compile(r"(transformer_blocks\.\d+)\.(.+)\.(weight|bias)$")


def control_plan(tensors: Stored) -> Plan:
    """The plan of a ControlNet of 3.5 Large in Stability AI's layout, whose names are diffusers' outside of blocks.

    Source: diffusers' `scripts/convert_sd3_controlnet_to_diffusers.py`.
    """
    plan: Plan = {}
    for name, view in views(tensors).items():
        match = _CONTROL_BLOCK.match(name)
        if match is None:
            plan[name] = view
        elif joined := _JOINED.get(("x_block", match[2])):
            plan |= _parted(view, match[1], joined, match[3])
        else:
            plan[f"{match[1]}.{_IMAGE.get(match[2], match[2])}.{match[3]}"] = view
    return plan


def _parted(view: View, start: str, joined: tuple[str, ...], kind: str) -> Plan:
    """The modules that a matrix holds the rows of, in order."""
    rows = view.shape[0] // len(joined)
    return {f"{start}.{one}.{kind}": view[rows * i : rows * (i + 1)] for i, one in enumerate(joined)}


def original_modules(names: Collection[str]) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The transformer's modules by their names in the original layout; `names` are those of diffusers.

    For each, the modules in diffusers whose rows it has, and whether the halves of its rows are in the other order.
    """
    numbers = {int(match[1]) for name in names if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    found: dict[str, tuple[tuple[str, ...], bool]] = {original: ((name,), False) for original, name in _DIRECT.items()}
    found["final_layer.adaLN_modulation.1"] = (("norm_out.linear",), True)
    for number in numbers:
        start, block = f"transformer_blocks.{number}", f"joint_blocks.{number}"
        for side, modules in (("x_block", _IMAGE), ("context_block", _TEXT)):
            for original, name in modules.items():
                swaps = number == max(numbers) and (side, original) == ("context_block", "adaLN_modulation.1")
                found[f"{block}.{side}.{original}"] = ((f"{start}.{name}",), swaps)
        for (side, original), joined in _JOINED.items():
            found[f"{block}.{side}.{original}"] = (tuple(f"{start}.{one}" for one in joined), False)
    held = set(names)
    return {original: place for original, place in found.items() if held.issuperset(place[0])}


def _block(view: View, number: int, side: str, module: str, kind: str, last: int) -> Plan:
    start = f"transformer_blocks.{number}"
    if joined := _JOINED.get((side, module)):
        return _parted(view, start, joined, kind)
    names = _IMAGE if side == "x_block" else _TEXT
    if module not in names:
        return {}
    swaps = number == last and (side, module) == ("context_block", "adaLN_modulation.1")
    return {f"{start}.{names[module]}.{kind}": view.swapped() if swaps else view}
