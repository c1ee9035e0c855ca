"""How much each stage of a draw computes: what turns its seconds into a rate."""

from __future__ import annotations

from ..compiler.flops import count_flops
from ..compiler.sizes import Shape
from ..core.bundle import Bundle, checked_graph
from ..core.shapes import shape_of
from ..sampling.denoise import DENOISER
from ..sampling.pixels import DECODER
from .records import Setting, Stage, Work


def count_work(bundle: Bundle, setting: Setting) -> dict[Stage, Work]:
    """FLOP of the text encoders of one draw, of one denoiser call, and of the decoding of all its images.

    Counted on the bundle's graphs, for a prompt of one chunk and, where guided, a negative one. Raises what
    `count_flops` raises.
    """
    model = bundle.manifest.model
    guided = setting.guidance > 1 and model.guidance_embedding is None
    zeros = model.zero_empty_negative and not setting.negative_prompt
    height, width = setting.height // model.downscale, setting.width // model.downscale
    prompts = 2 if guided and not zeros else 1
    encoders = sum(_count(bundle, encoder.part, {"batch": prompts}) for encoder in model.text_encoders)
    rows = setting.batch * (2 if guided else 1)
    denoiser = _count(bundle, DENOISER, {"batch": rows, "height": height, "width": width, "length": model.length})
    decoder = setting.batch * _count(bundle, DECODER, {"batch": 1, "height": height, "width": width})
    return {
        "text_encoder": Work(flops=encoders),
        "denoiser": Work(flops=denoiser),
        "vae_decoder": Work(flops=decoder),
    }


def _count(bundle: Bundle, part: str, sizes: dict[str, int]) -> float:
    shapes: dict[str, Shape] = {tensor.name: shape_of(tensor.shape, sizes) for tensor in bundle.part(part).inputs}
    return float(count_flops(checked_graph(bundle, part), shapes))
