"""The adapters of the published checkpoint, as files that ship with it."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from . import control, loras, tiny
from .save import CHECKPOINT

ADAPTERS = CHECKPOINT.parent / "adapters"
LORAS = {"style": "ember", "lcm": "lcm"}
"""Names of the files by the courses' names."""


def save(state: Path) -> None:
    """Write the adapters that were trained: LoRAs and the tiny decoder in f16, the ControlNet's kernels in fp8."""
    for course, name in LORAS.items():
        if (state / course).exists():
            loras.save(state, course, ADAPTERS / f"{name}.safetensors")
    if (state / "tiny").exists():
        _write(tiny.load(state), ADAPTERS / "tiny", eight_bits=False)
    if (state / "control").exists():
        _write(control.load(state), ADAPTERS / "edges", eight_bits=True)


def _write(model: Any, folder: Path, *, eight_bits: bool) -> None:
    model.half().save_pretrained(folder)
    if eight_bits:
        path = folder / "diffusion_pytorch_model.safetensors"
        kept = {name: _eight_bits(name, tensor) for name, tensor in load_file(path).items()}
        save_file(kept, path, metadata={"format": "pt"})


def _eight_bits(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Kernels and matrices in fp8. Those that begin at zero stay f16, as their values are too small for fp8."""
    zero = name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out"))
    return tensor if tensor.ndim < 2 or zero else tensor.to(torch.float8_e4m3fn)
