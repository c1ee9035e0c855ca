"""Results of the proofs that ran on this machine, stored outside the bundles: a bundle cannot vouch for itself.

<state>/proofs/<key>.json     one sealed figure; the key is a digest of everything that the figure depends on

The folder is `LATENTC_STATE` if set, otherwise the user's state folder of the operating system.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_state_path

from .files import read_sealed, sha256_json, write_sealed
from .reading import read_bounded
from .record import Record

GATE_VERSION = 3
"""Part of every key. Increase it when what is proved changes, or how."""

STATE = "LATENTC_STATE"

Kind = TypeVar("Kind", bound=Record)


def state_folder() -> Path:
    """The folder in which this user's proofs are stored."""
    return Path(os.environ.get(STATE) or user_state_path("latentc", appauthor=False)).absolute()


def record_key(what: str, facts: dict[str, Any]) -> str:
    """The name of a record: its kind, and a digest of everything that its figure depends on."""
    of = {"gate": GATE_VERSION, "what": what, "machine": _machine(), **facts}
    return f"{what}-{sha256_json(of)[:32]}"


def _machine() -> str:
    """An id that distinguishes machines sharing a state folder; empty if unknown."""
    try:
        return read_bounded("/etc/machine-id", 1000).decode("ascii", "replace").strip()
    except OSError:
        return ""


def recall(key: str, kind: type[Kind]) -> Kind | None:
    """Read what `remember` wrote on this machine; None if there is nothing, or it cannot be read."""
    try:
        return kind.model_validate(read_sealed(_path(key)))
    except (OSError, ValueError):
        return None


def remember(key: str, record: Record) -> bool:
    """Store a figure; returns whether that succeeded. If it did not, each load proves again."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, record.model_dump(mode="json"))
    except OSError:
        return False
    return True


GRAPH_DB = 100.0
"""PSNR that an exported graph, run in f32, must reach against PyTorch. Correct graphs reach 120 or more."""


class GraphFigure(Record):
    """Parity of an exported graph, run in f32, with PyTorch: the worst of its references."""

    psnr_db: float
    worst: str
    """The output and reference with the worst figure, such as `out_sample of whole.0`."""
    run_by: str
    exported_here: bool = False
    """Whether the graph was exported on this machine."""


def graph_key(part: str, references: str) -> str:
    """The record key of a graph's figure, from the digests of the part and of its reference file."""
    return record_key("graph", {"part": part, "references": references})


def _path(key: str) -> Path:
    return state_folder() / "proofs" / f"{key}.json"
