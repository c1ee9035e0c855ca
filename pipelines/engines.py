"""The interface between a pipeline and its engines: an engine for a part, by its input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..compiler.budget import fit
from ..compiler.cache import find
from ..compiler.targets import Wanted
from ..core.bundle import Bundle
from ..core.engine import Engine
from ..core.request import Fitted, Request
from ..profiles import Profile


class EngineProvider(Protocol):
    """The engines of one bundle under one profile. Thread-safe."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user about how the engines were proved."""
        ...

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """Return the engine built for exactly these input shapes, or else the one for every shape.

        Raises `ShapeError`, which says which sizes are built and what to do.
        """
        ...

    def check_room(self, request: Request) -> None:
        """Raise `RequestError` for a completed request whose images are predicted not to fit in memory."""
        ...

    def fit(self, passes: Sequence[Request]) -> Fitted | None:
        """Choose how a completed request, and its second pass if it has one, is computed within a memory budget; None
        without a budget. Raises `RequestError` where nothing fits.
        """
        ...

    def describe(self) -> dict[str, str]:
        """The engine of each part, such as `openvino 2026.4.1 CPU bf16`."""
        ...

    def close(self) -> None:
        """Release memory. None of the engines can be used afterwards."""
        ...


def fitted(
    bundle: Bundle, wanted: Sequence[Wanted], profile: Profile, budget: int, passes: Sequence[Request]
) -> Fitted | None:
    """What `EngineProvider.fit` would return or raise within a budget in bytes, without an effect on engines."""
    asked = [(want.part, want.target, find(bundle, want.part, want.key)) for want in wanted]
    found = fit(bundle, asked, passes, budget, sequential=profile.sequential, profile=profile.name)
    return None if found is None else found[0]
