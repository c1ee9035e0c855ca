"""SD3Transformer2DModel, the denoiser of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.wires import LATENTS, TIMESTEP, Wire
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component

DEFAULTS = {"patch_size": 2, "pos_embed_max_size": 96}
"""Values of a config without them, as in diffusers."""


WIDE = {38: (r"transformer_blocks\.35(\..*)?",)}
"""Blocks that exceed f16's largest number, by the number of layers: NVIDIA keeps this one of Stable Diffusion 3.5 Large
in f32 too (TensorRT's demo, `UpcastLayer`)."""


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The denoiser: latents, a timestep and prompt embeddings to the velocity that the scheduler reads."""
    config = DEFAULTS | dict(checkpoint.configs[component.name])
    latents = ("batch", config["in_channels"], "height", "width")
    inputs = (
        floats("hidden_states", *latents),
        floats("encoder_hidden_states", "batch", "length", config["joint_attention_dim"]),
        floats("pooled_projections", "batch", config["pooled_projection_dim"]),
        floats(TIMESTEP, 1),
    )
    wires = (Wire(input="hidden_states", source=LATENTS),)
    name, out, patch = component.name, floats("out_sample", *latents), config["patch_size"]
    largest = config["pos_embed_max_size"] * patch
    wide = WIDE.get(config["num_layers"], ())
    return (
        PartSpec(name, "denoiser", name, inputs, (out,), _call, wires, wide=wide, patch=patch, largest_side=largest),
    )


def _call(model: Any, _outputs: tuple[str, ...], latents: Any, states: Any, pooled: Any, timestep: Any) -> Any:
    return model(
        hidden_states=latents,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=timestep.expand(latents.shape[0]),
        return_dict=False,
    )


_READS = frozenset({
    "sample_size", "patch_size", "in_channels", "out_channels", "num_layers", "attention_head_dim",
    "num_attention_heads", "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim",
    "pos_embed_max_size", "dual_attention_layers", "qk_norm",
})  # fmt: skip

CLASSES = {
    "SD3Transformer2DModel": ComponentClass(
        parts,
        _READS,
        {"in_channels": int, "joint_attention_dim": int, "pooled_projection_dim": int, "num_layers": int},
    ),
}
