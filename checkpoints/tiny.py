"""A tiny decoder (taesd) that a checkpoint is exported with: whether it fits the checkpoint's VAE, and its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..core.errors import CheckpointError
from ..core.record import shown
from .bounds import check_config
from .families import TINY_VAE, Config, Family
from .fields import check_fields
from .names import TINY_PREFIX
from .original_configs import TensorShapes, axis, numbers
from .others import Replacement
from .refusals import refuse_other_than_tiny, refuse_quantized
from .source import check_class

_FIELDS: Config = {
    "act_fn": "relu",
    "in_channels": 3,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
}
"""Fields that no tensor shows, as published and as in diffusers' defaults."""


LEAST_ALIKE = 0.5
"""Share of the variance of the VAE's image that the image of its tiny decoder has; a flat image has none."""


def unlike(given: Replacement) -> str:
    """A notice about a tiny decoder whose image of a reference has less than `LEAST_ALIKE` in common with the VAE's."""
    return (
        f"{given.source.location} does not decode latents of this checkpoint as its VAE does: it may be made for "
        "another family, and then gives wrong colours. Compare images of --decoder tiny and --decoder vae."
    )


def tiny_decoded(
    family: Family, configs: Mapping[str, Config], others: Mapping[str, Replacement]
) -> tuple[Family, dict[str, Config]]:
    """The family with the tiny decoder among `others`, if there is one, and the configs with its own.

    Raises CheckpointError for one that doesn't decode the latents of the checkpoint's VAE.
    """
    given = others.get(TINY_VAE.name)
    if given is None:
        return family, dict(configs)
    where, vae = given.source.location, configs[family.vae]
    if family.component(family.vae).cls != "AutoencoderKL":
        raise CheckpointError(f"Tiny decoders of {family.title} are not supported yet. Leave out --tiny-vae.")
    if family.tasks != ("text",):
        raise CheckpointError(
            f"Tiny decoders of models that need an image are not supported yet, so {where} cannot be used with "
            f"{family.title}. Leave out --tiny-vae."
        )
    if given.config is not None:
        check_class(where, TINY_VAE, given.config)
        check_fields(given.where, TINY_VAE, given.config)
        config = {key: value for key, value in given.config.items() if key != "block_out_channels"}  # has no effect
    else:
        config = _derived(where, {name.removeprefix(TINY_PREFIX): one.shape for name, one in given.tensors.items()})
    check_config(given.where, config, len(given.tensors))
    if config["latent_channels"] != vae["latent_channels"]:
        raise CheckpointError(
            f"{where} decodes latents of {config['latent_channels']} channels, but the checkpoint's have "
            f"{vae['latent_channels']}. Pass the tiny decoder that was made for {family.title} (of madebyollin: taesd "
            "for Stable Diffusion 1 and 2, taesdxl for XL, taesd3 for 3)."
        )
    for key, expected in (("scaling_factor", 1.0), ("shift_factor", 0.0), ("out_channels", 3)):
        if (config.get(key) or expected) != expected:
            raise CheckpointError(
                f"{where} has {key} = {shown(config[key])}, but {expected:g} was expected: tiny decoders take latents "
                "as the denoiser returns them. Compare it with the config that it was published with."
            )
    levels = len(config.get("decoder_block_out_channels", (64,) * 4))
    scale, own = config.get("upsampling_scaling_factor", 2) ** (levels - 1), 2 ** (len(vae["block_out_channels"]) - 1)
    if scale != own:
        raise CheckpointError(
            f"{where} makes {scale} pixels of a latent along each side, but the checkpoint's VAE makes {own}. Pass the "
            f"tiny decoder that was made for {family.title}."
        )
    refuse_quantized(where, config, given.tensors)
    components = (*family.components, TINY_VAE)
    return replace(family, components=components), {**configs, TINY_VAE.name: config}


def _derived(where: object, shapes: TensorShapes) -> Config:
    """The config of one without: its blocks from the layers' shapes."""
    if "1.weight" in shapes:  # the original decoder: a clamp without weights is its first layer
        shapes = {f"decoder.layers.{name}": shape for name, shape in shapes.items()}
    places = numbers(shapes, r"decoder\.layers\.(\d+)\.")
    if len(places) < 2:
        refuse_other_than_tiny(where, shapes)
    decoder, encoder = _blocks(shapes, "decoder"), _blocks(shapes, "encoder")
    config = _FIELDS | {
        "latent_channels": axis(shapes, f"decoder.layers.{places[0]}.weight", 1),
        "out_channels": axis(shapes, f"decoder.layers.{places[-1]}.weight", 0),
        "num_decoder_blocks": [number for number, _ in decoder],
        "decoder_block_out_channels": [width for _, width in decoder],
    }
    encoder = encoder or decoder  # of a file without an encoder, which is not loaded
    return config | {
        "num_encoder_blocks": [number for number, _ in encoder],
        "encoder_block_out_channels": [width for _, width in encoder],
    }


def _blocks(shapes: TensorShapes, half: str) -> list[tuple[int, int]]:
    """The number of blocks before each convolution that ends a level, and its width."""
    levels: list[tuple[int, int]] = []
    blocks = 0
    for place in numbers(shapes, rf"{half}\.layers\.(\d+)\.")[1:]:
        if f"{half}.layers.{place}.conv.0.weight" in shapes:
            blocks += 1
        else:
            levels.append((blocks, axis(shapes, f"{half}.layers.{place}.weight", 1)))
            blocks = 0
    return levels
