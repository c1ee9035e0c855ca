"""Where a checkpoint came from, and reading its JSON files."""

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
    """Absolute path, hub id, or name of a checkpoint that ships with the package."""
    revision: str | None = None
    """Commit on the Hugging Face hub."""
    random: bool = False
    """Whether `new_checkpoint` wrote it: the weights are noise."""
    variant: str | None = None
    """Which weight files were requested, where there are several: `fp16`, `ema` ..."""


ADAPTERS = Path(__file__).parent.parent / "scenes" / "adapters"
"""Adapters of the checkpoint `scenes`, which ship with the package."""

SHIPPED_ADAPTERS: dict[str, Path] = {
    "scenes/ember": ADAPTERS / "ember.safetensors",
    "scenes/lcm": ADAPTERS / "lcm.safetensors",
    "scenes/edges": ADAPTERS / "edges",
    "scenes/tiny": ADAPTERS / "tiny",
}
"""LoRAs, a ControlNet and a tiny decoder of `scenes`, by the names that stand for them."""


def path_of(name: str) -> Path:
    """The path that a name stands for: of an adapter of `scenes`, unless there is a file of that name, or the name
    itself. Raises CheckpointError if it can't be a path.
    """
    try:
        path = Path(name).expanduser()
        path.resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # no such user, a loop of links, a NUL
        raise CheckpointError(f"{name!r} cannot be opened ({exc}). Check the path.") from exc
    return SHIPPED_ADAPTERS.get(name, path) if not os.path.lexists(path) else path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises a CheckpointError that names the file."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} is missing, and a diffusers folder needs it. Download the checkpoint again.")
    return reading.read_json(
        path, reading.TABLE_BYTES, CheckpointError, "Download it again.", constants=reading.INFINITE
    )


def check_class(where: object, component: Component, config: Config) -> None:
    """Raise CheckpointError unless the class is the family's and the config has every key that later stages read."""
    named: Any = config.get("architectures")
    stated: Any = config.get("_class_name") or (cast("list[Any]", named)[0] if named and type(named) is list else named)
    if stated and not _is_class(component, stated):
        raise CheckpointError(
            f"{where} holds the class {str(stated)[:LONGEST]}, which is not supported here; {component.cls} was "
            f"expected. Pass a {component.name} of that class."
        )
    for key, kind in CLASSES[component.cls].required.items():
        if type(config.get(key)) is not kind:
            raise CheckpointError(
                f"{where}/config.json has {key} = {shown(config.get(key))}; "
                f"{'a list' if kind is list else 'an integer'} was expected. "
                "Compare it with the config that the checkpoint was published with."
            )


def check_entry(where: object, component: Component, entry: object) -> None:
    """Raise CheckpointError for an entry of model_index.json that names another class or library."""
    pair: list[object] = cast("list[object]", entry) if isinstance(entry, list) else [entry]
    if pair in ([None], [None, None]):
        return
    if len(pair) != 2 or pair[0] != component.library or not _is_class(component, pair[1]):
        stated: object = pair if isinstance(entry, list) else pair[0]
        raise CheckpointError(
            f"{where} has {component.name} = {shown(stated)}, which is not supported yet; [{component.library!r}, "
            f"{component.cls!r}] was expected. Use a checkpoint with the standard component."
        )


_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


def _is_class(component: Component, stated: object) -> bool:
    """Some exports name CLIPTextModel for an encoder with a projection, or the reverse: the tensors decide."""
    return stated == component.cls or (component.cls in _CLIP and stated in _CLIP)
