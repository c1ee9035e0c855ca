"""TensorRT's messages. The library keeps the first logger that it is given, so all threads of a process share one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock, local
from typing import Any
from weakref import WeakSet

REPORTED = {
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+)"),
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+)"),
}
"""Lines of the builder's log on device memory."""

MOST_CHARACTERS = 400


@dataclass(eq=False)
class Reported:
    """What the library reported to a thread of ours since it called `clear`."""

    worst: str = ""
    """The last error in this thread."""
    elsewhere: str = ""
    """The last error in a thread of the library."""
    memory: dict[str, int] = field(default_factory=dict[str, int])


class Messages:
    """The last error and the reported memory, for each thread that called `clear`. What the library reports in threads
    of its own is kept for all of them, because it doesn't say for whom it works.
    """

    def __init__(self) -> None:
        self._here = local()
        self._all: WeakSet[Reported] = WeakSet()
        self._lock = Lock()

    def clear(self) -> None:
        """Forget what was reported to this thread."""
        self._here.reported = Reported()
        with self._lock:
            self._all.add(self._here.reported)

    def add(self, text: str, *, error: bool) -> None:
        """Take a message, in the thread that reports it."""
        own: Reported | None = getattr(self._here, "reported", None)
        with self._lock:
            concerned = list(self._all) if own is None else [own]
        for each in concerned:
            if error:
                setattr(each, "elsewhere" if own is None else "worst", " ".join(text.split())[:MOST_CHARACTERS])
            for name, pattern in REPORTED.items():
                if found := pattern.search(text):
                    each.memory[name] = int(found[1])

    @property
    def worst(self) -> str:
        """The last error that concerns this thread; empty without one."""
        found: Reported = getattr(self._here, "reported", Reported())
        return found.worst or found.elsewhere

    @property
    def memory(self) -> Mapping[str, int]:
        """Device memory in bytes that the builder reported to this thread, keyed as in `REPORTED`."""
        found: Reported = getattr(self._here, "reported", Reported())
        return found.memory


def logger(trt: Any) -> Any:
    """A logger for the library, which is also `Messages`, and prints nothing."""

    class Log(Messages, trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            Messages.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            self.add(msg, error=severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR))

    return Log()
