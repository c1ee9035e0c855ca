"""The jobs of a server by id: those that are on their way, and ended ones for a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .errors import ApiError
from .image_job import ImageJob

MOST_KEPT, MOST_DROPPED = 1000, 10_000


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


def _bytes(job: ImageJob) -> int:
    texts = 4 * (len(job.request.prompt) + len(job.request.negative_prompt)) + len(job.source or b"")
    return texts if job.result is None else texts + job.result.images.nbytes + job.result.latents.nbytes
