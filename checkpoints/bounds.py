"""Bounds for the numbers in a checkpoint's configs, checked before a library builds a module from them.

Numbers of layers are bounded by the number of stored tensors: a layer has at least one.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, cast

from ..core.errors import CheckpointError
from ..core.record import shown
from ..core.request import MAX_SIDE
from .families import EDITING_CHANNELS, FAMILIES, MMDIT, UNET, Config, Family

if TYPE_CHECKING:
    from .training import Choices

MAX_LEVELS = 8
MAX_WIDTH = 1 << 16
MAX_TIMESTEPS = 100_000

_LISTS = (
    *("block_out_channels", "down_block_types", "up_block_types", "encoder_block_out_channels"),
    *("decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks", "channels"),
)
_LAYERS = (
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "num_hidden_layers",
    "num_layers",
    "num_encoder_blocks",
    "num_decoder_blocks",
    "num_res_blocks",
)
# Smallest and largest value of integers, alone or in lists.
_INTEGERS: dict[str, tuple[int, int]] = {
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "latent_channels": (1, 1024),
    "block_out_channels": (1, MAX_WIDTH),
    "channels": (1, MAX_WIDTH),
    "encoder_block_out_channels": (1, MAX_WIDTH),
    "decoder_block_out_channels": (1, MAX_WIDTH),
    "upsampling_scaling_factor": (1, 8),
    "cross_attention_dim": (1, MAX_WIDTH),
    "attention_head_dim": (1, MAX_WIDTH),
    "norm_num_groups": (1, MAX_WIDTH),
    "sample_size": (1, MAX_SIDE),
    "time_cond_proj_dim": (1, MAX_WIDTH),
    "addition_time_embed_dim": (1, MAX_WIDTH),
    "projection_class_embeddings_input_dim": (1, MAX_WIDTH),
    "hidden_size": (1, MAX_WIDTH),
    "intermediate_size": (1, 4 * MAX_WIDTH),
    "projection_dim": (0, MAX_WIDTH),
    "num_attention_heads": (1, MAX_WIDTH),
    "vocab_size": (1, 1 << 20),
    "max_position_embeddings": (3, 4096),
    "num_labels": (0, 10_000),
    "d_model": (1, MAX_WIDTH),
    "d_ff": (1, 4 * MAX_WIDTH),
    "d_kv": (1, MAX_WIDTH),
    "num_heads": (1, MAX_WIDTH),
    "relative_attention_num_buckets": (2, 4096),
    "relative_attention_max_distance": (2, MAX_WIDTH),
    "joint_attention_dim": (1, MAX_WIDTH),
    "caption_projection_dim": (1, MAX_WIDTH),
    "pooled_projection_dim": (1, MAX_WIDTH),
    "pos_embed_max_size": (1, 1024),
    "dual_attention_layers": (0, MAX_WIDTH),
    "num_frames": (1, 1024),
    "image_size": (8, 4096),
    "patch_size": (1, 4096),
}
_SCHEDULER_INTEGERS: dict[str, tuple[int, int]] = {
    "num_train_timesteps": (2, MAX_TIMESTEPS),
    "steps_offset": (0, MAX_TIMESTEPS),
    "original_inference_steps": (1, MAX_TIMESTEPS),
    "solver_order": (1, 10),
}
# Keys that latentc's own schedulers read.
_SCHEDULER_WORDS: dict[str, tuple[object, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "rescale_betas_zero_snr": (True, False),
    "set_alpha_to_one": (True, False),
}


def check_config(where: object, config: Config, tensors: int) -> None:
    """Raise CheckpointError for a number that is impossible for a model with this many stored tensors.

    `where` is the config's file, or the checkpoint from whose shapes it was derived.
    """
    for key in _LISTS:
        value = config.get(key)
        if value is not None and not 0 < len(_listed(value)) <= MAX_LEVELS:
            raise _refused(where, key, value, f"a list of 1 to {MAX_LEVELS} levels")
    bounds = _INTEGERS | dict.fromkeys(_LAYERS, (0, tensors))
    _check_integers(where, config, bounds)
    layers = max(_integers(config.get("layers_per_block")), default=1)
    deep = max((number for key in _LAYERS[1:3] for number in _integers(config.get(key))), default=1)
    levels = len(config.get("block_out_channels", ()))
    if levels and layers * levels * (1 + deep) > max(tensors, 8):
        structure = f"{layers} layers at each of {levels} levels, {deep} transformers deep"
        raise CheckpointError(f"{where} asks for {structure}, but only {tensors:,} tensors are stored. {_ADVICE}")
    scale = config.get("scaling_factor")
    if scale is not None and not _number(scale, 1e-6, 1e6):
        raise _refused(where, "scaling_factor", scale, "a positive number")


def check_pixels(where: object, unet: Config, vae: Config) -> None:
    """Raise CheckpointError for a UNet whose `sample_size` is outside the image sizes that latentc supports."""
    downscale = 2 ** (len(vae["block_out_channels"]) - 1)
    size: object = unet.get("sample_size")
    if size is None:
        return
    sides = list(flat(size))
    listed = _listed(size)
    fits = all(isinstance(side, int) and 8 <= side * downscale <= MAX_SIDE for side in sides)
    if not fits or (sides != [size] and (len(listed) != 2 or sides != listed)):
        raise _refused(where, "sample_size", size, f"8 to {MAX_SIDE} pixels, each {downscale} to a latent,")


def latent_sides(unet: Config) -> tuple[int, int] | None:
    """A UNet's native height and width in latents: `sample_size` is one number, or a list of two."""
    size = unet.get("sample_size")
    return (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))


