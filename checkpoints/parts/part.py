"""What an export needs to know about a class of components: its parts, and the fields of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.manifest import TensorInfo
from ...core.model import Role
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
    """Takes the component's module, the output names and the inputs in order; returns the outputs in order."""
    wires: tuple[Wire, ...] = ()
    """Sources of those inputs that are fed the same way in every family."""
    tracing: Callable[[Any], AbstractContextManager[None]] | None = None
    """A context for the component's module while it is traced, where the tracer needs a hint."""
    wide: tuple[str, ...] = ()
    """Modules whose own operators stay in f32 where an engine computes in f16: regular expressions of their paths."""
    patch: int = 1
    """Heights and widths in latents are multiples of this."""
    largest_side: int | None = None
    """Largest height and width in latents; None for no limit."""
    also: tuple[str, ...] = ()
    """Further components of the part: `call` takes their modules, in this order, as `also`."""
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Ranges of free sizes to give to the tracer instead of its own (`export.trace.LIMITS`)."""

    def takes(self, name: str) -> bool:
        """Whether it has an input of this name."""
        return any(tensor.name == name for tensor in self.inputs)


@dataclass(frozen=True)
class ComponentClass:
    """A class of components, from diffusers, transformers or a family's own module."""

    parts: Callable[[Checkpoint, Component], tuple[PartSpec, ...]]
    """The parts that it is exported to, in the order in which an image needs them; variants follow their part."""
    reads: frozenset[str]
    """Config fields that its constructor takes, so that they have an effect."""
    required: Mapping[str, type] = field(default_factory=dict[str, type])
    """Fields that all published configs have. Others may be missing: the libraries have defaults."""
    null: tuple[str, ...] = ()
    """Fields that may be null, although its constructor declares another type."""
    unused: tuple[str, ...] = ()
    """Modules of the component that no part calls: they are not loaded, and files may lack them."""


def floats(name: str, *shape: int | str) -> TensorInfo:
    """An f32 tensor."""
    return TensorInfo(name=name, dtype="float32", shape=shape)
