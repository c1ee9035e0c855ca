"""What a pipeline asks of the floor below: an engine for a part, by the shapes it will be fed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..core.engine import Engine


class EngineProvider(Protocol):
    """The engines of one bundle under one profile. Safe to use from several threads."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of how they were proved."""
        ...

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """Return the engine built for exactly these input shapes, or the one for every shape.

        Raises `ShapeError` saying which sizes are built and what to do.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What runs each part, as `openvino 2026.4.1 CPU bf16`."""
        ...

    def close(self) -> None:
        """Give back memory. None of the engines can be used after."""
        ...
