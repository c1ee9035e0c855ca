"""An operator's check of finished images: what it gives a reason for is withheld."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from importlib import import_module
from threading import Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CancelledError, RequestError
from ..core.record import in_a_line
from ..core.request import Result
from .errors import ApiError
from .image_job import ImageJob
from .metrics import Metrics

Check = Callable[[NDArray[np.uint8]], str | None]
"""Given an image, [height, width, 3], sRGB, read-only; returns why it is withheld, or None."""
LOOK_SECONDS = 0.05
"""Between two looks whether a job is still wanted whose image is being checked."""
TRIAL_SIDE = 64
MOST_REASON = 200
"""Characters of a reason that clients are shown."""

log = logging.getLogger("latentc.serving")


class FilteredError(ApiError):
    """All images of a job were withheld. Its code and type are those of OpenAI's moderation."""

    def __init__(self, result: Result, reasons: Mapping[int, str]) -> None:
        """`result` is kept with black images, for APIs that answer with an image even so."""
        said = "; ".join(dict.fromkeys(reasons.values()))
        super().__init__(400, f"This server's check of images withheld the result: {said}", code="moderation_blocked")
        self.result = replace(result, images=_black(result.images), latents=_black(result.latents))

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        return "image_generation_user_error"


def load_check(name: str) -> Check:
    """The function that `MODULE:FUNCTION` names, after a trial on a grey image. Raises `RequestError`."""
    module, _, attribute = name.partition(":")
    advice = "Pass MODULE:FUNCTION, with the module's folder in PYTHONPATH."
    try:
        check: Check = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as exc:  # whatever the module does when it is imported
        reason = _said(exc)
        raise RequestError(f"The check {name!a} can't be loaded ({reason}). {advice}") from exc
    try:
        _reason(check, np.full((TRIAL_SIDE, TRIAL_SIDE, 3), 128, np.uint8))
    except (Exception, SystemExit) as exc:
        reason = _said(exc)
        raise RequestError(f"The check {name!a} failed on a grey image ({reason}). Correct it.") from exc
    return check


def checking(check: Check, turn: Lock, job: ImageJob, metrics: Metrics) -> Callable[[Result], Result]:
    """What checks the images of a job's result: those that are withheld are black in what it returns.

    Whoever has `turn` runs the check. A job that is cancelled or past its deadline waits no longer for it: the check
    goes on by itself, and the next job waits for its end. It raises `FilteredError` if all are withheld, `ApiError` 500
    if the check fails, and `CancelledError`.
    """

    def checked(result: Result) -> Result:
        try:
            found = [_in_time(check, turn, image, job) for image in result.images]
        except CancelledError:
            log.warning("job %s ends before its check has answered", job.id[:6])
            raise
        except BaseException as exc:  # SystemExit too, which would end the engine's thread
            log.exception("the check of job %s failed", job.id[:6])
            message = "The image could not be checked, so it is withheld. The server's log has details."
            raise ApiError(500, message, code="check_failed") from exc
        reasons = {index: reason for index, reason in enumerate(found) if reason is not None}
        if not reasons:
            return result
        metrics.filtered.labels(job.model).inc(len(reasons))
        job.filtered = reasons
        if len(reasons) == len(found):
            raise FilteredError(replace(result, notices=(*result.notices, *_said_of(reasons, len(found)))), reasons)
        images, latents = result.images.copy(), np.array(result.latents)
        images[list(reasons)], latents[list(reasons)] = 0, 0
        notices = (*result.notices, *_said_of(reasons, len(found)))
        return replace(result, images=images, latents=latents, notices=notices)

    return checked


def _in_time(check: Check, turn: Lock, image: NDArray[np.uint8], job: ImageJob) -> str | None:
    """`_reason` in a thread of its own, so that no check keeps a job beyond its deadline or its cancellation, which
    raise `CancelledError`.
    """
    found: Future[str | None] = Future()

    def work() -> None:
        try:
            found.set_result(_reason(check, image))
        except BaseException as exc:  # SystemExit too, which would end this thread alone
            found.set_exception(exc)
        finally:
            turn.release()

    while not turn.acquire(timeout=LOOK_SECONDS):
        _check_wanted(job)
    try:
        Thread(target=work, name="latentc check", daemon=True).start()
    except RuntimeError:  # no thread can be started
        turn.release()
        raise
    while not wait([found], LOOK_SECONDS).done:
        _check_wanted(job)
    return found.result()


def _check_wanted(job: ImageJob) -> None:
    if job.reason is None and job.late:
        job.reason = "deadline"
    if job.reason is not None:
        raise CancelledError(f"The job was cancelled ({job.reason}).")


def _said_of(reasons: Mapping[int, str], count: int) -> list[str]:
    """The notice of each image that is withheld."""
    return [f"Image {index + 1} of {count} was withheld: {reason}" for index, reason in reasons.items()]


def _black(array: NDArray[Any]) -> NDArray[Any]:
    """Zeros of an array's shape and dtype, which take the memory of one."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _reason(check: Check, image: NDArray[np.uint8]) -> str | None:
    """Why an image is withheld; raises `TypeError` for anything but a text or None."""
    shown = image.view()
    shown.flags.writeable = False
    found: Any = check(shown)
    if found is None:
        return None
    if not isinstance(found, str):
        raise TypeError(f"it returned {type(found).__name__}, and not a text or None")
    return " ".join(found.split())[:MOST_REASON] or "no reason was given"


def _said(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {in_a_line(exc)}"
