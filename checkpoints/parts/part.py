"""What a class of components is to an export: its parts, and the fields of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.manifest import Role, TensorInfo
from ...core.wires import Wire

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


@dataclass(frozen=True)
class PartSpec:
    """One part: the component it comes from, its tensors, and how the component is called."""

    name: str
    role: Role
    component: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    call: Callable[..., tuple[Any, ...]]
    """Takes the component's module, the output names and the inputs in order; gives the outputs in order."""
    wires: tuple[Wire, ...] = ()
    """How its inputs are fed whose sources are the same in every family."""
    tracing: Callable[[Any], AbstractContextManager[None]] | None = None
    """Holds the component's module while it is traced, where the tracer needs a hint."""

    def takes(self, name: str) -> bool:
        """Whether it has an input of this name."""
        return any(tensor.name == name for tensor in self.inputs)


@dataclass(frozen=True)
class ComponentClass:
    """A class of diffusers, transformers or a family's own, as checkpoints have it."""

    parts: Callable[[Checkpoint, Component], tuple[PartSpec, ...]]
    """What it is exported to, in the order a picture needs them; a variant after the part it is one of."""
    reads: frozenset[str]
    """Fields of its config that its constructor takes: the module is built from it, so they are honoured."""
    required: Mapping[str, type] = field(default_factory=dict[str, type])
    """Fields that published configs have never left out. Others may be missing: the libraries have defaults."""


def floats(name: str, *shape: int | str) -> TensorInfo:
    """A tensor of f32."""
    return TensorInfo(name=name, dtype="float32", shape=shape)
