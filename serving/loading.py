"""Models that are replaced while a server runs: what their folders hold now answers, once it has generated an image."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread

from ..core.errors import LatentcError
from .errors import ApiError
from .image_job import ImageJob
from .replicas import Replicas
from .served import served
from .service import Service

log = logging.getLogger("latentc.serving")

_DIRECTORIES = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+")
"""Of a path, all but its last name."""
DRAINING = "draining"


def load(service: Service, name: str, *, wait: bool = False) -> None:
    """Open what the folder of a model holds now, let it generate a first image, and let it answer from then on. The
    one that was open finishes the jobs that it has accepted, and is closed.

    With `wait`, it begins when another load has ended. Raises `ApiError` that says why it can't; then nothing has
    changed.
    """
    if name not in service.models:
        known = ", ".join(service.models)
        raise ApiError(404, f"There is no model {name[:80]!a}. Known: {known}.", param="model", code="model_not_found")
    if service.reopen is None or service.residents is not None:
        raise ApiError(400, "This server, as one with --memory or on Ray, can't load models again. Start it again.")
    if not service.loads.acquire(blocking=wait):
        raise ApiError(409, "A model is being loaded. Try again when it is.", code="loading", retry_seconds=5)
    try:
        _replace(service, name)
    except (LatentcError, ApiError) as exc:
        if isinstance(exc, ApiError) and exc.code in (DRAINING, "leaving"):
            raise
        log.warning("%s was not loaded again: %a", name, str(exc))
        raise ApiError(400, _failed(name, _DIRECTORIES.sub("", str(exc))), code="not_loaded") from exc
    except Exception as exc:
        log.exception("%s was not loaded again", name)
        said = f"{type(exc).__name__}. The server's log has details."
        raise ApiError(500, _failed(name, said), code="not_loaded") from exc
    finally:
        service.loads.release()
    log.info("%s was loaded again", name)


async def load_apart(service: Service, name: str) -> None:
    """`load` in a thread for which the end of the server does not wait."""
    done = Future[None]()
    done.set_running_or_notify_cancel()  # it goes on if its client leaves

    def work() -> None:
        try:
            done.set_result(load(service, name))
        except BaseException as exc:
            done.set_exception(exc)

    Thread(target=work, name=f"latentc {name} loading", daemon=True).start()
    await asyncio.wrap_future(done)


def load_all(service: Service) -> None:
    """`load` of all models in turn; the log says which failed."""
    for name in service.models:
        with suppress(ApiError):  # which is logged
            load(service, name, wait=True)


def _replace(service: Service, name: str) -> None:
    _check_draining(service)
    if service.leaves(name):
        raise ApiError(409, f"The {name} before has jobs. Try again later.", code="leaving", retry_seconds=5)
    assert service.reopen is not None
    pipeline = service.reopen(name, {one: model.pipeline.bundle for one, model in service.models.items()})
    try:
        new = served(name, pipeline, service.limits, service.metrics)
    except BaseException:
        pipeline.close()
        raise
    try:
        new.start()
        _wait(service, new.warm_up())
        if not service.replace(new):
            _check_draining(service)
    except BaseException:
        if new.queue.close(0) or not new.queue.hung:
            service.discard(new)
        if isinstance(old := service.models[name].pipeline, Replicas):
            old.on_change()  # the metrics show it again
        raise


def _wait(service: Service, job: ImageJob) -> None:
    """Wait for a first image; raises its error, and `ApiError` at the end of the server."""
    while not job.done:
        _check_draining(service)
        time.sleep(0.01)
    job.wait()


def _check_draining(service: Service) -> None:
    if service.draining:
        raise ApiError(503, "The server is shutting down. Try again later.", code=DRAINING, retry_seconds=5)


def _failed(name: str, why: str) -> str:
    return f"{name} was not loaded, and the one that was open still answers. {why}"
