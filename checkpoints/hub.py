"""Downloading a checkpoint from the Hugging Face hub: configs, tokenizers and safetensors, never pickles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import CheckpointError, RuntimeMissing
from ..core.install import install
from .card import comes_along
from .families import FAMILIES
from .files import FALLBACKS, variant_of
from .statements import BESIDE

_TIMEOUT_SECONDS = 20
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^/@\s]+))?/(\S+\.(?:safetensors|sft))")
_ADDRESS = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/(\S+?)(?:\?download=true)?")
_BLOB = re.compile(r"([\w.-]+/[\w.-]+)/(?:blob|resolve|raw)/([^/\s]+)/(\S+)")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name`."""
    return bool(_ID.fullmatch(name)) and not name.startswith((".", "/"))


@dataclass(frozen=True)
class HubFile:
    """A single file of a repository on the hub."""

    repository: str
    path: str
    revision: str | None = None

    @property
    def location(self) -> str:
        """The name that `hub_file` parses, without the revision."""
        return f"{self.repository}/{self.path}"


def hub_file(name: str) -> HubFile | None:
    """Parse `owner/name/path.safetensors`, or the file's URL on huggingface.co; None for anything else.

    A revision is written `owner/name@revision/path`; in a URL it is in its usual place.
    """
    found = _ADDRESS.fullmatch(name)
    if found is not None:
        rest = _BLOB.fullmatch(found[1])
        if rest is not None:
            revision = None if rest[2] == "main" else rest[2]
            return HubFile(rest[1], rest[3], revision) if _is_path(rest[3]) else None
        name = found[1]
    match = _FILE.fullmatch(name)
    if match is None or name.startswith((".", "/")) or not _is_path(match[3]):
        return None
    return HubFile(match[1], match[3], match[2])


def fetch_file(file: HubFile) -> tuple[Path, str]:
    """Download a single file and its companion files, or find them in the cache: its path and its commit.

    Raises CheckpointError if neither the repository nor the cache has it, or the hub can't be reached.
    """
    hub = _library(file.repository)
    try:
        path = hub.hf_hub_download(file.repository, file.path, revision=file.revision, etag_timeout=_TIMEOUT_SECONDS)
        info = hub.HfApi().model_info(file.repository, revision=_commit(file, path), timeout=_TIMEOUT_SECONDS)
        listed = [sibling.rfilename for sibling in info.siblings or ()]
    except Exception as exc:  # refused, offline, gated, unknown: the cache may still have it
        try:
            path = hub.hf_hub_download(file.repository, file.path, revision=file.revision, local_files_only=True)
        except Exception:
            raise _unreachable(f"{file.location}{f'@{file.revision}' if file.revision else ''}", exc) from exc
        listed = []  # its companion files are in the cache too
    commit = _commit(file, path)
    for name in with_file(listed, file.path):
        try:
            hub.hf_hub_download(file.repository, name, revision=commit, etag_timeout=_TIMEOUT_SECONDS)
        except Exception as exc:
            raise _unreachable(f"{file.repository}/{name}", exc) from exc
    return Path(path), commit


def with_file(names: Iterable[str], path: str) -> list[str]:
    """The companion files of a single file in a repository: its configs, licence and model card."""
    one = PurePosixPath(path)
    beside = {str(one.with_name("config.json")), *(str(one.with_name(one.stem + ending)) for ending in BESIDE)}
    return [name for name in names if name in beside or comes_along(name)]


def _commit(file: HubFile, path: str) -> str:
    """The commit of a downloaded file: the name of the repository's snapshot folder in the cache."""
    return Path(path).parents[len(PurePosixPath(file.path).parts) - 1].name


def fetch(
    repository: str, revision: str | None, variant: str | None = None, left_out: Collection[str] = ()
) -> tuple[Path, str]:
    """Download the files that a checkpoint needs, or find them in the cache: its folder and its commit.

    Raises CheckpointError if the hub can't be reached and the cache doesn't have it.
    """
    hub = _library(repository)
    try:
        info = hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        folder = hub.snapshot_download(
            repository, revision=revision, allow_patterns=_asked(repository, names, variant, left_out)
        )
    except CheckpointError:
        raise
    except Exception as exc:  # refused, offline, gated, unknown: the cache may still have it
        folder = _cached(hub, repository, revision, exc)
    return Path(folder), Path(folder).name


def _library(repository: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as exc:
        raise RuntimeMissing(f"Downloading {repository} needs huggingface_hub ({exc}). {install('export')}") from exc
    return huggingface_hub


def _asked(repository: str, names: list[str], variant: str | None, left_out: Collection[str]) -> list[str]:
    """The files to download; raises CheckpointError for a repository of single files."""
    single = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if "model_index.json" not in names and "config.json" not in names and single:
        named = ", ".join(f"{repository}/{name}" for name in single[:5])
        raise CheckpointError(
            f"{repository} has no model_index.json, only {len(single)} single files. Pass one of them: {named}."
        )
    return [name for name in wanted(names, variant) if name.partition("/")[0] not in left_out]


def wanted(names: Iterable[str], variant: str | None = None) -> list[str]:
    """The files of a repository that a checkpoint needs, with the weights of `variant`, or the plain ones if None.

    For a component without that variant, its plain weights. A repository of one component (`config.json` at the
    top) is read as that component's folder.
    """
    names = list(names)
    tokenizers = {tokenizer.name for family in FAMILIES for tokenizer in family.tokenizers}
    components = {one.name: one for family in FAMILIES for one in family.components}
    processors = {family.processor for family in FAMILIES if family.processor is not None}
    if any(name.partition("/")[0] in tokenizers for name in names):  # only a model without a prompt reads an image
        texts = {one.name for family in FAMILIES if family.tokenizers for one in family.components}
        components, processors = {name: one for name, one in components.items() if name in texts}, set[str]()
    chosen: list[str] = []
    for name in names:
        folder, _, file = name.rpartition("/")
        small = folder in {"scheduler", *tokenizers, *processors} and file.endswith((".json", ".txt"))
        if (
            small
            or name in ("model_index.json", "config.json")
            or comes_along(name)
            or (folder in components and file == "config.json")
        ):
            chosen.append(name)
    for folder, component in sorted((*components.items(), ("", components["unet"]))):
        start = f"{folder}/" if folder else ""
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        weights = [name for name in inside if name.startswith(component.stem) and ".safetensors" in name]
        if not folder and ("config.json" not in inside or "model_index.json" in inside):
            continue
        by_variant: dict[str | None, list[str]] = {}
        for name in weights:
            by_variant.setdefault(variant_of(name, component.stem), []).append(f"{start}{name}")
        order = (variant, None, *FALLBACKS)
        chosen += next((by_variant[one] for one in order if one in by_variant), list[str]())
    return chosen


def _cached(hub: Any, repository: str, revision: str | None, cause: Exception) -> str:
    patterns = ["*.json", "*.txt", "*.md", "LICEN*", "*.safetensors"]
    try:
        return hub.snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=True)
    except Exception:
        raise _unreachable(f"{repository}@{revision}" if revision else repository, cause) from cause


def _unreachable(what: str, cause: Exception) -> CheckpointError:
    reason = (str(cause).strip().split("\n")[0] or type(cause).__name__).rstrip(".")
    return CheckpointError(
        f"{what} could not be downloaded from the Hugging Face hub and is not in the local cache: {reason}. "
        "Check the name and the network, or pass the path of a local folder or .safetensors file."
    )


def _is_path(path: str) -> bool:
    return ".." not in path.split("/") and "\\" not in path
