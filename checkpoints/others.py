"""Components from elsewhere: a VAE or UNet in place of the checkpoint's, text encoders that its file lacks,
ControlNets, an IP-Adapter, and a tiny decoder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.errors import CheckpointError
from ..core.reading import is_folder, is_regular
from ..core.record import shown
from ..core.wires import MAX_CONTROLS
from .families import (
    CONTROL,
    CONTROLS,
    FAMILIES,
    IMAGE_ENCODER,
    IP_ADAPTER,
    SCORES,
    TINY_VAE,
    Component,
    Config,
    Family,
    family_of,
)
from .fields import check_fields
from .files import check_variant, component_weights, names_in
from .hub import fetch, fetch_file, hub_file, is_hub_id
from .named_configs import named_unet, named_vae
from .names import CONTROL_PREFIX, TINY_PREFIX, UNET_PREFIX, VAE_PREFIX
from .original_configs import unet_config, vae_config
from .original_mmdit import FILES
from .refusals import refuse_names, refuse_other_than_tiny, refuse_quantized, refuse_unet
from .source import CheckpointSource, check_class, path_of, read_json
from .stored import read_header, refuse_pickle, with_scales
from .views import Stored

REPLACEABLE = ("unet", "vae")
"""Components that can be replaced."""


@dataclass(frozen=True)
class Replacement:
    """A component that replaces the checkpoint's own. Its files have been checked; its weights stay on disk."""

    component: str
    source: CheckpointSource
    tensors: Stored
    layout: Literal["diffusers", "original"]
    config: Config | None
    """The config in its folder; None where it has to be derived from the tensors' shapes."""
    where: str
    """The file to name in messages about its config: the config's, or that of the tensors."""


def open_others(places: Mapping[str, str], variant: str | None) -> dict[str, Replacement]:
    """Open replacement components by name; each value is a file, a folder or a hub id.

    Raises CheckpointError for a component that can't be replaced, or a place that doesn't hold one.
    """
    check_variant(variant)
    known = {*REPLACEABLE, *FILES, TINY_VAE.name, IP_ADAPTER.name, IMAGE_ENCODER.name}
    unknown = sorted(name for name in set(places) - known if not is_control(name))
    if unknown:
        raise CheckpointError(
            f"The component {unknown[0]} cannot be replaced; only {' and '.join(REPLACEABLE)} can. Leave it out."
        )
    opened = {
        name: _text(name, place) if name in FILES else _open(name, place, variant) for name, place in places.items()
    }
    return _with_encoder(opened)


def _with_encoder(opened: dict[str, Replacement]) -> dict[str, Replacement]:
    """The components, with the image encoder beside an IP-Adapter that was given without one."""
    adapter = opened.get(IP_ADAPTER.name)
    if adapter is None and IMAGE_ENCODER.name in opened:
        raise CheckpointError("Only an IP-Adapter needs an image encoder. Pass --ip-adapter too, or leave it out.")
    if adapter is None or IMAGE_ENCODER.name in opened:
        return opened
    beside = Path(adapter.source.location).parent / IMAGE_ENCODER.name
    if adapter.source.kind != "file" or not is_folder(beside):
        raise CheckpointError(
            f"{adapter.source.location} has no folder {IMAGE_ENCODER.name} beside it. Pass the folder of the image "
            "encoder that it was trained with by --image-encoder."
        )
    return opened | {IMAGE_ENCODER.name: _open(IMAGE_ENCODER.name, str(beside), None)}


def is_control(name: str) -> bool:
    """Whether this is the name of a ControlNet."""
    return re.fullmatch(rf"{CONTROL.name}(_[2-9])?", name) is not None


def controls_of(places: Sequence[str]) -> dict[str, str]:
    """Names for ControlNets at these places, as `open_others` takes them. Raises CheckpointError for too many."""
    if len(places) > MAX_CONTROLS:
        raise CheckpointError(f"{len(places)} ControlNets were given, but the limit is {MAX_CONTROLS}.")
    return {f"{CONTROL.name}_{index}" if index > 1 else CONTROL.name: one for index, one in enumerate(places, 1)}


def refuse_texts(where: object, others: Collection[str]) -> None:
    """Raise CheckpointError for text encoders of their own for a checkpoint that has them."""
    given = sorted({*others} & {*FILES})
    if given:
        raise CheckpointError(
            f"{where} has its own text encoders, so {given[0]} cannot be read from elsewhere. Only single files of "
            "Stable Diffusion 3 without text encoders take them separately. Leave it out."
        )


def _text(component: str, name: str) -> Replacement:
    """A text encoder of Stable Diffusion 3 from its own file, under the names that it has in a whole file."""
    path = path_of(name)
    if not is_regular(path):
        raise CheckpointError(
            f"{component} {name!r} is not a file. Only text encoders of Stable Diffusion 3 can be given, as files such "
            f"as {FILES[component][0]}; of other checkpoints, only {' and '.join(REPLACEABLE)} can be replaced."
        )
    refuse_pickle(path)
    tensors = with_scales(read_header(path)[0])
    prefix = next(
        one.prefix
        for family in FAMILIES
        for one in family.texts
        if one.component == component and one.prefix.startswith(_SEPARATE)
    )
    source = CheckpointSource("file", str(path.resolve()))
    renamed = {f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in tensors.items()}
    return Replacement(component, source, renamed, "original", None, source.location)


