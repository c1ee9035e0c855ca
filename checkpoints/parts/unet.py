"""UNet2DConditionModel, the denoiser of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core.wires import GUIDANCE, LATENTS, SCORE, SIZE, TIMESTEP, Wire
from . import ip_adapter, t2i_adapter
from .controlnet import CONTROLNET, added, inputs_of, read_by
from .ip_adapter import IP_ADAPTER
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component

ADDED = ("text_embeds", "time_ids")
"""Inputs that diffusers passes in `added_cond_kwargs`."""

ALWAYS_RESIZE = 30
"""Number of upsamplers that the UNet reports while it is traced. No size is a multiple of two to this power, so the
traced graph takes each size from its skip connection, and every multiple of 8 pixels works."""


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The denoiser: latents, a timestep and prompt embeddings to the prediction that the scheduler reads.

    The ControlNets of the checkpoint are in the same graph: their residuals, which are larger than all of its inputs,
    stay on the device.
    """
    config, family = checkpoint.configs[component.name], checkpoint.family
    latents = ("batch", config["in_channels"], "height", "width")
    inputs = [
        floats("sample", *latents),
        floats(TIMESTEP, 1),
        floats("encoder_hidden_states", "batch", "length", config["cross_attention_dim"]),
    ]
    wires = [Wire(input="sample", source=LATENTS)]
    if family.pooled is not None:
        inputs.append(floats("text_embeds", "batch", checkpoint.configs[family.pooled]["projection_dim"]))
        inputs.append(floats("time_ids", "batch", family.time_ids))
        wires.append(Wire(input="time_ids", source=SCORE if family.scored else SIZE))
    if guidance := config.get("time_cond_proj_dim"):
        inputs.append(floats("timestep_cond", "batch", guidance))
        wires.append(Wire(input="timestep_cond", source=GUIDANCE))
    names = tuple(tensor.name for tensor in inputs)
    controls = tuple(one.name for one in family.components if one.cls == CONTROLNET)
    t2i = tuple(one.name for one in family.components if one.cls == t2i_adapter.T2I_ADAPTER)
    read = [
        *(read_by(checkpoint.configs[name]) for name in controls),
        *(t2i_adapter.read_by(checkpoint.configs[name]) for name in t2i),
    ]
    for index, (shape, count) in enumerate(read):
        more, sources = inputs_of(index, shape, count)
        inputs += more
        wires += sources

    adapters = tuple(one.name for one in family.components if one.cls == IP_ADAPTER)
    for name in adapters:
        more, sources = ip_adapter.inputs_of(checkpoint.configs[name])
        inputs += more
        wires += sources

    def call(model: Any, outputs: tuple[str, ...], *tensors: Any, also: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        if not adapters:
            return called(model, outputs, *tensors, also=also)
        with ip_adapter.attending(model, also[-1], *tensors[-2:]):
            return called(model, outputs, *tensors[:-2], also=also[:-1])

    def called(model: Any, _outputs: tuple[str, ...], *tensors: Any, also: tuple[Any, ...]) -> tuple[Any, ...]:
        feeds = dict(zip(names, tensors[: len(names)], strict=True))
        conditions = {name: feeds.pop(name) for name in ADDED if name in feeds}
        given: dict[str, Any] = {"added_cond_kwargs": conditions or None, "return_dict": False}
        if also:
            images, scales = tensors[len(names) :: 2], tensors[len(names) + 1 :: 2]
            if t2i:
                given["down_intrablock_additional_residuals"] = t2i_adapter.added(also, images, scales)
                return model(**feeds, **given)
            known = (feeds["sample"], feeds[TIMESTEP], feeds["encoder_hidden_states"])
            down, middle = added(also, images, scales, *known, added_cond_kwargs=given["added_cond_kwargs"])
            given |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return model(**feeds, **given)

    also = (*controls, *t2i, *adapters)
    patch = max((t2i_adapter.patch_of(checkpoint.configs[name]) for name in t2i), default=1)
    name, out = component.name, floats("out_sample", "batch", config.get("out_channels", 4), "height", "width")
    part = PartSpec(name, "denoiser", name, tuple(inputs), (out,), call, tuple(wires), resizing, also=also)
    return (replace(part, patch=patch),)


@contextmanager
def resizing(unet: Any) -> Generator[None]:
    """Make the UNet take each size from its skip connections."""
    before = unet.num_upsamplers
    unet.num_upsamplers = ALWAYS_RESIZE
    try:
        yield
    finally:
        unet.num_upsamplers = before


_READS = frozenset({
    "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift",
    "down_block_types", "mid_block_type", "up_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "dropout", "act_fn", "norm_num_groups",
    "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
    "encoder_hid_dim", "encoder_hid_dim_type", "attention_head_dim", "num_attention_heads", "dual_cross_attention",
    "use_linear_projection", "class_embed_type", "addition_embed_type", "addition_time_embed_dim",
    "num_class_embeds", "upcast_attention", "resnet_time_scale_shift", "resnet_skip_time_act",
    "resnet_out_scale_factor", "time_embedding_type", "time_embedding_dim", "time_embedding_act_fn",
    "timestep_post_act", "time_cond_proj_dim", "conv_in_kernel", "conv_out_kernel",
    "projection_class_embeddings_input_dim", "attention_type", "class_embeddings_concat",
    "mid_block_only_cross_attention", "cross_attention_norm", "addition_embed_type_num_heads",
})  # fmt: skip

CLASSES = {
    "UNet2DConditionModel": ComponentClass(
        parts, _READS, {"in_channels": int, "block_out_channels": list, "cross_attention_dim": int}
    ),
}
