"""Teacher forcing: compare a pipeline with a recorded reference, call by call.

Each call of a recorded generation is compared twice: the inputs that the pipeline's host code computes with those of
the reference, and the engine's outputs for the reference's inputs with the reference's outputs. The pipeline then
continues from the reference's outputs.

So errors don't accumulate from call to call, and the two sources of error are separated: host code (prompt, scheduler,
guidance, scaling) computes in f32 everywhere and must agree to rounding, whatever the precision of the engines. In
finished images, a guidance of 7.0 instead of 7.5 has less effect than bf16; here it can't hide behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..compiler.cases import Arrays
from ..core.engine import Engine, Run
from ..core.errors import ParityError
from ..core.request import Fitted, Request
from ..core.tensors import Array, psnr_db
from ..pipelines.engines import EngineProvider
from ..pipelines.pipeline import Pipeline

Tap = Callable[[str, Engine, Mapping[str, Array]], Arrays]
"""Called in place of an engine, with the part's name, the engine and all inputs; returns the outputs."""


@dataclass(frozen=True)
class RecordedCall:
    """One call of a part: inputs and outputs by name."""

    part: str
    feeds: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Recording:
    """All calls of one generation."""

    request: Request
    latents: Array
    """The initial standard normal values, [count, channels, height / 8, width / 8]."""
    calls: tuple[RecordedCall, ...]
    image: Array | None = None
    """The image of a video, uint8 [height, width, 3]."""


@dataclass(frozen=True)
class Forced:
    """Parity of a pipeline with a recording."""

    host_psnr_db: float
    """Worst PSNR over all inputs that host code computed; -inf if the calls differ."""
    host_worst: str
    """Where that was, for example `sample of unet, call 3`; or how the calls differ."""
    parts_psnr_db: Mapping[str, tuple[float, ...]]
    """PSNR of each call (the worst of its outputs), by part. For the denoiser, one per timestep."""


@dataclass(frozen=True)
class Tapped:
    """An `EngineProvider` whose every call goes through a function."""

    engines: EngineProvider
    tap: Tap

    @property
    def notices(self) -> tuple[str, ...]:
        """As `EngineProvider.notices`."""
        return self.engines.notices

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """As `EngineProvider.engine`."""
        return _TappedEngine(part, self.engines.engine(part, shapes), self.tap)

    def fit(self, passes: Sequence[Request]) -> Fitted | None:
        """As `EngineProvider.fit`."""
        return self.engines.fit(passes)

    def check_room(self, request: Request) -> None:
        """As `EngineProvider.check_room`."""
        self.engines.check_room(request)

    def describe(self) -> dict[str, str]:
        """As `EngineProvider.describe`."""
        return self.engines.describe()

    def close(self) -> None:
        """As `EngineProvider.close`."""
        self.engines.close()


@dataclass(frozen=True)
class _TappedEngine:
    part: str
    engine: Engine
    tap: Tap

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        return self.tap(self.part, self.engine, feeds)

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        fixed = {name: array.copy() for name, array in feeds.items()}
        return lambda others: self.run({**fixed, **others})

    def close(self) -> None:
        self.engine.close()


def record(pipeline: Pipeline, request: Request, latents: Array, image: Array | None = None) -> Recording:
    """Generate a request and record every call. Raises what the pipeline raises."""
    calls: list[RecordedCall] = []

    def tap(part: str, engine: Engine, feeds: Mapping[str, Array]) -> Arrays:
        outputs = engine.run(feeds)
        calls.append(RecordedCall(part, _copied(feeds), _copied(outputs)))
        return outputs

    pipeline.through(lambda engines: Tapped(engines, tap))(request, latents=latents, image=image)
    return Recording(request, latents, tuple(calls), image)


def force(pipeline: Pipeline, recording: Recording) -> Forced:
    """Generate the recorded request again with teacher forcing.

    Raises what the pipeline raises. A sequence of calls that differs from the reference's gives a figure of -inf.
    """
    host, worst, made = float("inf"), "nothing", 0
    parts: dict[str, list[float]] = {}

    def tap(part: str, engine: Engine, feeds: Mapping[str, Array]) -> Arrays:
        nonlocal host, worst, made
        call = recording.calls[made] if made < len(recording.calls) else None
        if call is None or call.part != part or call.feeds.keys() != feeds.keys():
            raise _DepartedError(f"call {made + 1} is {part} with {sorted(feeds)}; the reference has {_named(call)}")
        made += 1
        figures = parts.setdefault(part, [])
        for name, wanted in call.feeds.items():
            if (figure := psnr_db(wanted, feeds[name])) < host:
                host, worst = figure, f"{name} of {part}, call {len(figures) + 1}"
        outputs = engine.run(_copied(call.feeds))
        figures.append(min(psnr_db(wanted, outputs[name]) for name, wanted in call.outputs.items()))
        return _copied(call.outputs)

    try:
        tapped = pipeline.through(lambda engines: Tapped(engines, tap))
        tapped(recording.request, latents=recording.latents, image=recording.image)
        if made < len(recording.calls):
            raise _DepartedError(f"{made} calls were made; the reference has {len(recording.calls)}")
    except _DepartedError as exc:
        host, worst = float("-inf"), str(exc)
    return Forced(host, worst, {part: tuple(figures) for part, figures in parts.items()})


class _DepartedError(ParityError):
    """The pipeline made other calls than the reference."""


def _named(call: RecordedCall | None) -> str:
    return "no such call" if call is None else f"{call.part} with {sorted(call.feeds)}"


def _copied(arrays: Mapping[str, Array]) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}
