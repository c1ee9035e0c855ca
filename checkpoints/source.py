"""Reading the small files of a checkpoint: where it came from, and its JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..core import reading
from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .families import Component, Config
from .parts import CLASSES


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint came from."""

    kind: Literal["folder", "file", "hub", "shipped"]
    location: str
    """Absolute path, hub id, or the name that ships with the package."""
    revision: str | None = None
    """Commit on the hub."""
    random: bool = False
    """Whether `new_checkpoint` wrote it: the weights are noise."""
    variant: str | None = None
    """Which weight files were asked for, where there are several: `fp16`, `ema` ..."""


def path_of(name: str) -> Path:
    """The path that a name stands for, or a CheckpointError for one that can be none."""
    try:
        path = Path(name).expanduser()
        path.resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # no such user, a loop of links, a NUL
        raise CheckpointError(f"{name!r} can't be opened ({exc}). Check the path.") from exc
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or a CheckpointError that names the file."""
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{path} is missing. A diffusers folder has one; fetch the checkpoint again, or export it once more."
        )
    return reading.read_json(path, reading.TABLE_BYTES, CheckpointError, "Fetch it again.", constants=reading.INFINITE)


def check_class(where: object, component: Component, config: Config) -> None:
    """Raise CheckpointError unless the class is the family's, and what every later stage reads is there."""
    named: Any = config.get("architectures")
    stated: Any = config.get("_class_name") or (cast("list[Any]", named)[0] if named and type(named) is list else named)
    if stated and not _is_class(component, stated):
        raise CheckpointError(
            f"{where} holds a {str(stated)[:LONGEST]}, and a {component.cls} was expected: "
            "it isn't supported yet. Pass a checkpoint with the plain component."
        )
    for key, kind in CLASSES[component.cls].required.items():
        if type(config.get(key)) is not kind:
            raise CheckpointError(
                f"{where}/config.json says {key} = {shown(config.get(key))}; "
                f"{'a list' if kind is list else 'a whole number'} was expected. "
                "Compare it with the config that the checkpoint was published with."
            )


def check_entry(where: object, component: Component, entry: object) -> None:
    """Raise CheckpointError for an entry of model_index.json that names another class, or one of another library."""
    pair: list[object] = cast("list[object]", entry) if isinstance(entry, list) else [entry]
    if pair in ([None], [None, None]):
        return
    if len(pair) != 2 or pair[0] != component.library or not _is_class(component, pair[1]):
        stated: object = pair if isinstance(entry, list) else pair[0]
        raise CheckpointError(
            f"{where} says {component.name} = {shown(stated)}; [{component.library!r}, {component.cls!r}] was "
            "expected: another class isn't supported yet. Pass a checkpoint with the plain component."
        )


_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


def _is_class(component: Component, stated: object) -> bool:
    """Some exports say CLIPTextModel of an encoder with a projection, or the reverse: the tensors tell in any case."""
    return stated == component.cls or (component.cls in _CLIP and stated in _CLIP)