def configured(other: Replacement, family: Family, base: Config | None) -> Config:
    """The component's config: its folder's, or `base` (else the family's) updated from its tensors' shapes.

    Raises CheckpointError if its tensors belong to another family.
    """
    facts, file = family.component(other.component), other.source.location
    if other.config is not None:
        check_class(file, facts, other.config)
        check_fields(other.where, facts, other.config)
        config = other.config
    else:
        published = family.config(other.component)
        start = base or published
        scales = [{key: one.get(key, plain) for key, plain in _SCALES.items()} for one in (start, published)]
        differing = {key: value for key, value in scales[0].items() if value != scales[1][key]}
        if other.component == "vae" and differing:
            raise CheckpointError(
                f"{file} does not state how it scales latents, and the checkpoint's own VAE has {shown(differing)}, "
                f"unlike the published one of {family.title}. Pass a folder of the VAE with its config.json, or put "
                "that file in the same folder."
            )
        named, original = (named_unet, unet_config) if other.component == "unet" else (named_vae, vae_config)
        read = named if other.layout == "diffusers" else original
        prefix = "" if other.layout == "diffusers" else _prefix(other.component)
        shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in other.tensors.items()}
        config = read(shapes, family, start)
    if other.component == "unet":
        refuse_unet(file, config)
        added = any(name.removeprefix(UNET_PREFIX).startswith(_ADDED) for name in other.tensors)
        kind = family_of({**config, SCORES: family.scored}, other.component)
        if added != (family.pooled is not None) or (kind is not None and kind != family):
            channels = config.get("in_channels", 4)
            alike = [
                one
                for one in FAMILIES
                if (one.pooled is not None) == added and one.texts and one.marks.get("in_channels", 4) == channels
            ]
            kinds = [one.title for one in alike if kind == one or kind not in alike]
            raise CheckpointError(
                f"{file} is a UNet of {' or '.join(kinds)}, but the checkpoint is {family.title}. "
                "Pass a UNet of the checkpoint's family."
            )
    refuse_quantized(file, config, other.tensors)
    return config


def start_of(where: Path, component: Component, family: Family) -> Config:
    """The base for the config of a replacement: the config of the component that it replaces.

    From one of another class, such as AsymmetricAutoencoderKL, only the scaling of latents is kept.
    """
    own = read_json(where / "config.json")
    try:
        check_class(where, component, own)
    except CheckpointError:
        return family.config(component.name) | {key: own[key] for key in _SCALES if key in own}
    return own


def rescaled(vae: Replacement, base: Config, config: Config) -> tuple[str, ...]:
    """A notice about a replacement VAE that scales latents differently from the checkpoint's own."""
    own, given = (one.get("scaling_factor", _SCALES["scaling_factor"]) for one in (base, config))
    if own == given:
        return ()
    message = f"{vae.source.location} has scaling_factor {given}, but the checkpoint's own VAE has {own}"
    return (f"{message}: {given} is used. If images are pale or harsh, it is a VAE of another family.",)


