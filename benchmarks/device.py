"""The device's own times of the calls of a pipeline, for engines that measure them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..core.bundle import Bundle
from ..core.engine import Chain, Clocked, DeviceUse, Engine, Loops, Run
from ..core.model import Role
from ..core.request import Fitted, Request
from ..core.tensors import Array
from ..pipelines.engines import EngineProvider

STAGES: Mapping[Role, str] = {
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "encoder": "image_encoder",
    "denoiser": "denoiser",
    "decoder": "vae_decoder",
}
"""The stage that a part of a role is timed in."""


@dataclass
class DeviceLog:
    """Times and replays of the calls of one generation on the device."""

    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Of each call, by part."""
    replays: dict[str, int] = field(default_factory=dict[str, int])
    """Calls that replayed a recorded graph, by part."""

    def clear(self) -> None:
        """Begin a generation."""
        self.seconds.clear()
        self.replays.clear()

    def add(self, part: str, before: DeviceUse, after: DeviceUse) -> None:
        """Note one call."""
        self.seconds.setdefault(part, []).append(after.seconds - before.seconds)
        self.replays[part] = self.replays.get(part, 0) + after.replays - before.replays

    def by_stage(self, bundle: Bundle) -> dict[str, float | tuple[float, ...]] | None:
        """The fields of `records.OnDevice`; None where no device's clock is read."""
        found: dict[str, list[float]] = {"denoiser": [], "vae_decoder": []}
        for part, seconds in self.seconds.items():
            if stage := STAGES.get(bundle.part(part).role):
                found.setdefault(stage, []).extend(seconds)
        each = {stage: tuple(seconds) if stage == "denoiser" else sum(seconds) for stage, seconds in found.items()}
        return each if self.seconds else None

    def counts(self) -> dict[str, tuple[int, int]] | None:
        """Replays and calls, by part; None where no device's clock is read."""
        return {part: (self.replays[part], len(seconds)) for part, seconds in self.seconds.items()} or None


@dataclass(frozen=True)
class ClockedEngines:
    """An `EngineProvider` that notes the device's time of each call; engines without it are passed on unchanged."""

    engines: EngineProvider
    log: DeviceLog

    @property
    def notices(self) -> tuple[str, ...]:
        """As `EngineProvider.notices`."""
        return self.engines.notices

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        """As `EngineProvider.engine`."""
        engine = self.engines.engine(part, shapes)
        if not isinstance(engine, Clocked) or (use := engine.device_use) is None:
            return engine
        notes = _Notes(use, lambda before, after: self.log.add(part, before, after))
        noted = _NotedEngine(engine, notes)
        return _NotedLoops(noted, engine, notes) if isinstance(engine, Loops) else noted

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
class _Notes:
    use: DeviceUse
    note: Callable[[DeviceUse, DeviceUse], None]

    @contextmanager
    def noted(self) -> Generator[None]:
        """Note the call that the block makes."""
        before = DeviceUse(self.use.seconds, self.use.calls, self.use.replays)
        yield
        self.note(before, self.use)


class _NotedEngine:
    def __init__(self, engine: Engine, notes: _Notes) -> None:
        self._engine, self._notes = engine, notes

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._notes.noted():
            return self._engine.run(feeds)

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        run = self._engine.bind(feeds)

        def bound(others: Mapping[str, Array]) -> dict[str, Array]:
            with self._notes.noted():
                return run(others)

        return bound

    def close(self) -> None:
        self._engine.close()


class _NotedLoops:
    def __init__(self, noted: _NotedEngine, engine: Loops, notes: _Notes) -> None:
        self._engine, self._notes = engine, notes
        self.run, self.bind, self.close = noted.run, noted.bind, noted.close

    @contextmanager
    def loop(self, feeds: Mapping[str, Array]) -> Generator[Chain]:
        with self._engine.loop(feeds) as chain:
            yield _NotedChain(chain, self._notes)


class _NotedChain:
    def __init__(self, chain: Chain, notes: _Notes) -> None:
        self._chain, self._notes = chain, notes
        self.read = chain.read

    def step(self, feeds: Mapping[str, Array]) -> None:
        with self._notes.noted():
            self._chain.step(feeds)
