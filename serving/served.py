"""A bundle that is served under a name: what generates its images, its queue, and its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.bundle import Bundle
from ..core.errors import RequestError
from .image_job import WARM_UP, ImageJob
from .limits import Limits
from .metrics import Metrics
from .opened import OpenModel, first_request
from .queue import Queue
from .replicas import Replicas
from .residents import Residents
from .scaling import Scaling

Reopen = Callable[[str, Mapping[str, Bundle]], OpenModel]
"""Opens what the folder of a served name holds now, beside these bundles. Raises `LatentcError`, also where it doesn't
fit in memory beside them.
"""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A bundle that is served under a name."""

    name: str
    pipeline: OpenModel
    queue: Queue
    created: int
    """Unix time in seconds at which it was opened."""
    scaling: Scaling | None = None
    """What starts and ends its processes, where there are as many as are needed."""

    def start(self) -> None:
        """Begin to generate."""
        self.queue.start()
        if self.scaling is not None:
            self.scaling.start()

    def warm_up(self) -> ImageJob:
        """A first image, which is queued."""
        return self.queue.submit(ImageJob(*first_request(self.pipeline), self.name, WARM_UP))

    def stop(self) -> None:
        """Start and end no more processes."""
        if self.scaling is not None:
            self.scaling.close()

    @property
    def works(self) -> bool:
        """Whether its queue and a process of it run."""
        return self.queue.works and (not isinstance(self.pipeline, Replicas) or self.pipeline.room() > 0)


def served(
    name: str,
    pipeline: OpenModel,
    limits: Limits,
    metrics: Metrics,
    residents: Residents | None = None,
) -> ServedModel:
    """A model with a queue of its own, which isn't started. Raises `RequestError` for one of videos."""
    if pipeline.bundle.manifest.model.frames is not None:
        raise RequestError(f"{name} generates videos, and the server answers with images. Leave it out.")
    replicas = pipeline if isinstance(pipeline, Replicas) else None

    def room() -> int:
        if residents is not None and not residents.ask(name):
            return 0
        return 1 if replicas is None else replicas.room()

    threads = 1 if replicas is None else replicas.count
    queue = Queue(name, pipeline.draw_many, limits, metrics, threads=threads, room=room)
    now = int(time.time())
    if replicas is None:
        return ServedModel(name, pipeline, queue, now)

    def changed() -> None:
        metrics.replicas.labels(name).set(replicas.room())
        queue.wake()

    replicas.on_change, replicas.on_restart = changed, metrics.restarts.labels(name).inc
    replicas.hangs = queue.hangs
    changed()
    scaling = Scaling(replicas, queue) if replicas.least < replicas.count else None
    return ServedModel(name, replicas, queue, now, scaling)
