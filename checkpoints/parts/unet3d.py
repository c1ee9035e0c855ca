"""UNetSpatioTemporalConditionModel, the denoiser of Stable Video Diffusion: a UNet that also mixes frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.wires import LATENTS, MOTION, TIMESTEP, Wire
from .part import ComponentClass, PartSpec, floats
from .unet import resizing

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


COPIED = 63
"""diffusers copies tensors of more frames than this before upsampling, and the tracer keeps to the side that it saw.
The graph is the same on both.
"""


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The denoiser: latents of all frames beside those of the image, a timestep, the image's embedding and the motion.

    The number of frames is fixed: the tracer can't follow it through reshapes that split rows into frames.
    """
    config, frames = checkpoint.configs[component.name], checkpoint.frames
    assert frames is not None
    inputs = (
        floats("sample", "batch", frames, config["in_channels"], "height", "width"),
        floats(TIMESTEP, 1),
        floats("encoder_hidden_states", "batch", 1, config["cross_attention_dim"]),
        floats("added_time_ids", "batch", 3),
    )
    wires = (Wire(input="sample", source=LATENTS), Wire(input="added_time_ids", source=MOTION))
    out = floats("out_sample", "batch", frames, config["out_channels"], "height", "width")
    limits = {"batch": (1, COPIED // frames) if 2 * frames <= COPIED else (2, COPIED)}
    return (
        PartSpec(component.name, "denoiser", component.name, inputs, (out,), _call, wires, resizing, limits=limits),
    )


def _call(model: Any, _outputs: tuple[str, ...], sample: Any, timestep: Any, *fixed: Any) -> tuple[Any, ...]:
    return model(sample, timestep, *fixed, return_dict=False)


_READS = frozenset({
    "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim", "layers_per_block", "cross_attention_dim",
    "transformer_layers_per_block", "num_attention_heads", "num_frames",
})  # fmt: skip

CLASSES = {
    "UNetSpatioTemporalConditionModel": ComponentClass(
        parts,
        _READS,
        {
            "in_channels": int,
            "out_channels": int,
            "block_out_channels": list,
            "cross_attention_dim": int,
            "num_frames": int,
            "addition_time_embed_dim": int,
            "projection_class_embeddings_input_dim": int,
        },
    ),
}