_SCALES: Config = {"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None}
"""Keys that scale latents, with AutoencoderKL's defaults."""

_ADDED = ("label_emb.", "add_embedding.")
_SEPARATE = "text_encoders."
"""Start of the names, in a whole file, of text encoders that are also published as files of their own."""


_PREFIXES = {"unet": UNET_PREFIX, "vae": VAE_PREFIX, CONTROL.name: CONTROL_PREFIX, TINY_VAE.name: TINY_PREFIX}
_WORDS = {"unet": "UNet", "vae": "VAE", CONTROL.name: "ControlNet", IP_ADAPTER.name: "IP-Adapter"}


def _kind(component: str) -> str:
    """The component's name without a number: all ControlNets are alike."""
    return CONTROL.name if is_control(component) else component


def _facts(component: str, config: Config | None = None) -> Component:
    """The component; of a ControlNet, of the class that its config names."""
    if is_control(component) and config is not None:
        return CONTROLS.get(str(config.get("_class_name")), CONTROL)
    added = {one.name: one for one in (CONTROL, TINY_VAE, IP_ADAPTER, IMAGE_ENCODER)}
    return added.get(_kind(component)) or FAMILIES[0].component(component)


def _prefix(component: str) -> str:
    return _PREFIXES.get(_kind(component), "")


def _open(component: str, name: str, variant: str | None) -> Replacement:
    path = path_of(name)
    if component == IP_ADAPTER.name and is_folder(path):
        path = _only(path)
    if component == IMAGE_ENCODER.name and is_regular(path):
        raise CheckpointError(f"{path} is a file. Pass the folder of the image encoder, which has its config.json too.")
    if is_folder(path):
        return _folder(component, path, CheckpointSource("folder", str(path.resolve()), variant=variant))
    if is_regular(path):
        return _file(component, path, CheckpointSource("file", str(path.resolve())))
    found = None if os.path.lexists(path) else hub_file(name)
    if found is not None:
        local, commit = fetch_file(found)
        return _file(component, local, CheckpointSource("hub", found.location, commit))
    repository, _, at = name.partition("@")
    if not os.path.lexists(path) and is_hub_id(repository):
        folder, commit = fetch(repository, at or None, variant)
        return _folder(component, folder, CheckpointSource("hub", repository, commit, variant=variant))
    raise CheckpointError(
        f"{component} {name!r} was not found: it is not a file or folder, and not a hub id (owner/name). "
        "Check the path."
    )


def _only(folder: Path) -> Path:
    """The only .safetensors file in a folder."""
    found = [name for name in names_in(folder) if name.endswith(".safetensors")]
    if len(found) == 1:
        return folder / found[0]
    what = f"{len(found)} .safetensors files ({', '.join(found[:3])} ...)" if found else "no .safetensors file"
    raise CheckpointError(f"{folder} holds {what}. Pass the file of the IP-Adapter itself.")


def _folder(component: str, folder: Path, source: CheckpointSource) -> Replacement:
    """The component from its own folder, or from that of a whole checkpoint."""
    facts = _facts(component)
    whole = is_regular(folder / "model_index.json")
    names = (facts.name, *(("adapter",) if is_control(component) else ())) if whole else ()
    places = [folder / name for name in names]
    place = next((one for one in places if is_regular(one / "config.json")), places[0] if places else folder)
    if not is_regular(place / "config.json"):
        single = [name for name in names_in(place) if name.endswith(".safetensors")]
        hint = f"Pass the file itself: {place / single[0]}." if single else "Pass a folder that has one, or a file."
        raise CheckpointError(f"{place} has no config.json, so it is not a folder of {facts.cls}. {hint}")
    config = read_json(place / "config.json")
    facts = _facts(component, config)
    check_class(place, facts, config)
    tensors, _ = component_weights(place, facts, source.variant)
    inside = f"{place.name}/" if place != folder else ""
    return Replacement(component, source, tensors, "diffusers", config, f"{source.location}/{inside}config.json")


def _file(component: str, path: Path, source: CheckpointSource) -> Replacement:
    """The component from its own file, or from the file of a whole checkpoint in the original layout."""
    refuse_pickle(path)
    tensors = with_scales(read_header(path)[0])
    layout, prefix = _layout(component, tensors)
    if layout is None:
        if component == TINY_VAE.name:
            refuse_other_than_tiny(path, tensors)
        if not is_control(component) and component != IP_ADAPTER.name:
            refuse_names(path, tensors)
        raise CheckpointError(
            f"{path} holds no {_WORDS[_kind(component)]} that latentc recognizes (its first tensor is "
            f"{min(tensors, default='')!r}). Pass a {_kind(component)} file, or a whole checkpoint in the original "
            "layout."
        )
    config = None if component == IP_ADAPTER.name else _beside(component, path)
    where = source.location if config is None else f"{Path(source.location).parent}/config.json"
    if layout == "diffusers":
        return Replacement(component, source, tensors, "diffusers", config, where)
    wanted = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    added = "" if prefix else _prefix(component)
    wanted = {f"{added}{name}": tensor for name, tensor in wanted.items()}
    return Replacement(component, source, wanted, "original", config, where)


def _beside(component: str, path: Path) -> Config | None:
    """The config.json next to a file, if it names the component's class or the file has its standard name."""
    beside = path.parent / "config.json"
    if not is_regular(beside):
        return None
    config = read_json(beside)
    facts = _facts(component, config)
    fits = config.get("_class_name") == facts.cls or path.name.startswith(facts.stem)
    return config if fits else None


def _layout(component: str, names: Collection[str]) -> tuple[Literal["diffusers", "original"] | None, str]:
    """The layout of the component's tensor names in a file, and their prefix."""
    marks: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "unet": (("down_blocks.0.",), ("input_blocks.0.",)),
        "vae": (("encoder.down_blocks.0.",), ("encoder.down.0.",)),
        CONTROL.name: (
            ("controlnet_cond_embedding.", "pos_embed_input.", "adapter.body.0."),
            ("input_hint_block.0.", "transformer_blocks.0.attn.qkv.", "body.0.block1.", "body.0.in_conv."),
        ),
        TINY_VAE.name: (("decoder.layers.0.",), ("1.weight",)),
        IP_ADAPTER.name: (("image_proj.",), ("ip_adapter.0.",)),
    }
    named, original = marks[_kind(component)]
    for prefix in (_prefix(component), ""):
        if any(name.removeprefix(prefix).startswith(original) for name in names if name.startswith(prefix)):
            return "original", prefix
    if any(name.startswith(named) for name in names):
        return "diffusers", ""
    return None, ""
