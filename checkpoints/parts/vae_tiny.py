"""AutoencoderTiny (taesd): latents as the denoiser returns them to images, faster and less exactly than the VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import vae
from .part import ComponentClass, PartSpec

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The decoder, with the inputs and outputs of AutoencoderKL's."""
    return tuple(spec for spec in vae.parts(checkpoint, component) if spec.role == "decoder")


READS = frozenset({
    "in_channels", "out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "act_fn", "upsample_fn",
    "latent_channels", "upsampling_scaling_factor", "num_encoder_blocks", "num_decoder_blocks", "latent_magnitude",
    "latent_shift", "force_upcast", "scaling_factor", "shift_factor", "block_out_channels",
})  # fmt: skip

CLASSES = {"AutoencoderTiny": ComponentClass(parts, READS, {"latent_channels": int}, unused=("encoder",))}
