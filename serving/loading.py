"""Models that are replaced while a server runs: what their folders hold now answers, once it has generated an image."""

from __future__ import annotations

import logging
import re
from itertools import count

from ..core.errors import LatentcError
from .errors import ApiError
from .replicas import Replicas
from .served import ServedModel, served
from .service import Service

log = logging.getLogger("latentc.serving")

_DIRECTORIES = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+")
"""Of a path, all but its last name."""
_numbers = count(2)


def load(service: Service, name: str) -> None:
    """Open what the folder of a model holds now, let it generate a first image, and let it answer from then on. The
    one that was open finishes the jobs that it has accepted, and is closed.

    Raises `ApiError` that says why it can't; then nothing has changed.
    """
    _check_named(service, name)
    if not service.loads.acquire(blocking=False):
        raise ApiError(409, "A model is being loaded. Try again when it is.", code="loading", retry_seconds=5)
    try:
        new = _opened(service, name)
        if not service.replace(new):
            _end(service, new)
            raise ApiError(503, "The server is shutting down. Try again later.", code="draining", retry_seconds=5)
    except (LatentcError, ApiError) as exc:
        if service.draining:
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


def load_all(service: Service) -> None:
    """`load` of all models in turn; the log says which failed."""
    for name in service.models:
        try:
            load(service, name)
        except ApiError as exc:
            log.warning("%s", exc)


def unload(service: Service, name: str) -> None:
    """Free the memory of a model's engines until a request asks for it. Raises `ApiError` where it can't."""
    _check_named(service, name)
    if service.residents is None:
        raise ApiError(400, "This server keeps its models in memory. Start it with --memory to free them.")
    if not service.residents.free(service.models[name].key):
        raise ApiError(409, f"{name} has jobs. Try again when they have ended.", code="busy", retry_seconds=5)


def _opened(service: Service, name: str) -> ServedModel:
    """A model that has generated an image, and isn't served yet."""
    if service.reopen is None:
        raise ApiError(400, "This server can't load models again. Start it again.")
    pipeline, held_bytes = service.reopen(name)
    try:
        new = served(name, pipeline, service.limits, service.metrics, service.residents, f"{name}/{next(_numbers)}")
    except BaseException:
        pipeline.close()
        raise
    if service.residents is not None:
        service.residents.add(new.key, pipeline, held_bytes, new.queue)
    try:
        new.start()
        new.warm_up().wait()
    except BaseException:
        _end(service, new)
        raise
    return new


def _end(service: Service, new: ServedModel) -> None:
    """Close a model that isn't served."""
    if new.queue.close(0) or not new.queue.hung:
        service.discard(new)
    if isinstance(old := service.models[new.name].pipeline, Replicas):
        old.on_change()  # the metrics show it again


def _check_named(service: Service, name: str) -> None:
    if name not in service.models:
        known = ", ".join(service.models)
        raise ApiError(404, f"There is no model {name[:80]!a}. Known: {known}.", param="model", code="model_not_found")


def _failed(name: str, why: str) -> str:
    return f"{name} was not loaded, and the one that was open still answers. {why}"
