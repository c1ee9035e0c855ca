"""Opening adapters by name: a file, or a file of a repository on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...core.errors import CheckpointError
from ...core.reading import is_folder, is_regular
from ..hub import fetch_file, hub_file
from ..source import CheckpointSource, path_of
from ..stored import refuse_pickle
from .file import AdapterFile, read_adapter


def open_adapters(wanted: Mapping[str, float]) -> list[tuple[AdapterFile, float]]:
    """Read the headers of adapters, with their strengths.

    Raises CheckpointError for a name that is no file, and what `read_adapter` raises.
    """
    return [(_open(name), strength) for name, strength in wanted.items()]


def strengths(texts: Iterable[str]) -> dict[str, float]:
    """The names and strengths of texts such as `FILE:0.8`; raises CheckpointError for a file that is given twice."""
    found: dict[str, float] = {}
    for text in texts:
        name, strength = with_strength(text)
        if name in found:
            raise CheckpointError(f"The adapter {name!r} was given twice. Give it once, with the sum of its strengths.")
        found[name] = strength
    return found


def with_strength(text: str) -> tuple[str, float]:
    """The name and the strength in `FILE:0.8`; 1 without a strength.

    Only a number behind the last colon is a strength, since names may have colons too.
    """
    name, colon, number = text.rpartition(":")
    try:
        return (name, float(number)) if colon and name else (text, 1.0)
    except ValueError:
        return text, 1.0


def _open(name: str) -> AdapterFile:
    path = path_of(name)
    if is_regular(path):
        return read_adapter(path, CheckpointSource("file", str(path.absolute())))
    if is_folder(path):
        raise CheckpointError(
            f"{name} is a folder, but the .safetensors file of an adapter was expected. Pass the file in it, such as "
            f"{path / 'pytorch_lora_weights.safetensors'}."
        )
    if not os.path.lexists(path) and (single := hub_file(name)) is not None:
        file, commit = fetch_file(single)
        return read_adapter(file, CheckpointSource("hub", single.location, commit))
    refuse_pickle(Path(name))
    raise CheckpointError(
        f"The adapter {name!r} was not found: it is not a file, and not a file on the hub "
        "(owner/name/file.safetensors). Check the path."
    )
