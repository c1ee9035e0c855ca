"""Opening a checkpoint in the original layout: one `.safetensors` file of CompVis or Stability form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..core.errors import CheckpointError
from .bounds import check_config, check_pixels
from .checkpoint import Checkpoint, component_tensors
from .families import FAMILIES, Config, Family
from .names import UNET_PREFIX, VAE_PREFIX, Stored, original_prefix
from .original_configs import Shapes, text_config, time_embed_width, unet_config, vae_config
from .refusals import refuse_names, refuse_unet, supported
from .source import Source
from .statements import PIXELS
from .stored import read_header, refuse_pickle
from .training import Choices, scheduler_of, trained_for


def open_file(path: Path, source: Source, choices: Choices) -> Checkpoint:
    """The checkpoint in a single file; its configs are read off its tensors' shapes, its training off what it says.

    Averaged weights (`model_ema.`) beside the plain ones are left alone. Raises CheckpointError for
    a file that is damaged, pickled, incomplete or of a kind that isn't supported.
    """
    refuse_pickle(path)
    tensors, metadata = read_header(path)
    refuse_names(path, tensors)
    family = _family(path, tensors)
    weights = {c.name: component_tensors(tensors, family, c.name) for c in family.components}
    shapes = {name: _bare(held, original_prefix(family, name)) for name, held in weights.items()}
    texts = {text.component: text_config(shapes[text.component], family, text) for text in family.texts}
    unet = unet_config(shapes["unet"], family)
    configs = texts | {
        "unet": unet | time_embed_width(unet, texts, family),
        "vae": vae_config(shapes["vae"], family),
    }
    refuse_unet(path, configs["unet"])
    training = trained_for(path, tensors, metadata, family, choices)
    for name, config in configs.items():
        check_config(f"{path}, by its tensors,", config, len(weights[name]))
    check_pixels(f"{path}, by its tensors,", configs["unet"], configs["vae"])
    scheduler = scheduler_of(family, training)
    return Checkpoint(
        family=family,
        source=source,
        configs=configs,
        scheduler=scheduler,
        model_index=model_index(family, scheduler),
        layout="original",
        weights=weights,
        size=cast("int", training.facts[PIXELS].value),
        trained_for=tuple(training.facts.values()),
        notices=tuple(training.notices),
        doubts=tuple(training.doubts),
    )


def model_index(family: Family, scheduler: Config) -> Config:
    """The model_index.json of a plain checkpoint of the family."""
    index: dict[str, Any] = {
        "_class_name": family.pipeline,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **{component.name: [component.library, component.cls] for component in family.components},
        **{tokenizer.name: ["transformers", "CLIPTokenizer"] for tokenizer in family.tokenizers},
        "feature_extractor": [None, None],
    }
    if family.prompt.time_ids:
        return index | {
            "image_encoder": [None, None],
            "force_zeros_for_empty_prompt": family.prompt.zeros_for_empty,
        }
    return index | {"safety_checker": [None, None], "requires_safety_checker": False}


def _family(path: Path, tensors: Stored) -> Family:
    """The family whose every text encoder, UNet and VAE is there."""
    for family in FAMILIES:
        if all(any(name.startswith(text.prefix) for name in tensors) for text in family.texts):
            break
    else:
        raise CheckpointError(
            f"{path} holds no text encoder that latentc knows (its first tensor is {min(tensors)!r}). {supported()} "
            "A file of the UNet alone can't be opened: pass the whole checkpoint."
        )
    for prefix, what in ((UNET_PREFIX, "UNet"), (VAE_PREFIX, "VAE")):
        if not any(name.startswith(prefix) for name in tensors):
            raise CheckpointError(
                f"{path} has the text encoder of {family.title} and no {what} (no tensor '{prefix}...'). "
                "Pass the whole checkpoint, or a diffusers folder."
            )
    return family


def _bare(tensors: Stored, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items()}