def check_statistics(where: object, family: Family, vae: Config) -> None:
    """Raise CheckpointError for latent statistics that diffusers' pipeline of the family wouldn't apply.

    Latents that were normalised in training would be decoded without it, which gives wrong images.
    """
    mean, std = (vae.get(key) for key in _STATISTICS)
    channels = vae["latent_channels"]
    for key, value, least in (("latents_mean", mean, -1e6), ("latents_std", std, 1e-6)):
        listed = _listed(value)
        if value is not None and (len(listed) != channels or not all(_number(one, least, 1e6) for one in listed)):
            kind = "numbers" if least < 0 else "positive numbers"
            raise _refused(where, key, value, f"{channels} {kind}, one for each channel of the latents,")
    if (mean is None) != (std is None):
        lacks, has = _STATISTICS if mean is None else _STATISTICS[::-1]
        raise _refused(where, lacks, None, f"a list, as for {has},")
    plain = mean is None or (not any(_listed(mean)) and set(_listed(std)) == {1})
    if not plain and not family.latent_statistics:
        raise _refused(where, "latents_mean", mean, f"none, as {family.pipeline} does not apply it,")
    shift = vae.get("shift_factor")
    if shift and not family.latent_shift:
        raise _refused(where, "shift_factor", shift, f"none, as {family.pipeline} does not apply it,")
    if family.latent_shift and not _number(shift, -1e6, 1e6):
        raise _refused(where, "shift_factor", shift, f"a number, which {family.pipeline} adds,")


_STATISTICS = ("latents_mean", "latents_std")


