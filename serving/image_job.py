"""A request on its way to an engine, and its result: what queues generate and clients ask about."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.request import Request, Result, Step
from ..pipelines.pipeline import Inputs
from .errors import ApiError

State = Literal["queued", "generating", "completed", "failed", "cancelled"]
DONE = ("completed", "failed", "cancelled")
WARM_UP = "warm-up"
"""`ImageJob.api` of a server's own first images."""

log = logging.getLogger("latentc.serving")


@dataclass(eq=False)
class ImageJob:
    """A request on its way, and its result. Written by its queue; may be read from any thread."""

    request: Request
    """With width, height and seed."""
    inputs: Inputs = field(default_factory=dict[str, Any])
    model: str = ""
    api: str = ""
    """The API that it was submitted through."""
    owner: str = ""
    """Who submitted it: `guard.owner`."""
    deadline: float | None = None
    """Of `time.monotonic`, after which it is cancelled."""
    on_step: Callable[[ImageJob, Step], bool | None] | None = None
    """Called with it after each denoiser call, in the engine's thread; returns True if its client is shown an image."""
    shown: bool = False
    """Whether its client is shown an image before it ends."""
    finish: Callable[[Result], Result] | None = None
    """Called with its result before it ends, in the engine's thread; what it raises is the job's error."""
    filtered: Mapping[int, str] = field(default_factory=dict[int, str])
    """Why images are withheld, by their indices; see `checks.py`."""
    completed: Request | None = None
    """`request` with everything that the model fills in."""
    source: bytes | None = None
    """The file of the image that it changes, if what it makes is signed: the parent of that."""
    stored: Future[dict[int, int]] | None = None
    """Ids of its images in the history, by their indices, once they are written; see `history.py`."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    created: float = field(default_factory=time.time)
    """Of `time.time`, as the next two."""
    started: float | None = None
    finished: float | None = None
    state: State = "queued"
    step: int = 0
    steps: int | None = None
    """Denoiser calls; None before the first one is finished."""
    last: Step | None = None
    """Of the last denoiser call, until it ends: what previews are made of."""
    result: Result | None = None
    error: Exception | None = None
    reason: str | None = None
    """Why it was, or is being, cancelled: `client`, `disconnect`, `deadline` or `shutdown`."""
    lost: int = 0
    """Processes that ended while they generated it."""
    listeners: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    """Called at each change, in any thread."""
    arrived: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> bool:
        """Whether it has ended, in one of the states `DONE`."""
        return self.state in DONE

    @property
    def late(self) -> bool:
        """Whether it is past its deadline."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def seconds(self) -> float:
        """Seconds since its generation began, up to its end."""
        return 0.0 if self.started is None else (self.finished or time.time()) - self.started

    def wait(self) -> None:
        """Wait for its end; raises its error."""
        while not self.done:
            time.sleep(0.01)
        if self.error is not None:
            raise self.error

    def finished_with(self, result: Result | Exception) -> Result | Exception:
        """What `finish` makes of its result, or the error that it raises."""
        if isinstance(result, Exception) or self.finish is None or self.reason is not None:
            return result
        try:
            return self.finish(result)
        except Exception as exc:
            return exc

    def changed(self) -> None:
        """Tell the listeners."""
        for listener in tuple(self.listeners):
            try:
                listener()
            except Exception:  # the job and its batch go on
                log.exception("a listener of job %s failed", self.id[:6])


def result_of(job: ImageJob) -> Result:
    """The result of a job that has ended; raises `ApiError` for one that was cancelled, and the error of one that
    failed.
    """
    if job.reason == "deadline":  # although the engine may not have stopped yet
        raise ApiError(504, "The job took longer than it may, and was cancelled.", code="deadline")
    if job.state == "cancelled" and job.reason == "shutdown":
        raise ApiError(503, "The server is shutting down. Try again later.", code="draining", retry_seconds=5)
    if job.error is not None:
        raise job.error.with_traceback(None)
    if job.result is None:
        raise ApiError(409, f"The job is {job.state}, and has no result.", code="no_result")
    return job.result
