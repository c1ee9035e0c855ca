"""Fetching a checkpoint from the Hugging Face hub: configs, tokenizers and safetensors, never pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, RuntimeMissing
from ..core.install import install
from .card import comes_along
from .families import FAMILIES

_TIMEOUT_SECONDS = 20
_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether `name` reads like `owner/name` on the hub."""
    return bool(_ID.fullmatch(name)) and not name.startswith((".", "/"))


def fetch(repository: str, revision: str | None) -> tuple[Path, str]:
    """Download what a checkpoint needs (or find it in the cache): its folder, and its commit.

    Raises CheckpointError if the hub can't be reached and the cache doesn't have it.
    """
    try:
        import huggingface_hub
    except ImportError as exc:
        raise RuntimeMissing(f"Fetching {repository} needs huggingface_hub ({exc}). {install('export')}") from exc
    hub: Any = huggingface_hub
    try:
        info = hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        folder = hub.snapshot_download(repository, revision=revision, allow_patterns=wanted(names))
    except Exception as exc:  # refused, offline, gated, unknown: the cache may still have it
        folder = _cached(hub, repository, revision, exc)
    return Path(folder), Path(folder).name


def wanted(names: Iterable[str]) -> list[str]:
    """Of a repository's files, those that a checkpoint needs: one precision, the plain one first."""
    names = list(names)
    tokenizers = {tokenizer.name for family in FAMILIES for tokenizer in family.tokenizers}
    components = {component.name for family in FAMILIES for component in family.components}
    chosen: list[str] = []
    for name in names:
        folder, _, file = name.rpartition("/")
        small = folder in {"scheduler", *tokenizers} and file.endswith((".json", ".txt"))
        if small or name == "model_index.json" or comes_along(name) or (folder in components and file == "config.json"):
            chosen.append(name)
    for component in sorted(components):
        weights = [name for name in names if name.startswith(f"{component}/") and ".safetensors" in name]
        plain = [name for name in weights if not re.search(r"\.(fp16|bf16|non_ema)\b", name)]
        chosen += plain or [name for name in weights if "non_ema" not in name]
    return chosen


def _cached(hub: Any, repository: str, revision: str | None, cause: Exception) -> str:
    patterns = ["*.json", "*.txt", "*.md", "LICEN*", "*.safetensors"]
    try:
        return hub.snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=True)
    except Exception:
        at = f"{repository}@{revision}" if revision else repository
        reason = (str(cause).strip().split("\n")[0] or type(cause).__name__).rstrip(".")
        raise CheckpointError(
            f"{at} can't be fetched from the Hugging Face hub, and the local cache doesn't have it: {reason}. "
            "Check the name and the network, or pass the path of a local folder or .safetensors file."
        ) from cause
