"""SD3Transformer2DModel, the denoiser of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core.wires import LATENTS, TIMESTEP, Wire
from . import controlnet_sd3
from .controlnet import inputs_of
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    inputs = [
        floats("hidden_states", *latents),
        floats("encoder_hidden_states", "batch", "length", config["joint_attention_dim"]),
        floats("pooled_projections", "batch", config["pooled_projection_dim"]),
        floats(TIMESTEP, 1),
    ]
    wires = [Wire(input="hidden_states", source=LATENTS)]
    name, out, patch = component.name, floats("out_sample", *latents), config["patch_size"]
    sides = [config["pos_embed_max_size"] * patch]
    controls = tuple(one.name for one in checkpoint.family.components if one.cls == controlnet_sd3.CONTROLNET)
    for index, net in enumerate(controls):
        more, sources = inputs_of(index, latents, checkpoint.configs[net]["num_layers"])
        inputs += more
        wires += sources
        sides += filter(None, [controlnet_sd3.largest(checkpoint.configs[net])])
    part = PartSpec(name, "denoiser", name, tuple(inputs), (out,), _call, tuple(wires), also=controls)
    return (replace(part, wide=WIDE.get(config["num_layers"], ()), patch=patch, largest_side=min(sides)),)


def _call(
    model: Any,
    _outputs: tuple[str, ...],
    latents: Any,
    states: Any,
    pooled: Any,
    timestep: Any,
    *controls: Any,
    also: Sequence[Any] = (),
) -> Any:
    times = timestep.expand(latents.shape[0])
    given = (latents, states, pooled, times)
    return model(
        hidden_states=latents,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=times,
        block_controlnet_hidden_states=controlnet_sd3.added(model, also, controls[::2], controls[1::2], *given)
        if also
        else None,
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
