"""What this machine has proved, kept outside every bundle: a bundle's own word for it proves nothing here.

<state>/proofs/<key>.json     one figure each, sealed; the key is a digest of all that the figure depends on

The folder is `LATENTC_STATE` where that is set, else the user's state folder as the system has it.
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
"""Part of every key: raised when what is proved, or how, changes."""

STATE = "LATENTC_STATE"

Kind = TypeVar("Kind", bound=Record)


def state_folder() -> Path:
    """Where this user's machine keeps what it has proved."""
    return Path(os.environ.get(STATE) or user_state_path("latentc", appauthor=False)).absolute()


def record_key(what: str, facts: dict[str, Any]) -> str:
    """The name of a record: a digest of what it is of, and of all that its figure depends on."""
    of = {"gate": GATE_VERSION, "what": what, "machine": _machine(), **facts}
    return f"{what}-{sha256_json(of)[:32]}"


def _machine() -> str:
    """What distinguishes this machine from others that see the same state folder; empty where nothing says it."""
    try:
        return read_bounded("/etc/machine-id", 1000).decode("ascii", "replace").strip()
    except OSError:
        return ""


def recall(key: str, kind: type[Kind]) -> Kind | None:
    """What `remember` wrote on this machine; None where it wrote nothing, or can't be read."""
    try:
        return kind.model_validate(read_sealed(_path(key)))
    except (OSError, ValueError):
        return None


def remember(key: str, record: Record) -> bool:
    """Keep a figure; whether that was possible. Where it wasn't, each load proves again."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, record.model_dump(mode="json"))
    except OSError:
        return False
    return True


GRAPH_DB = 100.0
"""How near an exported graph, run in f32, must come to PyTorch. Sound ones reach 120 and more."""


class GraphFigure(Record):
    """How near an exported graph, run in f32, came to PyTorch: the worst of its references."""

    psnr_db: float
    worst: str
    """Output and reference, as `out_sample of whole.0`."""
    run_by: str
    exported_here: bool = False
    """Whether this machine exported the graph, rather than found it in a bundle."""


def graph_key(part: str, references: str) -> str:
    """What a graph's figure is remembered under: digests of the part, and of the file of its references."""
    return record_key("graph", {"part": part, "references": references})


def _path(key: str) -> Path:
    return state_folder() / "proofs" / f"{key}.json"
