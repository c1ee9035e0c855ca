"""What a server knows of a model, wherever its engines are, and the first image that each model generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..compiler.targets import fixed_sizes
from ..core.bundle import Bundle
from ..core.request import Request, Result, Step
from ..profiles import Profile
from ..sampling.host import SCHEDULER
from ..sampling.schedulers import skipped_steps
from .residents import Loads

WARM_STEPS = 2
LCM = "lcm"


class OpenModel(Loads, Protocol):
    """A model as the APIs use it; a `Pipeline` is one."""

    @property
    def bundle(self) -> Bundle:
        """The bundle, with the adapters that it was opened with."""
        ...

    @property
    def profile(self) -> Profile:
        """The profile that it was opened under."""
        ...

    @property
    def scheduler(self) -> str | None:
        """`Pipeline.scheduler`."""
        ...

    @property
    def schedulers(self) -> tuple[str, ...]:
        """`Pipeline.schedulers`."""
        ...

    @property
    def adapters(self) -> dict[str, float]:
        """`Pipeline.adapters`."""
        ...

    @property
    def takes_strengths(self) -> bool:
        """`Pipeline.takes_strengths`."""
        ...

    def describe(self) -> dict[str, str]:
        """`Pipeline.describe`."""
        ...

    def check(
        self, request: Request, *, within: Callable[[Request, tuple[int, int]], None] | None = None, **inputs: Any
    ) -> Request:
        """`Pipeline.check`."""
        ...

    def check_decoding(self) -> None:
        """`Pipeline.check_decoding`."""
        ...

    def decode_step(self, request: Request, step: Step) -> NDArray[np.uint8]:
        """`Pipeline.decode_step`."""
        ...

    def preview(self, step: Step) -> NDArray[np.uint8]:
        """`Pipeline.preview`."""
        ...

    def draw_many(
        self,
        requests: Sequence[Request],
        on_step: Sequence[Callable[[Step], bool | None]],
        *,
        inputs: Sequence[Mapping[str, Any]],
        return_exceptions: bool,
    ) -> list[Result | Exception]:
        """`Pipeline.draw_many`."""
        ...

    def close(self) -> None:
        """`Pipeline.close`."""
        ...


def fixed_rows(model: OpenModel) -> tuple[int, bool] | None:
    """How many images engines of fixed rows take, and whether with guidance; None for others."""
    shapes = model.profile.shapes
    fixed = fixed_sizes(model.bundle.manifest.model, model.profile) and "batch" not in shapes.free
    return (shapes.images, shapes.guided) if fixed else None


def first_request(model: OpenModel) -> tuple[Request, dict[str, Any]]:
    """The request of a model's first image, and what it needs beside a prompt."""
    facts = model.bundle.manifest.model
    built = fixed_sizes(facts, model.profile)
    width, height = facts.own_size if not built or facts.own_size in built else built[0]
    request = Request(prompt="", steps=WARM_STEPS, seed=0, width=width, height=height)
    if rows := fixed_rows(model):
        guidance = request.guidance if rows[1] else 1.0
        request = request.model_copy(update={"count": rows[0], "guidance": guidance})
    if not (facts.needs_image or facts.inpaints):
        return request, {}
    side = facts.default_size
    grey = np.full((side, side, 3), 128, np.uint8)
    return request, {"image": grey, **({"mask": np.full((side, side), 255, np.uint8)} if facts.inpaints else {})}


def steps_run(model: OpenModel, request: Request) -> Callable[[int, float | None], int]:
    """What says how many of a number of steps are computed at a strength, for a completed request of a model.

    LCM computes all steps, at lower noise levels: see `sampling.walks`.
    """
    every = model.bundle.manifest.model.takes_guidance and request.scheduler == LCM

    def run(steps: int, strength: float | None) -> int:
        if strength is None or every:
            return steps
        return steps - skipped_steps(model.bundle.json(SCHEDULER), steps, strength)

    return run
