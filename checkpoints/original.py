"""Opening a checkpoint in the original layout: one `.safetensors` file of CompVis or Stability form."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import in_a_line
from .bounds import check_choices, check_config, check_fit, check_pixels, check_statistics
from .card import Card, read_card, stated_card
from .checkpoint import Checkpoint, component_tensors, zeros_instead
from .controls import controlled
from .families import EDITING_CHANNELS, FAMILIES, INPAINTING_CHANNELS, SCORES, Config, Family
from .ip_adapter import styled
from .names import UNET_PREFIX, VAE_PREFIX, original_prefix
from .original_configs import TensorShapes, text_config, time_embed_width, unet_config, vae_config
from .original_mmdit import MARK, beside, mmdit_family, t5_config
from .others import Replacement, configured, open_others, refuse_texts, rescaled
from .refusals import refuse_names, refuse_quantized, refuse_unet, supported
from .source import CheckpointSource
from .statements import PIXELS
from .stored import read_header, refuse_pickle, with_scales
from .tiny import tiny_decoded
from .tokenizer import KINDS
from .training import Choices, scheduler_of, trained_for
from .views import Stored

_TABLES = {
    "openclip": ("token_embedding.weight",),
    "transformers": ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
}
"""Names of a text encoder's token embedding table."""

FORMAT = "0.10.0"
"""A version of diffusers since which files are as they are now: it loads no pipeline for inpainting without one."""

# Tensors besides the weights: of the training schedule, averaged weights, an encoder's positions, and marker tensors.
_SPARE = re.compile(
    r"^(model_ema\.|(sqrt_|log_)?(one_minus_)?alphas_|betas$|posterior_|sqrt_|logvar$|lvlb_weights$|denoiser\."
    r"|v_pred$|ztsnr$|scale_factor$|global_step$|scaled_fp8$)|\.position_ids$"
)


def open_file(
    path: Path,
    source: CheckpointSource,
    choices: Choices,
    others: Mapping[str, Replacement] = {},
    left_out: Collection[str] = (),
) -> Checkpoint:
    """The checkpoint in a single file. Configs come from its tensors' shapes, facts about its training from metadata.

    Averaged weights (`model_ema.`) next to the plain ones are ignored. `others` replace the file's own components,
    which may then be missing. `left_out` are optional components that aren't read. Raises CheckpointError for a file
    that is damaged, pickled, incomplete, quantized or of a kind that isn't supported.
    """
    refuse_pickle(path)
    tensors, metadata = read_header(path)
    tensors = with_scales(tensors)
    if any(name.startswith(MARK) for name in tensors):
        return _open_mmdit(path, source, choices, tensors, metadata, others, left_out)
    refuse_texts(path, others)
    family = _family(path, tensors, others).without(*left_out)
    weights = {c.name: component_tensors(tensors, family, c.name) for c in family.components}
    for held in weights.values():
        refuse_quantized(path, {}, held)
    shapes = {name: _bare(held, original_prefix(family, name)) for name, held in weights.items()}
    texts = {text.component: text_config(shapes[text.component], family, text) for text in family.texts}
    made: dict[str, Config] = {}
    for name, read in (("unet", unet_config), ("vae", vae_config)):
        base = read(shapes[name], family) if shapes[name] else None
        made[name] = configured(others[name], family, base) if name in others else read(shapes[name], family)
    rescaling = rescaled(others["vae"], family.config("vae"), made["vae"]) if "vae" in others else ()
    configs = texts | made | {"unet": made["unet"] | time_embed_width(made["unet"], texts, family)}
    refuse_unet(path, configs["unet"])
    family, configs = controlled(family, configs, others)
    family, configs = tiny_decoded(family, configs, others)
    weights |= {name: other.tensors for name, other in others.items()}
    family, configs = styled(family, configs, others, weights["unet"])
    training = trained_for(path, tensors, metadata, family, choices)
    places = dict.fromkeys(configs, f"{path} (from its tensors' shapes)") | {
        name: one.where for name, one in others.items()
    }
    for name, config in configs.items():
        check_config(places[name], config, len(weights[name]))
    check_pixels(places["unet"], configs["unet"], configs["vae"])
    check_statistics(places["vae"], family, configs["vae"])
    check_fit(path, family, configs)
    scheduler, about = scheduler_of(family, training)
    card, unread = _card(path, source, metadata)
    return Checkpoint(
        family=family,
        source=source,
        configs=configs,
        scheduler=scheduler,
        model_index=model_index(family, scheduler),
        layout="original",
        weights=weights,
        others=others,
        card=card,
        length=min(min(facts.length, configs[facts.encoder]["max_position_embeddings"]) for facts in family.tokenizers),
        size=cast("int", training.facts[PIXELS].value),
        trained_for=tuple(training.facts.values()),
        choices=choices,
        notices=(*_left_over(tensors, family), *rescaling, *training.notices, *about, *unread),
        about=about,
        doubts=tuple(training.doubts),
    )


