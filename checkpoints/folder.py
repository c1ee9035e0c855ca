"""Opening a checkpoint in diffusers' layout: a folder with model_index.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .bounds import check_config, check_pixels, check_scheduler
from .checkpoint import Checkpoint
from .families import Component, Config, Family, family_of
from .fields import check_fields
from .names import Stored
from .refusals import refuse_pipeline, refuse_unet, supported
from .scheduler import read_scheduler, read_size
from .source import Source, read_json
from .stored import PICKLES, read_header

_VARIANTS = ("", ".fp16", ".bf16")

# Keys that published configs have never left out. Others may be missing: the libraries have defaults for them.
_REQUIRED: dict[str, dict[str, type]] = {
    "UNet2DConditionModel": {"in_channels": int, "block_out_channels": list, "cross_attention_dim": int},
    "AutoencoderKL": {"block_out_channels": list, "latent_channels": int},
    "CLIPTextModel": {"hidden_size": int, "num_hidden_layers": int},
    "CLIPTextModelWithProjection": {"hidden_size": int, "num_hidden_layers": int, "projection_dim": int},
}


def open_folder(folder: Path, source: Source) -> Checkpoint:
    """The checkpoint in a folder, with every header and offset checked and no weight read.

    Raises CheckpointError for a folder that is incomplete, damaged, pickled or of a kind that isn't supported.
    """
    if not os.path.lexists(folder / "model_index.json"):
        raise CheckpointError(_no_index(folder))
    model_index = read_json(folder / "model_index.json")
    refuse_pipeline(folder, model_index)
    unet = read_json(folder / "unet" / "config.json")
    refuse_unet(folder, unet)
    family = family_of(model_index, unet)
    if family is None:
        raise CheckpointError(
            f"{folder} is a {model_index['_class_name']} whose UNet is of no known family (use_linear_projection is "
            f"{shown(unet.get('use_linear_projection'))}, addition_embed_type "
            f"{shown(unet.get('addition_embed_type'))}). "
            f"{supported()}"
        )
    _refuse_refiner(folder, family, model_index)
    configs = {c.name: read_json(folder / c.name / "config.json") for c in family.components}
    for component in family.components:
        _check_config(folder, component, configs[component.name])
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    check_scheduler(folder / "scheduler" / "scheduler_config.json", scheduler)
    scheduler, notices = read_scheduler(model_index, scheduler)
    weights = {component.name: _weights(folder, component) for component in family.components}
    for component in family.components:
        check_fields(folder / component.name / "config.json", component, configs[component.name])
    for name, config in configs.items():
        check_config(folder / name / "config.json", config, len(weights[name]))
    check_pixels(folder / "unet" / "config.json", unet, configs["vae"])
    latents, repaired = read_size(model_index, unet)
    return Checkpoint(
        family=family,
        source=source,
        configs=configs,
        scheduler=scheduler,
        model_index=model_index,
        layout="diffusers",
        weights=weights,
        folder=folder,
        size=latents and latents * 2 ** (len(configs["vae"]["block_out_channels"]) - 1),
        notices=(*notices, *repaired),
    )


def _no_index(folder: Path) -> str:
    there = _names(folder)
    single = [name for name in there if name.endswith(".safetensors")]
    pickled = [name for name in there if name.endswith(PICKLES)]
    if single:
        return f"{folder} has no model_index.json. For one of its single files, pass {folder / single[0]}."
    if pickled:
        return f"{folder} has no model_index.json, only pickles ({pickled[0]}), which are never opened. {_convert()}"
    return (
        f"{folder} has no model_index.json, so it is no diffusers checkpoint. Pass the folder that holds one, a "
        ".safetensors file, a hub id (owner/name), or scenes, which ships with latentc."
    )


def _convert() -> str:
    return (
        "Convert it on a machine where you trust it: "
        "DiffusionPipeline.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)."
    )


def _refuse_refiner(folder: Path, family: Family, model_index: Config) -> None:
    for component in family.components:
        entry = model_index.get(component.name)
        if not isinstance(entry, list) or None in entry:
            raise CheckpointError(
                f"{folder} has no {component.name} (a refiner has none, for instance), which every "
                f"{family.title} checkpoint that latentc opens has. {supported()}"
            )


def _check_config(folder: Path, component: Component, config: Config) -> None:
    """The class must be the family's, and what every later stage reads must be there."""
    named: Any = config.get("architectures")
    stated: Any = config.get("_class_name") or (cast("list[Any]", named)[0] if named and type(named) is list else named)
    # Some exports say CLIPTextModel of an encoder with a projection, or the reverse; the tensors tell in any case.
    fits = isinstance(stated, str) and (component.cls.startswith(stated) or stated.startswith(component.cls))
    if stated and not fits:
        raise CheckpointError(
            f"{folder / component.name} holds a {str(stated)[:LONGEST]}, and a {component.cls} was expected: "
            "it isn't supported yet. Pass a checkpoint with the plain component."
        )
    for key, kind in _REQUIRED[component.cls].items():
        if type(config.get(key)) is not kind:
            raise CheckpointError(
                f"{folder / component.name / 'config.json'} says {key} = {shown(config.get(key))}, and {kind.__name__} "
                "was expected. Compare it with the config that the checkpoint was published with."
            )


def _weights(folder: Path, component: Component) -> Stored:
    place = folder / component.name
    for variant in _VARIANTS:
        file = place / f"{component.stem}{variant}.safetensors"
        if os.path.lexists(file):
            return read_header(file)[0]
        dotted = variant.removeprefix(".")
        for index in (f"{file.name}.index.json", f"{component.stem}.safetensors.index.{dotted}.json"):
            if os.path.lexists(place / index):
                return _sharded(place / index)
    there = _names(place)
    pickled = [name for name in there if name.endswith(PICKLES)]
    expected = f"{component.stem}.safetensors"
    if pickled:
        raise CheckpointError(
            f"{place} holds only a pickle, {pickled[0]}, and {expected} was expected; latentc never opens pickles. "
            f"{_convert()}"
        )
    raise CheckpointError(
        f"{place} has no weights: {expected} was expected (or its .fp16 or sharded form), and it holds "
        f"{', '.join(there[:8]) or 'nothing'}. Fetch the checkpoint again."
    )


def _names(place: Path) -> list[str]:
    """What a folder holds; nothing where it can't be listed."""
    try:
        return sorted(path.name for path in place.iterdir())
    except OSError:
        return []


def _sharded(index: Path) -> Stored:
    advice = "Fetch the checkpoint again."
    found: Any = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} has no weight_map. {advice}")
    places = cast("dict[str, Any]", found)
    shards: dict[str, Stored] = {}
    for name in sorted({str(shard) for shard in places.values()}):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {shown(name)}, which is no .safetensors file beside it. {advice}"
            )
        shards[name] = read_header(index.parent / name)[0]
    for tensor, shard in places.items():  # of strings alone, as any other has no file
        if tensor not in shards[str(shard)]:
            raise CheckpointError(f"{index} says that {shard} holds tensor {shown(tensor)}, and it doesn't. {advice}")
    return {tensor: shards[str(shard)][tensor] for tensor, shard in places.items()}
