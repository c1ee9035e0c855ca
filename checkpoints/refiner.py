"""The refiner that a checkpoint is exported with: whether the two fit, and what they share."""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import CheckpointError
from ..core.record import shown
from .checkpoint import Checkpoint
from .families import REFINED, REFINER_TEXT, find_family

_SCALES = ("latent_channels", "block_out_channels", "scaling_factor", "latents_mean", "latents_std")
"""Fields in which the two VAEs have to agree: latents are handed over as they are."""

_TRAINED = (
    *("prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    "rescale_betas_zero_snr",
)
"""Keys of a scheduler's config that say how a model was trained."""


def with_refiner(base: Checkpoint, refiner: Checkpoint) -> Checkpoint:
    """The checkpoint with a refiner. Its text encoder is the checkpoint's second one, if their weights are equal.

    Raises CheckpointError for a checkpoint without refiners, for something else than a refiner, and for other latents.
    """
    where, given = base.source.location, refiner.source.location
    if base.family.refined is None:
        what = "is itself a refiner" if base.family.scored else f"is {base.family.title}, which has no refiner"
        raise CheckpointError(
            f"{where} {what}. Pass a checkpoint of {find_family('sdxl').title} with --refiner, or leave --refiner out."
        )
    if refiner.family.name != base.family.refined:
        raise CheckpointError(
            f"{given} is {refiner.family.title}, not a refiner. Pass a {find_family(base.family.refined).title}, such "
            "as stabilityai/stable-diffusion-xl-refiner-1.0."
        )
    if base.configs[base.family.denoiser].get("time_cond_proj_dim"):
        raise CheckpointError(
            f"{where} takes the guidance scale as an input (LCM), and refiners of such checkpoints are not supported. "
            "Leave --refiner out."
        )
    own, other = (one.configs[one.family.vae] for one in (base, refiner))
    for key in _SCALES:
        if own.get(key) != other.get(key):
            raise CheckpointError(
                f"{given} was made for other latents than those of {where}: its VAE has {key} = "
                f"{shown(other.get(key))}, and the checkpoint's {shown(own.get(key))}. Pass a refiner of the same VAE."
            )
    differing = sorted(key for key in {*base.scheduler, *refiner.scheduler} if not _alike(key, base, refiner))
    if trained := [key for key in differing if key in _TRAINED]:
        raise CheckpointError(
            f"{given} was trained with another {' and '.join(trained)} than {where}, as their scheduler configs say, "
            "and both share a scheduler. Pass a refiner that fits, or correct the config that is wrong."
        )
    parts = {name: of for name, of in REFINED.items() if name != REFINER_TEXT.name or not _shared(base, refiner)}
    about = f"The refiner's scheduler config differs in {', '.join(differing)}: the checkpoint's own is used."
    notices = [*base.notices, *(f"Refiner: {notice}" for notice in refiner.notices), *([about] if differing else [])]
    if base.adapters:
        notices.append("Adapters change the base model; the refiner is as it was.")
    return replace(
        base,
        refiner=refiner,
        configs={**base.configs, **{name: refiner.configs[of] for name, of in parts.items()}},
        weights={**base.weights, **{name: refiner.weights[of] for name, of in parts.items()}},
        notices=tuple(dict.fromkeys(notices)),
    )


def _shared(base: Checkpoint, refiner: Checkpoint) -> bool:
    """Whether the refiner's text encoder and tokenizer are the checkpoint's second ones."""
    part, tokenizer = REFINED[REFINER_TEXT.name], refiner.family.tokenizers[0].name
    shapes = [{name: tensor.shape for name, tensor in one.weights[part].items()} for one in (base, refiner)]
    return (
        shapes[0] == shapes[1]
        and base.length == refiner.length
        and base.digest(part) == refiner.digest(part)
        and base.tokenizer_files(tokenizer) == refiner.tokenizer_files(tokenizer)
    )


def _alike(key: str, base: Checkpoint, refiner: Checkpoint) -> bool:
    """Whether the two agree on a key of the scheduler's config."""
    return key.startswith("_diffusers") or base.scheduler.get(key) == refiner.scheduler.get(key)
