"""The time of a module's calls by the GPU's own clock: events around their work, on the stream that PyTorch uses."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..core.engine import DeviceUse


class TorchClock:
    """Measures the calls of one engine. `cuda` is the module `torch.cuda`, `device` a name such as `cuda:1`."""

    def __init__(self, cuda: Any, device: str) -> None:
        self._cuda, self._device = cuda, device
        self._first, self._last = (cuda.Event(enable_timing=True) for _ in range(2))
        self.use = DeviceUse()

    @contextmanager
    def around(self) -> Generator[None]:
        """Record an event before and after what the block submits to the stream."""
        stream = self._cuda.current_stream(self._device)  # an event takes that of the first GPU otherwise
        self._first.record(stream)
        yield
        self._last.record(stream)

    def note(self) -> None:
        """Wait for the work of the block, and count it as a call."""
        self._last.synchronize()
        self.use.seconds += self._first.elapsed_time(self._last) / 1000
        self.use.calls += 1
