"""Licence files and model card of a checkpoint, and the licence that they declare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.reading import CONFIG_BYTES, read_small

README = "README.md"
MAX_FILES = 16
MAX_VALUE = 200
"""Characters of a declared value; published ones have fewer than 50."""
MAX_LINES = 1000
"""Lines of a card's metadata."""

_NAMES = re.compile(r"(licen[cs]e|copying|notice|terms|use[_-]?policy)[\w.-]*", re.IGNORECASE)
_ENDINGS = ("", ".md", ".txt", ".rst", ".html", ".pdf")
_KEY = re.compile(r"(license|license_name|license_link)\s*:\s*(.*)")
_MODELSPEC = "modelspec.license"


@dataclass(frozen=True)
class Card:
    """A checkpoint's declared licence, and its licence files and model card."""

    license: str | None = None
    """The hub's identifier, such as `creativeml-openrail-m`; None if none is declared."""
    name: str | None = None
    link: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    """Unmodified contents of the licence files and the model card, by name."""


def comes_along(name: str) -> bool:
    """Whether a file beside `model_index.json` is a licence or the model card."""
    return name == README or bool(_NAMES.fullmatch(name) and Path(name).suffix.lower() in _ENDINGS)


def read_card(folder: Path) -> tuple[Card, list[str]]:
    """Licence and model card of a folder, and notices about those that can't be read."""
    files: dict[str, bytes] = {}
    notices: list[str] = []
    try:
        there = sorted(path.name for path in folder.iterdir() if comes_along(path.name) and path.is_file())
    except OSError:
        there = []  # a folder that can be entered but not listed
    for name in there[:MAX_FILES]:
        try:
            files[name] = read_small(folder / name, CONFIG_BYTES, CheckpointError, "")
        except CheckpointError as exc:
            notices.append(f"{name} is left out of the bundle: {str(exc).strip()}")
    declared = _declared(files.get(README, b"").decode("utf-8", "replace"))
    return Card(declared.get("license"), declared.get("license_name"), declared.get("license_link"), files), notices


def stated_card(metadata: Mapping[str, object]) -> Card:
    """The licence that a single file's metadata declares."""
    stated = metadata.get(_MODELSPEC)
    return Card(_clean(stated) if isinstance(stated, str) else None)


def _declared(card: str) -> dict[str, str]:
    """The licence keys in a model card's metadata: `key: value` between two lines of dashes, at its start."""
    lines = card.removeprefix("\ufeff").splitlines()[:MAX_LINES]
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key: str | None = None
    for line in lines[1:]:
        if line.strip() == "---":
            return {key: text for key, values in found.items() if (text := _clean(", ".join(filter(None, values))))}
        if match := _KEY.fullmatch(line.rstrip()):
            key = str(match[1])
            found[key] = [_scalar(one) for one in match[2].strip("[]").split(",")]
        elif key and line.lstrip().startswith("- "):
            found[key].append(_scalar(line.lstrip()[2:]))
        else:
            key = None
    return {}


def _scalar(text: str) -> str:
    return text.partition(" #")[0].strip().strip("\"'")


def _clean(text: str) -> str | None:
    """The text as one printable, short line; None if nothing is left."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:MAX_VALUE] or None
