"""Engines that are in memory only while they run, for models whose parts don't fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock

from ..core.engine import Engine, Run
from ..core.tensors import Array


class Sequential:
    """Stands for an engine that is loaded when it is called, unless it still is; loading it may free others.

    `load` returns the engine; `lock` is held during each call, so that no other thread frees it.
    """

    def __init__(self, load: Callable[[], Engine], lock: RLock) -> None:
        self._load, self._lock = load, lock

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from all inputs, as the engine does."""
        with self._lock:
            return self._load().run(feeds)

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """Fix the values of some inputs; they are fixed again whenever the engine was loaded again."""
        held: list[tuple[Engine, Run]] = []

        def run(others: Mapping[str, Array]) -> dict[str, Array]:
            with self._lock:
                engine = self._load()
                if not held or held[0][0] is not engine:
                    held[:] = [(engine, engine.bind(feeds))]
                return held[0][1](others)

        return run

    def close(self) -> None:
        """Nothing: the engine is freed when another is loaded, or with all of them."""
