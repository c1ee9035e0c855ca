"""Opening a checkpoint in diffusers' layout: a folder with model_index.json."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .bounds import check_choices, check_config, check_fit, check_pixels, check_scheduler, check_statistics, check_video
from .card import read_card
from .checkpoint import Checkpoint, zeros_instead
from .controls import controlled
from .families import FAMILIES, SCORES, UNET, Config, Family, family_of
from .fields import check_fields
from .files import check_variant, component_weights, convert, names_in, variants
from .ip_adapter import styled
from .names import text_layers
from .others import Replacement, configured, refuse_texts, rescaled, start_of
from .parts import CLASSES
from .processor import read_processor
from .refusals import notice_of_pipeline, refuse_pipeline, refuse_quantized, refuse_unet, supported
from .scheduler import read_scheduler, read_size
from .source import CheckpointSource, check_class, check_entry, read_json
from .statements import PIXELS
from .stored import PICKLES
from .tiny import tiny_decoded
from .tokenizer import common_length
from .training import Choices
from .views import Stored

# Components of diffusers' pipelines that a bundle doesn't need, and why.
_WITHOUT = {
    "safety_checker": "latentc does not check the content of images",
    "feature_extractor": "it only prepares images for the safety checker or an image encoder",
    "image_encoder": "only IP-Adapters use it",
}


def open_folder(
    folder: Path,
    source: CheckpointSource,
    choices: Choices,
    variant: str | None = None,
    others: Mapping[str, Replacement] = {},
    left_out: Collection[str] = (),
) -> Checkpoint:
    """The checkpoint in a folder: every header and offset is checked, and no weight is read.

    `choices` override the configs of the scheduler and the UNet.
    `variant` is the word in the middle of the weight files' names (`fp16`, `ema` ...); components without that variant
    use their plain files. `others` replace the folder's own components, which may then be missing. `left_out` are
    optional components that aren't read.
    Raises CheckpointError for a folder that is incomplete, damaged, pickled, quantized or of a kind that isn't
    supported, or if no component has the variant.
    """
    check_variant(variant)
    refuse_texts(folder, others)
    if not os.path.lexists(folder / "model_index.json"):
        raise CheckpointError(_no_index(folder))
    model_index = read_json(folder / "model_index.json")
    refuse_pipeline(folder, model_index)
    name, denoiser = _denoiser(folder, model_index, others)
    family = family_of({**denoiser, SCORES: model_index.get(SCORES)}, name)
    if family is None:
        keys = dict.fromkeys(key for one in FAMILIES if one.denoiser == name for key in one.marks)
        found = ", ".join(f"{key} is {shown(denoiser.get(key))}" for key in keys)
        raise CheckpointError(
            f"{folder} is a {model_index['_class_name']} whose {'UNet' if name == 'unet' else name} matches no known "
            f"family ({found}). {supported()}"
        )
    _refuse_other_pipeline(folder, family, model_index)
    whole, family = family, family.without(*dict.fromkeys((*_absent(family, model_index), *left_out)))
    check_choices(family, choices)
    _refuse_missing(folder, family, model_index, others)
    processor = read_processor(folder, family)
    configs: dict[str, Config] = {}
    rescaling: tuple[str, ...] = ()
    for component in family.components:
        place, other = folder / component.name, others.get(component.name)
        if other is None:
            configs[component.name] = read_json(place / "config.json")
            check_class(place, component, configs[component.name])
            continue
        own = start_of(place, component, family) if os.path.lexists(place / "config.json") else None
        configs[component.name] = configured(other, family, own)
        if component.name == family.vae and own is not None:
            rescaling = rescaled(other, own, configs[family.vae])
    family, configs = controlled(family, configs, others)
    family, configs = tiny_decoded(family, configs, others)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    check_scheduler(folder / "scheduler" / "scheduler_config.json", scheduler)
    scheduler, repaired = read_scheduler(model_index, scheduler)
    facts = choices.facts()
    scheduler |= {name: fact.value for name, fact in facts.items() if name != PIXELS}
    about = {notice: key for notice, key in repaired.items() if key not in facts}
    weights, notices = _weights(folder, family, variant, others)
    family, configs = styled(family, configs, others, weights[family.denoiser])
    places: dict[str, object] = {name: folder / name / "config.json" for name in configs}
    places |= {name: other.where for name, other in others.items()}
    for name, config in configs.items():
        check_config(places[name], config, len(weights[name]))
        if name not in others:
            refuse_quantized(folder / name, config, weights[name])
            check_fields(places[name], family.component(name), config)
    check_pixels(places[family.denoiser], configs[family.denoiser], configs[family.vae])
    check_statistics(places[family.vae], family, configs[family.vae])
    check_fit(folder, family, configs)
    check_video(folder, family, configs)
    length, lengths = common_length(folder, family, configs, model_index, lambda name: folder / name)
    card, unread = read_card(folder)
    latents, resized = read_size(model_index, configs[family.denoiser]) if choices.size is None else (None, [])
    return Checkpoint(
        family=family,
        source=replace(source, variant=variant),
        configs=configs,
        scheduler=scheduler,
        model_index=model_index,
        layout="diffusers",
        weights=weights,
        folder=folder,
        length=length,
        processor=processor,
        card=card,
        size=choices.size or (latents and latents * 2 ** (len(configs[family.vae]["block_out_channels"]) - 1)),
        notices=(
            *notice_of_pipeline(family, model_index),
            *zeros_instead(whole, family),
            *spare_components(whole, model_index),
            *notices,
            *rescaling,
            *about,
            *resized,
            *lengths,
            *_spare_layers(family, configs, weights),
            *unread,
        ),
        about=about,
        choices=choices,
        trained_for=tuple(facts.values()),
        others=others,
        left_out=tuple(left_out),
    )


def _refuse_other_pipeline(folder: Path, family: Family, model_index: Config) -> None:
    """Raise CheckpointError for a pipeline class whose models have another denoiser than the folder."""
    named = str(model_index.get("_class_name"))
    owners = [one for one in FAMILIES if named in one.pipelines]
    if owners and all(one.denoiser != family.denoiser for one in owners):
        raise CheckpointError(
            f"{folder}/model_index.json names {named}, whose models have a {owners[0].denoiser}, but lists a "
            f"{family.denoiser} of {family.title}. Compare it with the one that the checkpoint was published with."
        )


def _absent(family: Family, model_index: Config) -> list[str]:
    """The optional components that model_index.json doesn't have."""
    entries = ((one.name, model_index.get(one.name)) for one in family.components if one.optional)
    return [name for name, entry in entries if entry in (None, [None, None])]


