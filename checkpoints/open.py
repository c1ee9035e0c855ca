"""Opening a checkpoint by name: a folder, a file, a hub id, or one that ships with the package."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.reading import is_folder, is_regular
from .checkpoint import Checkpoint
from .families import find_family
from .folder import open_folder
from .hub import fetch, is_hub_id
from .original import open_file
from .source import Source, read_json
from .stored import PICKLES

__all__ = ["PREDICTIONS", "SHIPPED", "Checkpoint", "Source", "open_checkpoint"]

SHIPPED: dict[str, Path] = {"scenes": Path(__file__).parent.parent / "scenes" / "checkpoint"}
"""Checkpoints that ship with the package, by name: folders in diffusers' layout."""

PREDICTIONS = ("epsilon", "v_prediction")


def open_checkpoint(
    name: Checkpoint | Path | str,
    *,
    revision: str | None = None,
    family: str | None = None,
    prediction: str | None = None,
) -> Checkpoint:
    """Open a checkpoint: recognize it, check its files, read its configs, and leave the weights on disk.

    `name` is a diffusers folder, a `.safetensors` file in the original layout, a name in `SHIPPED`,
    or a hub id `owner/name`, with `@revision` or `revision`. An existing path goes first; for a name in
    `SHIPPED`, if it is a checkpoint. A checkpoint that is open already is taken as it is.

    `family` is what the checkpoint must be; anything else is refused. `prediction` (`epsilon` or
    `v_prediction`) overrides what the scheduler config says. A single file doesn't say: Stable
    Diffusion 2 is taken for the 768-pixel one that predicts v, so its 512-pixel base and turbo
    versions need `prediction="epsilon"`.

    Raises CheckpointError if it isn't there, isn't sound, or isn't supported.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise CheckpointError(f"There is no prediction {prediction!r}. It is one of: {', '.join(PREDICTIONS)}.")
    wanted = find_family(family) if family is not None else None
    opened = name if isinstance(name, Checkpoint) else _open(str(name), revision, prediction)
    if wanted is not None and opened.family != wanted:
        raise CheckpointError(
            f"{name} is a {opened.family.title} checkpoint ({opened.family.name}), and {wanted.name} was asked for. "
            "Pass the other family, or none: it is recognized."
        )
    if prediction is not None:
        opened = replace(opened, scheduler=opened.scheduler | {"prediction_type": prediction})
    return opened


def _open(name: str, revision: str | None, prediction: str | None) -> Checkpoint:
    try:
        path = Path(name).expanduser()
        place = str(path.resolve())
    except (OSError, RuntimeError, ValueError) as exc:  # no such user, a loop of links, a NUL
        raise CheckpointError(f"{name!r} can't be opened ({exc}). Check the path.") from exc
    if name in SHIPPED and not is_regular(path / "model_index.json"):  # latentc's own checkout has a folder `scenes`
        return _open_dir(SHIPPED[name], Source("shipped", name))
    if is_folder(path):
        return _open_dir(path, Source("folder", place))
    if is_regular(path):
        return open_file(path, Source("file", place), prediction)
    if os.path.lexists(path):
        raise CheckpointError(f"{path} is neither a folder nor a file that can be read. Check the path, and its links.")
    repository, _, at = name.partition("@")
    if is_hub_id(repository) and path.suffix not in (".safetensors", *PICKLES):
        folder, commit = fetch(repository, revision or at or None)
        return _open_dir(folder, Source("hub", repository, commit))
    raise CheckpointError(
        f"There is no checkpoint {name!r}: no such folder or file, not a hub id (owner/name), and not one that ships "
        f"with latentc ({', '.join(SHIPPED)}). Check the path."
    )


def _open_dir(folder: Path, source: Source) -> Checkpoint:
    index = folder / "model_index.json"
    random = is_regular(index) and "_latentc_random" in read_json(index)
    return open_folder(folder, replace(source, random=random))
