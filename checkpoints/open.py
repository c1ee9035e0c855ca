"""Opening a checkpoint by name: a folder, a file, a hub id, or one that ships with the package."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.reading import is_folder, is_regular
from .adapters.adapter import Adapter, applied
from .adapters.file import AdapterFile
from .adapters.open import open_adapters
from .checkpoint import Checkpoint
from .embeddings import with_embeddings
from .families import REFINER, find_family
from .folder import open_folder
from .hub import fetch, fetch_file, hub_file, is_hub_id
from .original import open_file
from .others import Replacement, open_others
from .refiner import with_refiner
from .source import CheckpointSource, path_of, read_json
from .stored import PICKLES
from .training import Choices

__all__ = ["SHIPPED", "Checkpoint", "CheckpointSource", "open_checkpoint"]

SHIPPED: dict[str, Path] = {"scenes": Path(__file__).parent.parent / "scenes" / "checkpoint"}
"""Checkpoints that ship with the package, by name: folders in diffusers' layout."""


def open_checkpoint(
    name: Checkpoint | Path | str,
    *,
    revision: str | None = None,
    family: str | None = None,
    prediction: str | None = None,
    variant: str | None = None,
    components: Mapping[str, str] = {},
    spacing: str | None = None,
    zero_snr: bool | None = None,
    size: int | None = None,
    without: Collection[str] = (),
    embeddings: Collection[str | Path] = (),
    adapters: Mapping[str, float] = {},
) -> Checkpoint:
    """Open a checkpoint: recognize its family, check its files and read its configs. The weights stay on disk.

    `name` is a diffusers folder, a `.safetensors` file in the original layout, a name in `SHIPPED`,
    or a hub id `owner/name`, with `@revision` or `revision`, or a single file there, `owner/name/file.safetensors`.
    An existing path takes precedence; over a name in `SHIPPED`, only if it is a checkpoint. A `Checkpoint` that is
    already open is returned unchanged, or read again if `prediction`, `spacing`, `zero_snr` or `size` is given.

    `variant` selects the weight files of a folder (`fp16`, `ema`, `non_ema` ...), as diffusers' `variant`.
    `components` replaces the checkpoint's `unet` or `vae`, and `refiner` adds one to Stable Diffusion XL: each value is
    a file, a folder or a hub id. It also names the files of `text_encoder`, `text_encoder_2` and `text_encoder_3` for a
    single file of Stable Diffusion 3 without them; by default they are looked for in a folder `text_encoders` beside
    the file. `without` names optional components to leave out: `text_encoder_3` (T5) of Stable Diffusion 3, which zeros
    replace. `adapters` are LoRAs and other adapters to fuse with its weights: files, or files on the hub, and their
    strengths, of any sign and size.

    `embeddings` are files of textual inversions, each as `FILE` or `FILE:TOKEN`: their tokens and vectors are appended
    to the vocabularies of the text encoders.

    `family` is the required family; a checkpoint of any other is refused. `prediction` (`epsilon`,
    `v_prediction` or `sample`), `spacing` (`leading`, `trailing` or `linspace`), `zero_snr` and `size`
    (pixels) override what the checkpoint says about its training. For a single file, `training` works these
    out from the file; what had to be assumed is listed in the checkpoint's `notices`.

    Raises CheckpointError if the checkpoint or an adapter doesn't exist, is damaged or isn't supported, or they don't
    fit together; RuntimeMissing for adapters without torch.
    """
    choices = Choices(prediction, spacing, zero_snr, size)
    choices.check()
    wanted = find_family(family) if family is not None else None
    files = open_adapters(adapters)  # before a checkpoint is downloaded
    components = dict(components)
    refined = components.pop(REFINER.name, None)
    if isinstance(name, Checkpoint):
        elsewhere = {
            "revision": revision,
            "variant": variant,
            "components": components or refined,
            "without": without,
            "embeddings": embeddings if name.embeddings else (),
        }
        opened = _again(name, choices, elsewhere)
    else:
        opened = _open(str(name), revision, choices, variant, _Parts(open_others(components, variant), tuple(without)))
    if wanted is not None and opened.family.name != wanted.name:
        raise CheckpointError(
            f"{name} is a {opened.family.title} checkpoint ({opened.family.name}), but {wanted.name} was requested. "
            f"Pass {opened.family.name}, or leave the family out: it is detected."
        )
    if size is not None and size % opened.downscale:
        raise CheckpointError(
            f"A size of {size} pixels is not possible for {name}: use a multiple of {opened.downscale}."
        )
    opened = with_embeddings(_adapted(opened, files), embeddings)
    refiner = name.refiner if isinstance(name, Checkpoint) else None
    if refined is not None:
        single = is_regular(path_of(refined)) or hub_file(refined) is not None
        refiner = open_checkpoint(refined, variant=None if single else variant)
    return opened if refiner is None else with_refiner(opened, refiner)