def check_fit(where: object, family: Family, configs: Mapping[str, Config]) -> None:
    """Raise CheckpointError for components that don't fit together: different widths of latents, prompts or images."""
    unet, vae, cls = configs[family.denoiser], configs[family.vae], family.component(family.denoiser).cls
    if cls not in (UNET, MMDIT):  # an export checks its wires
        return
    latents, picture = vae.get("latent_channels"), (vae.get("in_channels", 3), vae.get("out_channels", 3))
    beside = (family.in_channels // 4 - 1) * latents + family.in_channels % 4 if isinstance(latents, int) else 0
    if cls == UNET and unet["in_channels"] == EDITING_CHANNELS != family.in_channels:
        able = " and ".join(one.title for one in FAMILIES if one.tasks == ("edit",))
        raise CheckpointError(
            f"{where} is an instruct-pix2pix (or other image-conditioned) checkpoint of {family.title} (its UNet has "
            f"{EDITING_CHANNELS} input channels), which is not supported yet; {able} is. Use a checkpoint of that."
        )
    if unet["in_channels"] - beside != latents or unet.get("out_channels", latents) != latents:
        raise _apart(
            where,
            f"The {'UNet' if cls == UNET else family.denoiser} generates latents of {unet['in_channels']} channels "
            f"(out: {unet.get('out_channels', latents)}), but the VAE decodes {latents}",
        )
    if picture != (3, 3):
        raise _apart(
            where, f"The VAE reads images of {picture[0]} channels and writes {picture[1]}, but 3 were expected"
        )
    _check_order(where, family, configs)
    if cls == MMDIT:  # an export checks its wires
        return
    width = sum(configs[encoder]["hidden_size"] for encoder in family.encoders)
    if unet["cross_attention_dim"] != width:
        raise _apart(
            where,
            f"The UNet reads prompt embeddings of width {unet['cross_attention_dim']} (cross_attention_dim), but "
            f"those of {' and '.join(family.encoders)} have width {width}",
        )
    if family.pooled is not None:
        reads = unet.get("projection_class_embeddings_input_dim")
        made = configs[family.pooled]["projection_dim"] + family.time_ids * (unet.get("addition_time_embed_dim") or 0)
        if reads != made:
            raise _apart(
                where,
                f"The UNet reads {reads} added values (projection_class_embeddings_input_dim), but {family.pooled} and "
                f"the image size{' with the aesthetic score' if family.scored else ''} give {made}",
            )


def _check_order(where: object, family: Family, configs: Mapping[str, Config]) -> None:
    """Raise CheckpointError for CLIP encoders in the wrong order: together they are as wide as in the right one."""
    names = [one.encoder for one in family.tokenizers if one.kind == "clip"]
    own = {name: configs[name]["hidden_size"] for name in names}
    published = {name: family.config(name)["hidden_size"] for name in names}
    if sorted(names, key=own.__getitem__) != sorted(names, key=published.__getitem__):
        widths = " and ".join(f"{name} is {own[name]} wide" for name in names)
        usual = " and ".join(f"{published[name]}" for name in names)
        raise _apart(where, f"The text encoders are swapped: {widths}, but published ones are {usual}")


IMAGE_SIDE = 224
"""Side in pixels to which diffusers' pipeline resizes the image for the image encoder, whatever its config says."""


def check_video(where: object, family: Family, configs: Mapping[str, Config]) -> None:
    """Raise CheckpointError for components of Stable Video Diffusion that don't fit together."""
    if family.tasks != ("image_to_video",):
        return
    unet, vae = configs[family.denoiser], configs[family.vae]
    side = configs["image_encoder"]["image_size"]
    if side != IMAGE_SIDE:
        raise _apart(where, f"The image encoder reads images of {side} pixels, but diffusers resizes to {IMAGE_SIDE}")
    latents, picture = vae["latent_channels"], (vae.get("in_channels", 3), vae.get("out_channels", 3))
    if (unet["out_channels"], unet["in_channels"]) != (latents, 2 * latents) or picture != (3, 3):
        raise _apart(
            where,
            f"The UNet reads {unet['in_channels']} channels and writes {unet['out_channels']}, and the VAE has "
            f"{latents} latent channels and images of {picture[0]}",
        )
    reads, made = unet["projection_class_embeddings_input_dim"], 3 * unet["addition_time_embed_dim"]
    if reads != made:
        raise _apart(
            where,
            f"The UNet reads {reads} added values (projection_class_embeddings_input_dim), but frames per second, "
            f"motion and noise augmentation give {made}; Stable Video 3D (SV3D) is not supported",
        )


def _apart(where: object, what: str) -> CheckpointError:
    return CheckpointError(f"The components of {where} do not fit together. {what}. Use components of one family.")


def check_choices(family: Family, choices: Choices) -> None:
    """Raise CheckpointError for facts about the training that a model of flow matching doesn't have."""
    given = [name for name in choices.facts() if name != "pixels"]
    if given and family.flow_matching:
        raise CheckpointError(
            f"{family.title} was trained by flow matching, which has no {' and no '.join(given)}. Leave "
            f"{'it' if len(given) == 1 else 'them'} out."
        )


def check_scheduler(where: object, config: Config) -> None:
    """Raise CheckpointError for a noise schedule of an unknown kind, or one that would exhaust memory."""
    _check_integers(where, config, _SCHEDULER_INTEGERS)
    for key, words in _SCHEDULER_WORDS.items():
        value = config.get(key, words[0])
        if not any(value is word or (isinstance(value, str) and value == word) for word in words):
            raise _refused(where, key, value, f"one of {', '.join(map(str, words))}")
    for key in ("beta_start", "beta_end"):
        if key in config and not _number(config[key], 0, 1):
            raise _refused(where, key, config[key], "a number from 0 to 1")
    betas = config.get("trained_betas")
    listed = _listed(betas)
    if betas is not None and not (0 < len(listed) <= MAX_TIMESTEPS and all(_number(beta, 0, 1) for beta in listed)):
        raise _refused(where, "trained_betas", betas, f"at most {MAX_TIMESTEPS:,} numbers from 0 to 1")


_ADVICE = "Compare it with the config that the checkpoint was published with."


def _refused(where: object, key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(f"{where} has {key} = {shown(value)}, but {expected} was expected. {_ADVICE}")


def _check_integers(where: object, config: Config, bounds: Mapping[str, tuple[int, int]]) -> None:
    for key, (least, most) in bounds.items():
        value = config.get(key)
        if value is not None and not all(type(one) is int and least <= one <= most for one in flat(value)):
            raise _refused(where, key, value, f"an integer from {least} to {most:,}")


def _integers(value: object) -> list[int]:
    return [one for one in flat(value) if isinstance(one, int)]


def _listed(value: object) -> list[object]:
    """The list, or an empty one for any other value."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else []


def flat(value: object) -> Generator[object]:
    """The values of nested lists, flattened; any other value alone."""
    if isinstance(value, list | tuple):
        for inner in cast("list[object]", value):
            yield from flat(inner)
    else:
        yield value


def _number(value: object, least: float, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(cast("float", value)) and least <= cast("float", value) <= most
