"""Stored tensors as they are indexed and transposed on the way to a module: plans of what is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Literal

import numpy as np

from .stored import StoredTensor

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]
Stored = Mapping[str, StoredTensor]
Plan = dict[str, "View"]
"""For each tensor of a module, the stored tensor and how it is read."""


@dataclass(frozen=True)
class View:
    """A stored tensor, and the indexing and transposing that turn it into a module's tensor.

    It implements the tensor operations that diffusers' conversion uses, and records them.
    """

    stored: StoredTensor
    shape: tuple[int, ...]
    steps: tuple[Index | Literal["T", "swap", "identity"], ...] = ()
    """Applied in order. `T` reverses the axes, `swap` exchanges the two halves of the first axis, and `identity` is
    the identity matrix of the tensor's size."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def T(self) -> View:  # noqa: N802 - the name that tensors have
        """The view with its axes reversed."""
        return replace(self, shape=self.shape[::-1], steps=(*self.steps, "T"))

    def __getitem__(self, index: Index) -> View:
        shape = np.broadcast_to(np.int8(0), self.shape)[index].shape
        return replace(self, shape=shape, steps=(*self.steps, index))

    def swapped(self) -> View:
        """The view with the two halves of its first axis exchanged."""
        return replace(self, steps=(*self.steps, "swap"))

    def contiguous(self) -> View:
        """The view itself: what is finally read is contiguous."""
        return self

    def clone(self) -> View:
        """The view itself: nothing is shared."""
        return self

    def detach(self) -> View:
        """The view itself: nothing has gradients."""
        return self


def views(tensors: Stored) -> Plan:
    """A view of each tensor as it is stored."""
    return {name: View(tensor, tensor.shape) for name, tensor in tensors.items()}