def _open_mmdit(
    path: Path,
    source: CheckpointSource,
    choices: Choices,
    tensors: Stored,
    metadata: Mapping[str, object],
    others: Mapping[str, Replacement],
    left_out: Collection[str],
) -> Checkpoint:
    """The checkpoint in a single file of Stable Diffusion 3 or 3.5.

    Text encoders that it lacks are read from the published files in `text_encoders` beside it, unless `others` has
    them.
    """
    if not any(name.startswith(VAE_PREFIX) for name in tensors) and "vae" not in others:
        raise CheckpointError(
            f"{path} has a transformer but no VAE (no tensor '{VAE_PREFIX}...'). Pass the whole checkpoint, or add the "
            f"VAE of another: latentc export {path.name} --vae FILE."
        )
    if "unet" in others:
        raise CheckpointError(f"{path} has a transformer, not a UNet. Leave out --unet.")
    _refuse_mmdit_leftovers(path, tensors)
    denoiser = _bare(_prefixed(tensors, UNET_PREFIX), UNET_PREFIX)
    whole, transformer = mmdit_family(path, denoiser)
    family = whole.without(*left_out)
    check_choices(family, choices)
    held = {text.component: _prefixed(tensors, text.prefix) for text in family.texts}
    lacking = {name: family.component(name).optional for name in held if not held[name] and name not in others}
    others = {**others, **open_others(beside(path, lacking), None)}
    weights = {c.name: component_tensors(tensors, family, c.name) for c in family.components}
    weights |= {name: other.tensors for name, other in others.items()}
    for one in weights.values():
        refuse_quantized(path, {}, one)
    configs: dict[str, Config] = {family.denoiser: transformer}
    for text in family.texts:
        shapes = _bare(weights[text.component], text.prefix)
        read = t5_config(shapes, family, text.component) if text.style == "t5" else text_config(shapes, family, text)
        configs[text.component] = read
    shapes = _bare(weights[family.vae], VAE_PREFIX)
    base = vae_config(shapes, family) if "vae" not in others else None
    configs[family.vae] = configured(others["vae"], family, None) if base is None else base
    family, configs = controlled(family, configs, others)
    family, configs = tiny_decoded(family, configs, others)
    family, configs = styled(family, configs, others, {})
    for name, config in configs.items():
        where = others[name].where if name in others else f"{path} (from its tensors' shapes)"
        check_config(where, config, len(weights[name]))
    check_statistics(path, family, configs[family.vae])
    check_fit(path, family, configs)
    card, unread = _card(path, source, metadata)
    scheduler = family.config("scheduler")
    size = choices.facts().get(PIXELS)
    return Checkpoint(
        family=family,
        source=source,
        configs=configs,
        scheduler=scheduler,
        model_index=model_index(family, scheduler),
        layout="original",
        weights=weights,
        others=others,
        left_out=tuple(left_out),
        card=card,
        length=min(facts.length for facts in family.tokenizers),
        size=cast("int | None", size.value if size else None),
        trained_for=tuple(choices.facts().values()),
        choices=choices,
        notices=(
            *zeros_instead(whole, family),
            *(f"{name} is read from {Path(others[name].source.location).name}." for name in lacking),
            *_left_over(tensors, whole),
            *unread,
        ),
    )


def _refuse_mmdit_leftovers(path: Path, tensors: Stored) -> None:
    """Raise CheckpointError if the file also holds a UNet, which a merge left behind."""
    if f"{UNET_PREFIX}input_blocks.0.0.weight" in tensors:
        raise CheckpointError(f"{path} holds both a transformer and a UNet. Download the checkpoint again.")


def _prefixed(tensors: Stored, prefix: str) -> Stored:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _card(path: Path, source: CheckpointSource, metadata: Mapping[str, object]) -> tuple[Card, list[str]]:
    """The licence that the file declares, with its repository's model card if it is from the hub."""
    stated = stated_card(metadata)
    if source.kind != "hub":
        return stated, []
    inside = len(PurePosixPath(source.location).parts) - 2  # after owner/name
    card, unread = read_card(path.parents[inside - 1])
    return (card if stated.license is None else replace(stated, files=card.files)), unread


