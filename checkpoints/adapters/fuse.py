"""Weights fused with adapters, in numpy.

Each adapter's change is computed from the stored weight in f32 and multiplied by its strength, and the changes are
summed: the result does not depend on the order of adapters, and a strength of 0 gives the stored weight. For DoRA this
is the interpolation between the weight and the normed one that ComfyUI and AUTOMATIC1111's web UI compute; PEFT's
result is the same at strength 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core.tensors import Array
from .change import change
from .file import Slots
from .values import values_of


@dataclass(frozen=True)
class Edit:
    """A change of one weight, or of several whose rows an adapter has joined."""

    names: tuple[str, ...]
    """The weights' names, in the order of their rows."""
    slots: Slots = field(repr=False)
    scale: float
    """Alpha divided by the rank, or what stands for it."""
    strength: float = 1.0
    swapped: bool = False
    """Whether the two halves of the weight's rows are in the other order than the adapter has them."""


def fuse(weights: Mapping[str, Array], edits: Sequence[Edit]) -> dict[str, Array]:
    """The changed weights in f32, by name; `weights` are the stored ones, of any floating-point type.

    Raises CheckpointError for an adapter's tensor that isn't finite, or can't be read any more.
    """
    stored = {name: weights[name].astype(np.float32) for edit in edits for name in edit.names}
    changes: dict[str, Array] = {}
    for edit in edits:
        whole = _halves(edit, np.concatenate([stored[name] for name in edit.names]))
        values = {name: values_of(tensor) for name, tensor in edit.slots.items() if name != "alpha"}
        rows = _halves(edit, change(values, edit.slots, edit.scale, whole)) * np.float32(edit.strength)
        begin = 0
        for name in edit.names:
            end = begin + len(stored[name])
            changes[name] = changes.get(name, np.float32(0)) + rows[begin:end]
            begin = end
    return {name: stored[name] + one for name, one in changes.items()}


def too_large(name: str, dtype: str, group: Sequence[Edit]) -> str:
    """The message about a fused weight that its type has no room for."""
    files = sorted({str(tensor.file) for edit in group for tensor in edit.slots.values()})
    return (
        f"{name} is too large for {dtype} when it is fused with {' and '.join(files)}. Use a smaller strength, or a "
        "checkpoint in F32 or BF16."
    )


def apart(edits: Sequence[Edit]) -> list[tuple[Edit, ...]]:
    """The edits in groups that have no weight in common: fused one group at a time, they take the least memory."""
    groups: list[tuple[set[str], tuple[Edit, ...]]] = []
    for edit in edits:
        names = set(edit.names)
        together = [group for group in groups if not names.isdisjoint(group[0])]
        groups = [group for group in groups if names.isdisjoint(group[0])]
        joined = tuple(one for _, held in together for one in held)
        groups.append((names.union(*(held for held, _ in together)), (*joined, edit)))
    return [held for _, held in groups]


def _halves(edit: Edit, rows: Array) -> Array:
    """The rows with their two halves exchanged, if the edit says so."""
    return np.concatenate(np.split(rows, 2)[::-1]) if edit.swapped else rows
