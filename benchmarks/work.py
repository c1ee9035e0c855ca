"""How much each stage of a draw computes: what turns its seconds into a rate."""

from __future__ import annotations

from dataclasses import replace

from ..compiler.flops import count_flops
from ..compiler.sizes import Shape
from ..core import shapes
from ..core.bundle import Bundle, checked_graph
from .records import Setting, Stage, Work


def count_work(bundle: Bundle, setting: Setting) -> dict[Stage, Work]:
    """FLOP of the text encoders of one draw, of one denoiser call, and of the decoding of all its images.

    Counted on the bundle's graphs, for a prompt of one chunk and, where guided, a negative one. Raises what
    `count_flops` raises.
    """
    model = bundle.manifest.model
    guided = setting.guidance > 1 and not model.takes_guidance
    zeros = model.zeros_for_empty and not setting.negative_prompt
    drawn = shapes.Setting(setting.width, setting.height, setting.batch, guided)
    read = replace(drawn, guided=guided and not zeros)
    encoders = sum(_count(bundle, encoder.part, read) for encoder in model.text_encoders)
    denoiser = _count(bundle, bundle.one("denoiser"), drawn)
    decoder = setting.batch * _count(bundle, bundle.one("decoder"), drawn)
    return {
        "text_encoder": Work(flops=encoders),
        "denoiser": Work(flops=denoiser),
        "vae_decoder": Work(flops=decoder),
    }


def _count(bundle: Bundle, part: str, drawn: shapes.Setting) -> float:
    info = bundle.part(part)
    free = shapes.sizes(bundle.manifest.model, info.role, drawn)
    fixed: dict[str, Shape] = {tensor.name: shapes.shape_of(tensor.shape, free) for tensor in info.inputs}
    return float(count_flops(checked_graph(bundle, part), fixed))
