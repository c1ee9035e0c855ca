"""Reading the small files of a checkpoint: where it came from, and its JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core import reading
from ..core.errors import CheckpointError


@dataclass(frozen=True)
class Source:
    """Where a checkpoint came from."""

    kind: Literal["folder", "file", "hub", "shipped"]
    location: str
    """Absolute path, hub id, or the name that ships with the package."""
    revision: str | None = None
    """Commit on the hub."""
    random: bool = False
    """Whether `new_checkpoint` wrote it: the weights are noise."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or a CheckpointError that names the file."""
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{path} is missing. A diffusers folder has one; fetch the checkpoint again, or export it once more."
        )
    return reading.read_json(path, reading.TABLE_BYTES, CheckpointError, "Fetch it again.", constants=reading.INFINITE)
