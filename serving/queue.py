"""The jobs of one model: a bounded queue, and threads that generate what waits, in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Condition, Thread

from ..core.errors import CancelledError
from ..core.request import Request, Result, Step
from .batches import alike
from .errors import ApiError, bare
from .image_job import ImageJob
from .limits import Limits
from .metrics import Metrics

SMOOTHING = 0.3
"""Weight of the newest batch in the average from which Retry-After is estimated."""

log = logging.getLogger("latentc.serving")

GRACE_SECONDS = 60.0
"""After the deadlines of a batch or the end of the server, before the process that generates it is killed."""

END_SECONDS = 10.0
"""For which a killed process may take to end."""

MOST_LOST = 2
"""Processes that end while they generate a job, after which it fails."""

DrawMany = Callable[..., list[Result | Exception]]
"""`Pipeline.draw_many`; it may raise `Interrupted`."""


class Interrupted(Exception):
    """The process that should generate a batch has ended: no fault of the requests is known. `began` says whether it
    may have begun to.
    """

    def __init__(self, began: bool) -> None:
        super().__init__("The process that generates images has ended.")
        self.began = began


class Queue:
    """A bounded queue of jobs for one model, with threads that generate them, one batch each at a time."""

    def __init__(
        self,
        name: str,
        draw_many: DrawMany,
        limits: Limits,
        metrics: Metrics,
        *,
        threads: int = 1,
        room: Callable[[], int] = lambda: 1,
    ) -> None:
        """`threads` is the largest number of batches at once, and `room` is called for how many there may be now, while
        jobs wait; `wake` says that it has changed.
        """
        self.name = name
        self._draw_many, self._limits, self._metrics, self._room = draw_many, limits, metrics, room
        self._turn = Condition()
        self._waiting: list[ImageJob] = []
        self._batches: list[list[ImageJob]] = []
        self._finishing: list[ImageJob] = []
        self._closed = False
        self._crowded = False  # whether another job came before the last batch had ended
        self._ended = time.monotonic()  # when that was
        self._stopped: float | None = None
        self._hung = False
        self._counted = 0, 0
        self._batch_seconds: float | None = None
        self._threads = [Thread(target=self._work, name=f"latentc {name}", daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Begin to generate."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Ask again how many batches there may be at once."""
        with self._turn:
            self._turn.notify_all()

    def submit(self, job: ImageJob) -> ImageJob:
        """Queue a job. Raises `ApiError`: 429 if the queue is full, 503 if it was closed."""
        with self._turn:
            self.check_room()
            self._crowded = self._crowded or bool(self._batches)
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
                retry_seconds=(self._batch_seconds or 1.0) / max(1, len(self._batches)),
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
                self._turn.notify_all()  # a closed queue may be empty now
        if waits:
            self._end(job, CancelledError("The job was cancelled."))
        return True

    def position(self, job: ImageJob) -> int | None:
        """Number of jobs before a job that waits, from 0; None if it doesn't wait."""
        with self._turn:
            return self._waiting.index(job) if job in self._waiting else None

    @property
    def works(self) -> bool:
        """Whether its threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def hung(self) -> bool:
        """Whether `close` has given up a batch that didn't end: its engines can't be closed."""
        return self._hung

    @property
    def generates(self) -> bool:
        """Whether a batch is being generated."""
        with self._turn:
            return bool(self._batches)

    @property
    def waits(self) -> bool:
        """Whether a job waits."""
        with self._turn:
            return bool(self._waiting)

    @property
    def empty(self) -> bool:
        """Whether no job waits or is being generated."""
        with self._turn:
            return not self._waiting and not self._batches

    def has(self, job: ImageJob) -> bool:
        """Whether a job of it waits or is being generated."""
        with self._turn:
            return job in self._waiting or job in self._running or job in self._finishing

    def fail(self, error: Exception) -> None:
        """End the jobs that wait with an error."""
        with self._turn:
            failed, self._waiting = self._waiting, []
            self._count()
            self._turn.notify_all()
        for job in failed:
            self._end(job, error)

    def hangs(self, requests: Sequence[Request]) -> bool:
        """Whether the batch of these requests should have ended `GRACE_SECONDS` ago: each of its jobs is past its
        deadline, or the server's end has cancelled it. That of a request that isn't generated should have ended.
        """
        with self._turn:
            batch = next((one for one in self._batches if any(job.request is requests[0] for job in one)), ())
            ends = [self._stopped or job.deadline for job in batch]
        return all(end is not None and time.monotonic() >= end + GRACE_SECONDS for end in ends)

    def refuse(self) -> None:
        """Accept no more jobs."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def close(self, seconds: float | None = None) -> bool:
        """`close_all` of this queue."""
        return close_all([self], seconds)

    def join(self, until: float | None) -> bool:
        """Wait for its threads, which end after `refuse` when no jobs are left, up to a time of `time.monotonic`.
        Returns whether they have ended; once the queue has `hung`, it doesn't wait.
        """
        for thread in () if self._hung else self._started:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not self._hung and not any(thread.is_alive() for thread in self._started)

    def stop(self) -> None:
        """Cancel all jobs."""
        with self._turn:
            self._stopped = self._stopped or time.monotonic()
            left = [*self._waiting, *self._running, *self._finishing]
        for job in left:
            self.cancel(job, "shutdown")

    def give_up(self) -> None:
        """After `join`, end the jobs that are left; if its threads haven't ended, the queue has `hung`."""
        if not self._hung and any(thread.is_alive() for thread in self._started):
            self._hung = True
            log.error("a batch of %s has not ended %.0f s after it was cancelled", self.name, GRACE_SECONDS)
        with self._turn:
            left = [*self._running, *self._finishing]
        for job in left:
            self._end(job, CancelledError("The job was cancelled (shutdown)."))

    @property
    def _started(self) -> list[Thread]:
        return [thread for thread in self._threads if thread.ident is not None]

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._generate(batch)
            except Interrupted as exc:
                self._put_back(batch, exc)
            except Exception as exc:  # the queue's own
                log.exception("a batch of %s failed", self.name)
                self._leave(batch)
                for job in batch:
                    if not job.done:
                        self._end(job, exc)

    def _next(self) -> list[ImageJob]:
        """Wait for jobs and for room, and take a batch; empty once the queue is closed and there are none."""
        with self._turn:
            while True:
                self._expire()
                if not self._waiting and self._closed:
                    return []
                free = self._room() - len(self._batches) if self._waiting else 0
                if free < 1:
                    ends = [job.deadline for job in self._waiting if job.deadline is not None]
                    self._turn.wait(max(0.0, min(ends) - time.monotonic()) if ends else None)
                    continue
                batch = alike(self._waiting, self._limits.batch)
                since = time.monotonic() - max(self._waiting[0].arrived, self._ended)
                # a client alone waits for nobody, and where another engine is free, it takes what comes
                left = self._limits.wait_seconds - since if self._crowded and free == 1 else 0.0
                if left > 0 and not self._closed and sum(job.request.count for job in batch) < self._limits.batch:
                    self._turn.wait(left)
                    continue
                batch = batch[: -(-len(self._waiting) // free)]  # several at once are faster than one of all
                self._waiting = [job for job in self._waiting if job not in batch]
                self._batches.append(batch)
                self._crowded = len(batch) > 1 or bool(self._waiting)
                self._count()
                for job in self._waiting:  # their positions changed
                    job.changed()
                return batch

    def _generate(self, batch: Sequence[ImageJob]) -> None:
        began, now = time.monotonic(), time.time()
        for job in batch:
            if job.started is None:
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
        except Interrupted:
            raise
        except Exception as exc:  # such as threads that can't be started
            results = [exc] * len(batch)
        seconds = time.monotonic() - began
        before = seconds if self._batch_seconds is None else self._batch_seconds
        with self._turn:
            self._batch_seconds = before + SMOOTHING * (seconds - before)
            self._finishing += batch
        self._leave(batch)
        for job, result in zip(batch, results, strict=True):
            self._end(job, job.finished_with(result))
        with self._turn:
            self._finishing = [job for job in self._finishing if job not in batch]

    def _leave(self, batch: Sequence[ImageJob], first: Sequence[ImageJob] = ()) -> None:
        """A batch is no longer generated; `first` wait again, before all others."""
        with self._turn:
            self._batches, self._ended = [one for one in self._batches if one is not batch], time.monotonic()
            self._waiting = [*first, *self._waiting]
            self._count()
            self._turn.notify_all()

    def _put_back(self, batch: Sequence[ImageJob], exc: Interrupted) -> None:
        """Let the jobs of a batch wait again, at the front, those excepted that lost too many processes."""
        again: list[ImageJob] = []
        with self._turn:  # `cancel` finds each job in the batch or among those that wait
            for job in batch:
                job.lost += exc.began
                if job.reason is None and job.lost < MOST_LOST:
                    job.state, job.step, job.last = "queued", 0, None
                    again.append(job)
            self._leave(batch, again)
        for job in batch:
            if job in again:
                job.changed()
            else:
                text = f"The process that generated this job has ended {job.lost} times. The server's log has details."
                self._end(job, ApiError(500, text, code="process_ended"))

    def _stepping(self, job: ImageJob) -> Callable[[Step], bool]:
        """What is called after each denoiser call of a job; False cancels it."""

        def stepped(step: Step) -> bool:
            job.step, job.steps, job.last = step.index, step.total, step
            if job.reason is None and job.late:
                job.reason = "deadline"
            if job.reason is None and job.on_step is not None:
                try:
                    job.shown = bool(job.on_step(job, step)) or job.shown
                except Exception:  # a preview that fails doesn't stop the image
                    log.exception("job %s goes on without previews", job.id[:6])
                    job.on_step = None
            job.changed()
            return job.reason is None

        return stepped

    def _end(self, job: ImageJob, result: Result | Exception) -> None:
        with self._turn:
            if job.done:  # at the end of the server, while its batch hung
                return
            job.finished, job.inputs, job.last = time.time(), {}, None
            if job.reason is not None:
                job.error, job.state = CancelledError(f"The job was cancelled ({job.reason})."), "cancelled"
            elif isinstance(result, Exception):
                job.error, job.state = bare(result), "failed"
            else:
                job.result, job.state = result, "completed"
        if job.state == "failed":
            log.warning("job %s failed: %s: %a", job.id[:6], type(job.error).__name__, str(job.error))
        self._metrics.ended(self.name, job)
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

    @property
    def _running(self) -> list[ImageJob]:
        return [job for batch in self._batches for job in batch]

    def _count(self) -> None:
        now = len(self._waiting), len(self._running)
        for gauge, count, before in zip((self._metrics.depth, self._metrics.running), now, self._counted, strict=True):
            gauge.labels(self.name).inc(count - before)  # another queue of this name may count too
        self._counted = now


def close_all(queues: Sequence[Queue], seconds: float | None = None) -> bool:
    """Let queues accept no more jobs, and wait up to `seconds` for those that they accepted; the rest is cancelled.

    Returns whether all were finished. Threads that don't end `GRACE_SECONDS` later, of all queues together, are left to
    themselves: then their queue has `hung`.
    """
    for queue in queues:
        queue.refuse()
    until = None if seconds is None else time.monotonic() + seconds
    left = [queue for queue in queues if not queue.join(until)]
    for queue in left:
        queue.stop()
    until = time.monotonic() + GRACE_SECONDS + END_SECONDS
    for queue in left:
        queue.join(until)
    for queue in left:
        queue.give_up()
    return not left
