"""Teacher forcing: a reference's drawing, call by call, against another pipeline's host code and engines.

While it draws, a pipeline calls its parts in turn. Here each call of a recorded drawing is put to another pipeline
twice: what its host code feeds the part is compared with what the reference fed it, and what its engine makes of the
reference's own feeds is compared with what the reference's engine made of them. It is then given the reference's
answer and goes on from there.

So errors don't pile up from call to call, and the two sources of error are told apart: host code (prompt, scheduler,
guidance, scaling) computes in f32 everywhere and must agree to rounding, whatever the precision of the engines. In
finished pictures a guidance of 7.0 for 7.5 is less than what bf16 does; here it isn't hidden by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..compiler.cases import Arrays
from ..core.engine import Engine, Run
from ..core.errors import ParityError
from ..core.request import Request
from ..core.tensors import Array, psnr_db
from ..pipelines.engines import EngineProvider
from ..pipelines.pipeline import Pipeline

Tap = Callable[[str, Engine, Mapping[str, Array]], Arrays]
"""Answers a call in an engine's place: the part's name, the engine, all feeds."""


@dataclass(frozen=True)
class RecordedCall:
    """One call of a part: what it was fed, and what it answered."""

    part: str
    feeds: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Recording:
    """A drawing, call by call."""

    request: Request
    latents: Array
    """The standard normal values it began with, [count, channels, height / 8, width / 8]."""
    calls: tuple[RecordedCall, ...]


@dataclass(frozen=True)
class Forced:
    """How near a pipeline came to a recorded drawing."""

    host_psnr_db: float
    """Worst PSNR over everything that host code fed a part; -inf where it didn't make the same calls."""
    host_worst: str
    """Where that was, as `sample of unet, call 3`; for other calls than the reference's, which."""
    parts_psnr_db: Mapping[str, tuple[float, ...]]
    """Of each part, the PSNR of each of its calls: the worst of its outputs. For the denoiser, one per timestep."""


@dataclass(frozen=True)
class Tapped:
    """Engines whose every call goes through a function; fulfils `EngineProvider`."""

    engines: EngineProvider
    tap: Tap

    @property
    def notices(self) -> tuple[str, ...]:
        """As `EngineProvider.notices`."""
        return self.engines.notices

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """As `EngineProvider.engine`."""
        return _TappedEngine(part, self.engines.engine(part, shapes), self.tap)

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


def record(pipeline: Pipeline, request: Request, latents: Array) -> Recording:
    """Draw a request and keep every call. Raises what drawing raises."""
    calls: list[RecordedCall] = []

    def tap(part: str, engine: Engine, feeds: Mapping[str, Array]) -> Arrays:
        outputs = engine.run(feeds)
        calls.append(RecordedCall(part, _copied(feeds), _copied(outputs)))
        return outputs

    pipeline.through(lambda engines: Tapped(engines, tap))(request, latents=latents)
    return Recording(request, latents, tuple(calls))


def force(pipeline: Pipeline, recording: Recording) -> Forced:
    """Draw the recorded request once more, each call from where the reference was.

    Raises what drawing raises; another sequence of calls than the reference's is a figure of -inf.
    """
    host, worst, made = float("inf"), "nothing", 0
    parts: dict[str, list[float]] = {}

    def tap(part: str, engine: Engine, feeds: Mapping[str, Array]) -> Arrays:
        nonlocal host, worst, made
        call = recording.calls[made] if made < len(recording.calls) else None
        if call is None or call.part != part or call.feeds.keys() != feeds.keys():
            raise _DepartedError(f"call {made + 1} is of {part} with {sorted(feeds)}, {_named(call)} in the reference")
        made += 1
        figures = parts.setdefault(part, [])
        for name, wanted in call.feeds.items():
            if (figure := psnr_db(wanted, feeds[name])) < host:
                host, worst = figure, f"{name} of {part}, call {len(figures) + 1}"
        outputs = engine.run(_copied(call.feeds))
        figures.append(min(psnr_db(wanted, outputs[name]) for name, wanted in call.outputs.items()))
        return _copied(call.outputs)

    try:
        pipeline.through(lambda engines: Tapped(engines, tap))(recording.request, latents=recording.latents)
        if made < len(recording.calls):
            raise _DepartedError(f"it made {made} calls, {len(recording.calls)} in the reference")
    except _DepartedError as exc:
        host, worst = float("-inf"), str(exc)
    return Forced(host, worst, {part: tuple(figures) for part, figures in parts.items()})


class _DepartedError(ParityError):
    """The pipeline makes other calls than the reference did."""


def _named(call: RecordedCall | None) -> str:
    return "there is none" if call is None else f"of {call.part} with {sorted(call.feeds)}"


def _copied(arrays: Mapping[str, Array]) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}
