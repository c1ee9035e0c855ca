"""Hooks that record the calls of parts in diffusers' pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.parts import PartSpec
from ..core.references import IDS, MASK
from ..core.tensors import Array
from ..core.wires import TIMESTEP

if TYPE_CHECKING:
    import torch


@contextmanager
def unhooked(hook: Any, vae: Any, pipeline: Any) -> Generator[None]:
    """Remove the hook of the denoiser and the recorders of the VAE and of the pipeline's latents in the end."""
    try:
        yield
    finally:
        hook.remove()
        for owner, name in ((vae, "decode"), (vae, "encode"), (pipeline, "prepare_latents")):
            if name in vars(owner):
                delattr(owner, name)


def first(value: Any) -> Any:
    """The first of several values, or a value alone."""
    return cast("tuple[Any, ...]", value)[0] if isinstance(value, tuple) else value


def calling(spec: PartSpec, component: torch.nn.Module) -> torch.nn.Module:
    """A stand-in for the component whose calls go through a variant's own `call`."""
    import torch

    names = tuple(tensor.name for tensor in spec.outputs)

    class Variant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = component
            """The component, whose signature the calls have."""

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(component, name)

        def forward(self, *arguments: Any, **given: Any) -> Any:
            fed = arguments_of(component, arguments, given)
            fed[TIMESTEP] = one_timestep(fed[TIMESTEP])
            return spec.call(component, names, *(fed[tensor.name] for tensor in spec.inputs))

    return Variant().eval()


def arguments_of(module: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by parameter name; the entries of a dict argument by their own keys."""
    bound = inspect.signature(getattr(module, "whole", module).forward).bind(*arguments, **given).arguments
    fed: dict[str, Any] = {}
    for name, value in bound.items():
        fed |= cast("dict[str, Any]", value) if isinstance(value, dict) else {name: value}
    return fed


def one_timestep(timesteps: Any) -> torch.Tensor:
    """The timestep of a call, [1]: some pipelines give it for every row."""
    import torch

    return torch.as_tensor(timesteps).float().reshape(-1)[:1]


def keeping(rows: list[dict[str, Array]]) -> Any:
    """A hook that appends the inputs of a text encoder's calls to `rows`, row by row."""

    def hook(_module: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        tensors = {IDS: arguments[0] if arguments else given[IDS], MASK: given.get(MASK)}
        arrays = {
            name: tensor.detach().numpy().astype(np.int64) for name, tensor in tensors.items() if tensor is not None
        }
        rows.extend(dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True))

    return hook