def _adapted(opened: Checkpoint, files: Sequence[tuple[AdapterFile, float]]) -> Checkpoint:
    """The checkpoint with further adapters."""
    if not files:
        return opened
    shapes, where = opened.shapes(), opened.source.location
    made = [applied(file, strength, opened.family, shapes, where) for file, strength in files]
    return _with_adapters(opened, made)


def _with_adapters(opened: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    notices = tuple(notice for adapter in adapters for notice in adapter.notices)
    return replace(opened, adapters=(*opened.adapters, *adapters), notices=(*opened.notices, *notices))


def _again(opened: Checkpoint, choices: Choices, elsewhere: Mapping[str, object]) -> Checkpoint:
    """An open checkpoint with further choices about its training, as if it had been opened with all of them."""
    given = [word for word, value in elsewhere.items() if value]
    if given:
        raise CheckpointError(
            f"{opened.source.location} is already open, and {' and '.join(given)} would change which files are read. "
            f"Pass {'it' if len(given) == 1 else 'them'} to open_checkpoint together with the checkpoint's name."
        )
    if choices == Choices():
        return opened
    choices = choices.over(opened.choices)
    source, others, left_out = opened.source, opened.others, opened.left_out
    again = (
        open_file(opened.place, source, choices, others, left_out)
        if opened.folder is None
        else open_folder(opened.folder, source, choices, source.variant, others, left_out)
    )
    return with_embeddings(
        _with_adapters(again, opened.adapters), [f"{one.file}:{one.token}" for one in opened.embeddings]
    )


@dataclass(frozen=True)
class _Parts:
    """Which components are read from elsewhere, and which aren't read."""

    others: Mapping[str, Replacement]
    left_out: tuple[str, ...]


def _open(name: str, revision: str | None, choices: Choices, variant: str | None, parts: _Parts) -> Checkpoint:
    path = path_of(name)
    place = str(path.resolve())
    if name in SHIPPED and not is_regular(path / "model_index.json"):  # latentc's own checkout has a folder `scenes`
        return _open_dir(SHIPPED[name], CheckpointSource("shipped", name), choices, variant, parts)
    if is_folder(path):
        return _open_dir(path, CheckpointSource("folder", place), choices, variant, parts)
    if is_regular(path):
        _refuse_variant(name, variant)
        return open_file(path, CheckpointSource("file", place), choices, parts.others, parts.left_out)
    if os.path.lexists(path):
        raise CheckpointError(f"{path} is neither a folder nor a readable file. Check the path and its links.")
    single = hub_file(name)
    if single is not None:
        _refuse_variant(name, variant)
        single = replace(single, revision=revision or single.revision)
        file, commit = fetch_file(single)
        return open_file(file, CheckpointSource("hub", single.location, commit), choices, parts.others, parts.left_out)
    repository, _, at = name.partition("@")
    if is_hub_id(repository) and path.suffix not in (".safetensors", *PICKLES):
        folder, commit = fetch(repository, revision or at or None, variant, parts.left_out)
        return _open_dir(folder, CheckpointSource("hub", repository, commit), choices, variant, parts)
    raise CheckpointError(
        f"Checkpoint {name!r} was not found: it is not a folder or file, not a hub id (owner/name or owner/name/file), "
        f"and not one of the checkpoints that ship with latentc ({', '.join(SHIPPED)}). Check the path."
    )


def _refuse_variant(name: str, variant: str | None) -> None:
    if variant is not None:
        raise CheckpointError(
            f"{name} is a single file, which has no variants, but variant {variant!r} was requested. Pass the file of "
            "that variant, or a diffusers folder."
        )


def _open_dir(
    folder: Path, source: CheckpointSource, choices: Choices, variant: str | None, parts: _Parts
) -> Checkpoint:
    index = folder / "model_index.json"
    random = is_regular(index) and "_latentc_random" in read_json(index)
    return open_folder(folder, replace(source, random=random), choices, variant, parts.others, parts.left_out)
