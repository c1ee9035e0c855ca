"""The jobs of one pipeline: a bounded queue, and a thread that generates what waits, in batches."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Literal

from ..core.errors import CancelledError
from ..core.request import Request, Result, Step
from ..pipelines.pipeline import Inputs
from .errors import ApiError
from .limits import Limits
from .metrics import Metrics

State = Literal["queued", "generating", "completed", "failed", "cancelled"]
DONE = ("completed", "failed", "cancelled")
WARM_UP = "warm-up"
"""`ImageJob.api` of a server's own first images."""
SMOOTHING = 0.3
"""Weight of the newest batch in the average from which Retry-After is estimated."""

log = logging.getLogger("latentc.serving")

DrawMany = Callable[..., list[Result | Exception]]
"""`Pipeline.draw_many`."""


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
    on_step: Callable[[Step], None] | None = None
    """Called after each denoiser call, in the engine's thread."""
    finish: Callable[[Result], Result] | None = None
    """Called with its result before it ends, in the engine's thread; what it raises is the job's error."""
    filtered: Mapping[int, str] = field(default_factory=dict[int, str])
    """Why images are withheld, by their indices; see `checks.py`."""
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
            listener()


class Queue:
    """A bounded queue of jobs for one pipeline, with one thread that generates them."""

    def __init__(self, name: str, draw_many: DrawMany, limits: Limits, metrics: Metrics) -> None:
        self.name = name
        self._draw_many, self._limits, self._metrics = draw_many, limits, metrics
        self._turn = Condition()
        self._waiting: list[ImageJob] = []
        self._running: list[ImageJob] = []
        self._closed = False
        self._batch_seconds: float | None = None
        self._thread = Thread(target=self._work, name=f"latentc {name}", daemon=True)

    def start(self) -> None:
        """Begin to generate."""
        self._thread.start()

    def submit(self, job: ImageJob) -> ImageJob:
        """Queue a job. Raises `ApiError`: 429 if the queue is full, 503 if it was closed."""
        with self._turn:
            self.check_room()
            self._waiting.append(job)
            self._count()
            self._turn.notify_all()
        return job

    def check_room(self) -> None:
        """Raise the error that `submit` would raise now."""
        with self._turn:
            self._expire()
            if self._closed:
                raise ApiError(503, "The server is shutting down. Try again later.", code="draining", retry_seconds=5)
            full = len(self._waiting) + len(self._running) >= self._limits.queue
        if full:
            raise ApiError(
                429,
                f"The queue is full ({self._limits.queue} jobs). Try again later.",
                code="queue_full",
                retry_seconds=self._batch_seconds or 1.0,
            )

    def cancel(self, job: ImageJob, reason: str = "client") -> bool:
        """Cancel a job: at once if it waits, after its current denoiser call if it is being generated.

        Others are not affected. Returns False if it had ended.
        """
        with self._turn:
            if job.done:
                return False
            job.reason = job.reason or reason
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
                self._count()
        if waits:
            self._end(job, CancelledError("The job was cancelled."))
        return True

    def position(self, job: ImageJob) -> int | None:
        """Number of jobs before a job that waits, from 0; None if it doesn't wait."""
        with self._turn:
            return self._waiting.index(job) if job in self._waiting else None

    @property
    def works(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def refuse(self) -> None:
        """Accept no more jobs."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def close(self, seconds: float | None = None) -> bool:
        """Accept no more jobs, and wait up to `seconds` for those that were accepted; the rest is cancelled.

        Returns whether all were finished.
        """
        self.refuse()
        if not self._thread.is_alive():
            return True
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._turn:
            left = [*self._waiting, *self._running]
        for job in left:
            self.cancel(job, "shutdown")
        self._thread.join()
        return False

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._generate(batch)
            except Exception as exc:  # the queue's own
                log.exception("a batch of %s failed", self.name)
                with self._turn:
                    self._running = []
                    self._count()
                for job in batch:
                    if not job.done:
                        self._end(job, exc)

    def _next(self) -> list[ImageJob]:
        """Wait for jobs, and take a batch; empty once the queue is closed and there are none."""
        with self._turn:
            while True:
                self._expire()
                if not self._waiting:
                    if self._closed:
                        return []
                    self._turn.wait()
                    continue
                batch = self._alike(self._waiting[0])
                left = self._limits.wait_seconds - (time.monotonic() - self._waiting[0].arrived)
                if left > 0 and not self._closed and sum(job.request.count for job in batch) < self._limits.batch:
                    self._turn.wait(left)
                    continue
                self._waiting = [job for job in self._waiting if job not in batch]
                self._running = batch
                self._count()
                for job in self._waiting:  # their positions changed
                    job.changed()
                return batch

    def _alike(self, first: ImageJob) -> list[ImageJob]:
        """The oldest job, and those after it that can be joined with it, as far as a batch takes them."""
        batch, rows = [first], first.request.count
        for job in self._waiting:
            more = job.request.count
            if job is not first and _joint(job.request) == _joint(first.request) and rows + more <= self._limits.batch:
                batch, rows = [*batch, job], rows + more
        return batch

    def _generate(self, batch: Sequence[ImageJob]) -> None:
        began, now = time.monotonic(), time.time()
        for job in batch:
            self._metrics.waited.labels(self.name).observe(began - job.arrived)
            job.state, job.started = "generating", now
            job.changed()
        self._metrics.batches.labels(self.name).observe(len(batch))
        try:
            results = self._draw_many(
                [job.request for job in batch],
                [self._stepping(job) for job in batch],
                inputs=[job.inputs for job in batch],
                return_exceptions=True,
            )
        except Exception as exc:  # such as threads that can't be started
            results = [exc] * len(batch)
        seconds = time.monotonic() - began
        before = seconds if self._batch_seconds is None else self._batch_seconds
        with self._turn:
            self._batch_seconds = before + SMOOTHING * (seconds - before)
            self._running = []
            self._count()
        for job, result in zip(batch, results, strict=True):
            self._end(job, job.finished_with(result))

    def _stepping(self, job: ImageJob) -> Callable[[Step], bool]:
        """What is called after each denoiser call of a job; False cancels it."""

        def stepped(step: Step) -> bool:
            job.step, job.steps, job.last = step.index, step.total, step
            if job.reason is None and job.late:
                job.reason = "deadline"
            if job.reason is None and job.on_step is not None:
                try:
                    job.on_step(step)
                except Exception:  # a preview that fails doesn't stop the image
                    log.exception("job %s goes on without previews", job.id[:6])
                    job.on_step = None
            job.changed()
            return job.reason is None

        return stepped

    def _end(self, job: ImageJob, result: Result | Exception) -> None:
        with self._turn:
            job.finished, job.inputs, job.last = time.time(), {}, None
            if job.reason is not None:
                job.error, job.state = CancelledError(f"The job was cancelled ({job.reason})."), "cancelled"
            elif isinstance(result, Exception):
                job.error, job.state = result, "failed"
            else:
                job.result, job.state = result, "completed"
        if job.reason is not None:
            self._metrics.cancelled.labels(self.name, job.reason).inc()
        elif isinstance(result, Exception):
            log.warning("job %s failed: %s: %a", job.id[:6], type(result).__name__, str(result))
        else:
            if job.api != WARM_UP:
                self._metrics.images.labels(self.name).inc(len(result.images))
            for stage, seconds in result.seconds.items():
                self._metrics.stages.labels(self.name, stage).observe(seconds)
            for seconds in result.step_seconds:
                self._metrics.steps.labels(self.name).observe(seconds)
        job.changed()

    def _expire(self) -> None:
        """Cancel jobs that wait and are past their deadlines."""
        late = [job for job in self._waiting if job.late]
        if not late:
            return
        self._waiting = [job for job in self._waiting if job not in late]
        self._count()
        for job in late:
            job.reason = "deadline"
            self._end(job, CancelledError("The job was cancelled (deadline)."))

    def _count(self) -> None:
        self._metrics.depth.labels(self.name).set(len(self._waiting))
        self._metrics.running.labels(self.name).set(len(self._running))


def _joint(request: Request) -> object:
    """What requests have in common whose denoiser calls can be joined; see `Pipeline.draw_many`."""
    adapters: Mapping[str, float] = request.adapters or {}
    return (
        request.width,
        request.height,
        request.steps,
        request.scheduler,
        request.timestep_spacing,
        request.timesteps,
        request.sigmas,
        request.strength,
        request.variant,
        request.hires,
        tuple(sorted(adapters.items())),
    )


@dataclass
class KeptJobs:
    """Jobs by id: those that wait or are being generated, and ended ones for a time, within a limit of bytes, and at
    most `MOST_KEPT`.
    """

    seconds: float
    bytes: int
    _jobs: dict[str, ImageJob] = field(default_factory=dict[str, ImageJob], init=False)
    _dropped: dict[str, None] = field(default_factory=dict[str, None], init=False)
    """Ids of the last jobs that were dropped."""

    def add(self, job: ImageJob) -> None:
        """Keep a job; older results may be dropped."""
        self._jobs[job.id] = job
        self._drop()

    def find(self, name: str) -> ImageJob:
        """The job of an id; raises `ApiError`: 404 for an unknown one, 410 for one that was dropped."""
        self._drop()
        if name in self._jobs:
            return self._jobs[name]
        if name in self._dropped:
            raise ApiError(410, "The result of this job is no longer kept.", code="gone")
        raise ApiError(404, "There is no job of this id.", code="job_not_found")

    def jobs(self) -> list[ImageJob]:
        """All of them, the newest first."""
        self._drop()
        return list(reversed(self._jobs.values()))

    def _drop(self) -> None:
        ended = [job for job in self._jobs.values() if job.done]
        held, now = sum(map(_bytes, ended)), time.time()
        for index, job in enumerate(sorted(ended, key=lambda one: one.finished or now)):
            few = held <= self.bytes and len(ended) - index <= MOST_KEPT
            if few and now - (job.finished or now) < self.seconds:
                break
            held -= _bytes(job)
            del self._jobs[job.id]
            self._dropped[job.id] = None
        while len(self._dropped) > MOST_DROPPED:
            del self._dropped[next(iter(self._dropped))]


MOST_KEPT, MOST_DROPPED = 1000, 10_000


def _bytes(job: ImageJob) -> int:
    texts = 4 * (len(job.request.prompt) + len(job.request.negative_prompt))
    return texts if job.result is None else texts + job.result.images.nbytes + job.result.latents.nbytes
