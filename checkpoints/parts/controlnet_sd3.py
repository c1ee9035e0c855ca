"""SD3ControlNetModel, which adds residuals to the blocks of Stable Diffusion 3's transformer; it is exported with it,
as one part (see `parts.mmdit`).

InstantX's ControlNets have positions and text streams of their own, and read no pooled embeddings; Stability AI's, of
3.5 Large, take patches from the transformer's own embedding, have no text stream, and read pooled embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.model import ControlNet
from .controlnet import no_parts, summed
from .part import ComponentClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..families import Config

CONTROLNET = "SD3ControlNetModel"

DEFAULTS = {"patch_size": 2, "pos_embed_max_size": 96}
"""Values of a config without them, as in diffusers."""

CANNY = (0.5, 128.0)
"""Black and white as Stability AI's Canny ControlNet of 3.5 Large was trained with them: x * 255 * 0.5 + 0.5.

Source: Stability-AI/sd3.5 (`sd3_infer.py`), and diffusers' documentation of these ControlNets.
"""

KIND = "_control_type"
"""Key of a config, which diffusers ignores, for what a ControlNet of Stability AI reads: `EDGES`, or another image."""
EDGES = 1


def zeroed(config: Config) -> bool:
    """Whether it reads zeros instead of pooled embeddings, and latents without the VAE's shift."""
    return bool(config.get("force_zeros_for_pooled_projection", True))


def facts_of(config: Config, vae: Config) -> ControlNet:
    """What the pipeline must know about a ControlNet with this config, for images encoded by this VAE."""
    return ControlNet(
        residuals=config["num_layers"],
        colours=CANNY if config.get(KIND) == EDGES else (-1, 1),
        latent_shift=0.0 if zeroed(config) else float(vae.get("shift_factor") or 0),
    )


def largest(config: Config) -> int | None:
    """Largest height and width in latents that it has positions for; None for one without positions of its own."""
    both = DEFAULTS | dict(config)
    return both["pos_embed_max_size"] * both["patch_size"] if both.get("use_pos_embed", True) else None


def added(
    transformer: Any,
    nets: Sequence[Any],
    images: Sequence[Any],
    scales: Sequence[Any],
    latents: Any,
    states: Any,
    pooled: Any,
    timestep: Any,
) -> list[Any]:
    """The residuals of all ControlNets together, each of which the transformer adds to one or more of its blocks.

    `scales` are [batch, residuals]. Source: diffusers' `StableDiffusion3ControlNetPipeline`.
    """
    sums: list[Any] = []
    for net, image, factors in zip(nets, images, scales, strict=True):
        (found,) = net(
            # The pipeline gives a net without positions the transformer's own embedding.
            hidden_states=latents if net.pos_embed is not None else transformer.pos_embed(latents),
            controlnet_cond=image,
            encoder_hidden_states=states if net.context_embedder is not None else None,
            pooled_projections=pooled.new_zeros(pooled.shape) if zeroed(net.config) else pooled,
            timestep=timestep,
            return_dict=False,
        )
        sums = summed(sums, [one * factors[:, at, None, None] for at, one in enumerate(found)])
    return sums


_READS = frozenset({
    "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads",
    "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size",
    "extra_conditioning_channels", "dual_attention_layers", "qk_norm", "pos_embed_type", "use_pos_embed",
    "force_zeros_for_pooled_projection",
})  # fmt: skip

CLASSES = {
    CONTROLNET: ComponentClass(
        no_parts,
        _READS,
        {"num_layers": int, "num_attention_heads": int},
        null=("joint_attention_dim", "pos_embed_max_size"),
    )
}
