"""AutoencoderKLTemporalDecoder: an image to latents, and the latents of several frames back, mixing frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import vae
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The decoder (latents of frames to pixels in [-1, 1]) and the encoder, which is that of AutoencoderKL.

    The number of frames that are decoded together is free: it changes the frames, because the decoder mixes them.
    """
    channels, factor = checkpoint.configs[component.name]["latent_channels"], checkpoint.downscale
    frames = floats("sample", "batch", "frames", 3, f"{factor}*height", f"{factor}*width")
    latents = floats("latent_sample", "batch", "frames", channels, "height", "width")
    decoder = PartSpec(f"{component.name}_decoder", "decoder", component.name, (latents,), (frames,), _decode)
    (encoder,) = (spec for spec in vae.parts(checkpoint, component) if spec.role == "encoder")
    return (decoder, encoder)


def _decode(model: Any, _outputs: tuple[str, ...], latents: Any) -> tuple[Any, ...]:
    videos, frames = latents.shape[:2]
    decoded = model.decode(latents.flatten(0, 1), num_frames=frames, return_dict=False)[0]
    return (decoded.unflatten(0, (videos, frames)),)


_READS = frozenset({
    "in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block", "latent_channels",
    "sample_size", "scaling_factor", "force_upcast",
})  # fmt: skip

CLASSES = {
    "AutoencoderKLTemporalDecoder": ComponentClass(parts, _READS, {"block_out_channels": list, "latent_channels": int})
}