def model_index(family: Family, scheduler: Config) -> Config:
    """The model_index.json of a plain checkpoint of the family."""
    index: dict[str, Any] = {
        "_class_name": family.pipeline,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **{component.name: [component.library, component.cls] for component in family.components},
        **{one.name: ["transformers", KINDS[one.kind].classes[0]] for one in family.tokenizers},
        "feature_extractor": [None, None],
    }
    if family.inpaints:
        index["_diffusers_version"] = FORMAT
    if family.processor is not None:
        return index | {family.processor: ["transformers", "CLIPImageProcessor"]}
    if family.denoiser != "unet":
        return index | {"image_encoder": [None, None]}
    if family.pooled is not None:
        return index | {
            "image_encoder": [None, None],
            **({SCORES: True} if family.scored else {}),
            "force_zeros_for_empty_prompt": family.zeros_for_empty and not family.scored,  # as published
        }
    return index | {"safety_checker": [None, None], "requires_safety_checker": False}


def _family(path: Path, tensors: Stored, given: Collection[str]) -> Family:
    """The family, from the UNet's inputs and the text encoders' outputs; `given` components are replaced.

    Keys of other families, which merges leave behind, don't decide: the widths must match.
    """
    unet = _bare({name: tensor for name, tensor in tensors.items() if name.startswith(UNET_PREFIX)}, UNET_PREFIX)
    whole = [family for family in FAMILIES if _width(family, tensors) > 0]
    if unet and "unet" not in given:
        reads = (shape for name, shape in unet.items() if name.endswith(".attn2.to_k.weight"))
        keys = next((shape for shape in reads if len(shape) == 2), (0, 0))
        added = any(name.startswith("label_emb.") for name in unet)
        inputs = unet.get("input_blocks.0.0.weight", (0, 0))[1:2]
        channels = inputs[0] if inputs and inputs[0] in (INPAINTING_CHANNELS, EDITING_CHANNELS) else 4
        whole = [one for one in whole if (one.pooled is not None) == added and _width(one, tensors) == keys[-1]]
        whole = [one for one in whole if one.in_channels == channels]
        begun = sorted(FAMILIES, key=lambda family: (family.pooled is not None) != added)
    else:
        begun = FAMILIES
    if whole:
        refuse_names(path, tensors, whole=True)
        found = whole[0]
    else:
        refuse_names(path, tensors)
        found = next((family for family in begun if _begun(family, tensors)), None)
    if found is None:
        alone = (
            "It holds a UNet; to use it in place of another checkpoint's: latentc export CHECKPOINT --unet FILE."
            if unet
            else "Pass the whole checkpoint."
        )
        raise CheckpointError(
            f"{path} holds no text encoder that latentc recognizes (its first tensor is {min(tensors)!r}). "
            f"{supported()} {alone}"
        )
    for prefix, what, name in ((UNET_PREFIX, "UNet", "unet"), (VAE_PREFIX, "VAE", "vae")):
        if name not in given and not any(one.startswith(prefix) for one in tensors):
            raise CheckpointError(
                f"{path} has the text encoder of {found.title} but no {what} (no tensor '{prefix}...'). "
                f"Pass the whole checkpoint, or add the {what} of another: latentc export {path.name} --{name} FILE."
            )
    return found


def _begun(family: Family, tensors: Stored) -> bool:
    return bool(family.texts) and all(any(name.startswith(text.prefix) for name in tensors) for text in family.texts)


def _width(family: Family, tensors: Stored) -> int:
    """Width of the prompt embeddings of the family's text encoders, from their token tables; 0 if one is missing."""
    widths: list[int] = []
    for text in family.texts:
        names = [f"{text.prefix}{middle}" for middle in _TABLES[text.style]]
        table = next((tensors[name] for name in names if name in tensors), None)
        if table is None or len(table.shape) != 2:
            return 0
        widths.append(table.shape[1])
    return sum(widths)


def _left_over(tensors: Stored, family: Family) -> tuple[str, ...]:
    """A notice about tensors that belong to no component of the family."""
    prefixes = tuple(original_prefix(family, component.name) for component in family.components)
    spare = [name for name in tensors if not name.startswith(prefixes) and not _SPARE.search(name)]
    if not spare:
        return ()
    count = (
        f"{len(spare)} tensors that {family.title} does not have were left out"
        if len(spare) > 1
        else (f"A tensor that {family.title} does not have was left out")
    )
    return (f"{count}: {in_a_line(ValueError(min(spare)))}.",)


def _bare(tensors: Stored, prefix: str) -> TensorShapes:
    return {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items()}