def _denoiser(folder: Path, model_index: Config, others: Mapping[str, Replacement]) -> tuple[str, Config]:
    """Name and config of the folder's own denoiser, which determines the family; without one, the replacement's."""
    names = tuple(dict.fromkeys(family.denoiser for family in FAMILIES))
    listed = [one for one in names if isinstance(model_index.get(one), list)]
    name = next((one for one in (*listed, *names) if os.path.lexists(folder / one)), (*listed, names[0])[0])
    place, given = folder / name / "config.json", others.get(name)
    if given is not None and given.config is not None and not os.path.lexists(place):
        return name, given.config
    config = read_json(place)
    stated: object = config.get("_class_name")
    if given is None and name == "unet" and (stated == UNET or stated not in list(CLASSES)):
        refuse_unet(folder, config)
    return name, config


def _weights(
    folder: Path, family: Family, variant: str | None, others: Mapping[str, Replacement]
) -> tuple[dict[str, Stored], list[str]]:
    """Tensors of each component, and notices about components that don't have the requested variant."""
    weights: dict[str, Stored] = {name: other.tensors for name, other in others.items()}
    taken: dict[str, str | None] = {}
    own = [one for one in family.components if one.name not in others]
    for one in own:
        weights[one.name], taken[one.name] = component_weights(folder / one.name, one, variant)
    differing = {name: found for name, found in taken.items() if found != variant}
    if variant is not None and len(differing) == len(taken):
        there = sorted({found for one in own for found in variants(names_in(folder / one.name), one)})
        found = f"It has the plain weights and: {', '.join(there)}" if there else "It has the plain weights only"
        advice = "Pass --variant with one of them, or leave it out" if there else "Leave --variant out"
        raise CheckpointError(f"{folder} has no weights of the variant {variant!r}. {found}. {advice}.")
    if variant is not None and differing:
        return weights, [f"No {variant} weights for {', '.join(differing)}: the plain ones are used."]
    return weights, [
        f"No plain weights for {', '.join(name for name in differing if differing[name] == found)}: those of the "
        f"variant {found} are used."
        for found in sorted(set(filter(None, differing.values())))
    ]


def spare_components(family: Family, model_index: Config, parts: Collection[str] = ()) -> list[str]:
    """Notices about components that the index lists and a bundle leaves out; `parts` are further names of its own."""
    known = {"scheduler", family.processor, *parts, *(one.name for one in (*family.components, *family.tokenizers))}
    notices: list[str] = []
    for name, entry in model_index.items():
        cls: object = cast("list[object]", entry)[-1] if isinstance(entry, list) and entry else None
        if name not in known and isinstance(cls, str) and not name.startswith("_"):
            why = _WITHOUT.get(name, "latentc does not know this component; diffusers' pipeline may use it")
            notices.append(f"{name[:LONGEST]} ({cls[:LONGEST]}) is left out: {why}.")
    return notices


def _spare_layers(family: Family, configs: dict[str, Config], weights: dict[str, Stored]) -> list[str]:
    """Notices about text encoders whose files hold more layers than their config: a baked-in clip skip."""
    notices: list[str] = []
    for name in family.encoders:
        asked, there = configs[name].get("num_hidden_layers"), text_layers(weights[name])
        if asked is not None and there > asked:
            notices.append(
                f"{name}/config.json has {asked} layers, but {there} are stored: the first {asked} are used, as in "
                "transformers (a baked-in clip skip)."
            )
    return notices


def _no_index(folder: Path) -> str:
    there = names_in(folder)
    single = [name for name in there if name.endswith(".safetensors")]
    pickled = [name for name in there if name.endswith(PICKLES)]
    if single:
        return f"{folder} has no model_index.json. To open one of its single files, pass {folder / single[0]}."
    if pickled:
        return f"{folder} has no model_index.json, only pickles ({pickled[0]}), which are never opened. {convert()}"
    return (
        f"{folder} has no model_index.json, so it is not a diffusers checkpoint. Pass a folder that has one, a "
        ".safetensors file, a hub id (owner/name), or scenes, which ships with latentc."
    )


def _refuse_missing(folder: Path, family: Family, model_index: Config, given: Collection[str]) -> None:
    if given and family.texts == () and family.processor is not None:
        raise CheckpointError(
            f"{folder} is a {family.title} checkpoint, whose components cannot be replaced. Leave out "
            f"{' and '.join(f'--{name}'.replace('_', '-') for name in given)}."
        )
    for component in family.components:
        if component.name in given:
            continue
        entry: object = model_index.get(component.name)
        check_entry(folder / "model_index.json", component, entry)
        if not isinstance(entry, list) or None in entry:
            raise CheckpointError(
                f"{folder} has no {component.name}, which a {family.title} checkpoint needs; a refiner, which has "
                f"none, has {SCORES} = true in its model_index.json. {supported()}"
            )
