"""Reading the small files of a checkpoint: where it came from, and its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..core.errors import CheckpointError

JSON_LIMIT = 64_000_000  # a shard index or a tokenizer is a few MB


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
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise CheckpointError(f"{path} is larger than {JSON_LIMIT} bytes, so it is no config. Fetch it again.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(
            f"{path} is missing. A diffusers folder has one; fetch the checkpoint again, or export it once more."
        ) from exc
    except OSError as exc:
        raise CheckpointError(f"{path} can't be read: {exc.strerror or exc}. Check its permissions.") from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not valid JSON ({exc}). Fetch it again.") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, and a JSON object was expected. Fetch it again.")
    return cast("dict[str, Any]", found)
