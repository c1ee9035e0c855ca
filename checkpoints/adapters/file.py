"""An adapter's file: its tensors by module, before it is known what model it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import CheckpointError
from ...core.files import sha256
from ...core.reading import unreadable
from ..source import CheckpointSource
from ..stored import StoredTensor, read_header, refuse_pickle
from .slots import split, unsupported
from .statements import Statement, statements

Slots = Mapping[str, StoredTensor]
"""The tensors of one module by their function, such as `up` and `down`."""

OTHER = "LoRA, LoCon, LoHa, LoKr, DoRA and full differences are supported."
AGAIN = "Download the adapter again, or ask its author."


@dataclass(frozen=True)
class AdapterFile:
    """The header of an adapter's file, which has been checked; its values stay on disk."""

    source: CheckpointSource
    path: Path
    sha256: str
    weights_sha256: str
    """Of what follows the header: the digest by which kohya's tools and the web UI know a file."""
    modules: Mapping[str, Slots] = field(repr=False)
    """By the module's name as the file spells it."""
    statements: Mapping[str, Statement] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name without its suffix, as prompts of other tools call it."""
        return self.path.stem

    @property
    def kind(self) -> str:
        """The kinds of its modules, such as `LoRA` or `DoRA, full difference`."""
        found = {kind_of(slots) for slots in self.modules.values()}
        return ", ".join(kind for kind in KINDS if kind in found)

    def stated(self, module: str) -> tuple[Statement, str] | None:
        """The statement about a module, and the module's name in it; None if there is none."""
        for prefix, statement in self.statements.items():
            if module.startswith(prefix):
                return statement, module.removeprefix(prefix)
        return None


KINDS = ("LoRA", "LoCon", "LoHa", "LoKr", "DoRA", "full difference")


def kind_of(slots: Slots) -> str:
    """The kind of one module's adapter: DoRA for one of any kind whose norm is stored too."""
    if "dora_scale" in slots or "magnitude" in slots:
        return "DoRA"
    if any(name.startswith("hada_") for name in slots):
        return "LoHa"
    if any(name.startswith("lokr_") for name in slots):
        return "LoKr"
    if "up" in slots or "down" in slots:
        down = slots.get("down")
        return "LoCon" if "mid" in slots or (down is not None and set(down.shape[2:]) - {1}) else "LoRA"
    return "full difference"


def read_adapter(path: Path, source: CheckpointSource) -> AdapterFile:
    """Read the header of an adapter's file.

    Raises CheckpointError for a file that is pickled, damaged, or not an adapter, and for a kind of adapter that is not
    supported.
    """
    refuse_pickle(path)
    tensors, metadata = read_header(path)
    modules: dict[str, dict[str, StoredTensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if what := unsupported(key):
            raise CheckpointError(f"{path} holds {what} ({key!r}), which is not supported. {OTHER}")
        found = split(key)
        if found is None:
            unknown.append(key)
            continue
        module, slot = found
        slots = modules.setdefault(module, {})
        if slot in slots:
            raise CheckpointError(f"{path} holds two tensors for one module: {slots[slot].name!r} and {key!r}. {AGAIN}")
        slots[slot] = tensor
    if not modules:
        first = f"its first tensor is {min(tensors)!r}" if tensors else "it has no tensors"
        raise CheckpointError(f"{path} is not a LoRA ({first}). {OTHER}")
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"{path} holds {min(unknown)!r}{more}, which latentc cannot apply, so the adapter would not have its full "
            f"effect. {OTHER}"
        )
    try:
        digests = sha256(path), sha256(path, start=min(one.begin for one in tensors.values()))
    except (OSError, ValueError) as exc:
        raise CheckpointError(unreadable(path, exc, "Check the path and its permissions.")) from exc
    return AdapterFile(source, path, *digests, modules, statements(path, tensors, metadata), metadata)
