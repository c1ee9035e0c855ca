"""The format of `latentc bench-serve`: one JSON line for each server that was measured.

`latentc bench-serve --schema` prints its schema. Rows of `latentc bench` are of another kind (`records.py`) and go into
other files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ..core.errors import LatentcError
from ..core.files import unwritable
from ..core.request import Request
from ..runtimes.machine import Machine
from .records import MeasuredModel, ResultRecord, Seconds, StageName
from .summary import Summary, summarize


class ServedRound(ResultRecord):
    """Images per second of the bare loop and of the server, measured one after the other."""

    bare: float
    """`Pipeline.draw_many` in a process of its own, with batches of the size of the server's."""
    served: float
    """At saturation; the server also encodes each image."""
    bare_cpu: Seconds | None = None
    """CPU time of the loop's process for each image, in seconds: the same on a machine that others load."""
    served_cpu: Seconds | None = None
    """CPU time of the server's processes for each image; None for a server that was not started here."""


class LoadLevel(ResultRecord):
    """An open loop: requests that arrive as a Poisson process."""

    share: float
    """Of the rate at saturation."""
    rate: float
    """Requests per second that were due."""
    seconds: tuple[Seconds, ...]
    """Latency of each request that was answered with 200, from when it was due."""
    refused: dict[str, int] = Field(default={})
    """Number of other answers by status; `0` is none at all."""
    batches: dict[str, int] = Field(default={})
    """Number of batches by the upper bound of their size, as in the server's metrics."""


class Disconnected(ResultRecord):
    """What a client that leaves costs."""

    seconds: Seconds
    """From closing the connection until no job runs."""
    steps: float
    """The same in denoiser calls of one image."""


class HeldMemory(ResultRecord):
    """Proportional set size of the server's processes in bytes."""

    requests: int
    """Requests with an image that were answered before."""
    pss_bytes: int


class ServedMeasurement(ResultRecord):
    """A server on one machine, with one bundle, profile and request."""

    schema_version: Literal[1] = 1
    run: str
    time: str
    latentc: str
    commit: str | None = None
    machine: Machine
    load_average: float | None = None
    """When the run started; above 0.5 the machine was busy."""
    environment: dict[str, str] = Field(default={})
    model: MeasuredModel
    profile: str
    options: tuple[str, ...] = ()
    """Of `latentc serve`."""
    request: Request
    batch: int
    """Requests in a batch of the bare loop, and images in a batch of the server's."""
    rounds: tuple[ServedRound, ...] = ()
    stages: dict[StageName, Seconds] = Field(default={})
    """Mean seconds of each stage of a request at saturation, where one in a batch has the whole batch's."""
    batches: dict[str, int] = Field(default={})
    """As in `LoadLevel`, at saturation."""
    levels: tuple[LoadLevel, ...] = ()
    memory: tuple[HeldMemory, ...] = ()
    """At the start, after 100 requests and after the last; empty where the system doesn't report it."""
    disconnected: Disconnected | None = None

    @property
    def ratio(self) -> Summary | None:
        """The server's rate over the bare loop's, by round."""
        return summarize([one.served / one.bare for one in self.rounds]) if self.rounds else None

    @property
    def cpu_ratio(self) -> Summary | None:
        """The server's CPU time for an image over the bare loop's, by round."""
        both = [(one.served_cpu, one.bare_cpu) for one in self.rounds]
        found = [served / bare for served, bare in both if served is not None and bare]
        return summarize(found) if found else None

    @property
    def growth_kb(self) -> float | None:
        """Kilobytes (10^3) by which memory grew for each request after the first 100."""
        if len(self.memory) < 3 or self.memory[-1].requests <= self.memory[-2].requests:
            return None
        first, last = self.memory[-2:]
        return (last.pss_bytes - first.pss_bytes) / 1e3 / (last.requests - first.requests)


def append_served(path: Path, row: ServedMeasurement | None = None) -> None:
    """Append a line, or none, to a file of results. Raises `LatentcError` if it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("" if row is None else row.model_dump_json(exclude_none=True) + "\n")
    except OSError as exc:
        raise LatentcError(unwritable(path, exc, "Choose another file.")) from exc
