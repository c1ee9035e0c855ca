"""What an HTTP API is built over: the models that a server has open, their queues, and its limits."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Lock, Thread
from typing import Any

from fastapi import Request as HttpRequest

from ..core.request import Request, Result, Step
from .checks import Check, FilteredError, checking
from .credits import Credits, account_of
from .decoding import Decoder
from .errors import NO_ANSWER, ApiError
from .history import History
from .image_job import ImageJob, result_of
from .inputs import check_taken, files_of
from .kept import KeptJobs
from .limits import Limits
from .metrics import Metrics
from .opened import OpenModel, steps_run
from .prompts import PromptModel
from .queue import close_all
from .residents import Presence, Residents
from .served import Reopen, ServedModel, served
from .signing import ContentSigner
from .spans import record_job, trace_context

HEARTBEAT = 15.0
"""Seconds after which a stream says that it is alive."""
CLOSE_SECONDS = 10.0
"""For which the end of a server waits until models that were replaced are closed."""

log = logging.getLogger("latentc.serving")


@dataclass(frozen=True)
class Additions:
    """What an operator may add to a server; None is without."""

    history: History | None = None
    """Finished images that survive a restart."""
    credits: Credits | None = None
    """What requests cost."""
    prompts: PromptModel | None = None
    """What expands prompts."""
    check: Check | None = None
    """What decides on finished images."""
    signer: ContentSigner | None = None
    """What signs files."""


@dataclass
class Service:
    """The models of a server by name, their queues, and the jobs that it keeps."""

    limits: Limits
    metrics: Metrics
    models: Mapping[str, ServedModel]
    kept: KeptJobs
    added: Additions = Additions()
    residents: Residents | None = None
    """What loads models when they are asked for; None where all are loaded."""
    draining: bool = False
    reopen: Reopen | None = None
    """What opens a model again, for `loading.load`; None where that isn't possible."""
    model_control: bool = False
    """Whether clients may load models again."""
    loads: Lock = field(default_factory=Lock, init=False)
    """Held while a model is loaded again."""
    _leaving: list[ServedModel] = field(default_factory=list[ServedModel], init=False)
    """Models that others have replaced, until their jobs have ended and they are closed."""
    _swap: Condition = field(default_factory=Condition, init=False)
    _warm: list[ImageJob] = field(default_factory=list[ImageJob], init=False)
    _checks: Lock = field(default_factory=Lock, init=False)
    """Held while an image is checked."""

    def __post_init__(self) -> None:
        self.decode = Decoder(self.limits.image_pixels, self.limits.queue)

    def start(self) -> None:
        """Start the queues, each with a first image: until they are done, the server isn't ready. Of models that are
        loaded when they are asked for, only the first is.
        """
        if self.residents is not None:
            self.residents.start({name: model.queue for name, model in self.models.items()})
        for index, model in enumerate(self.models.values()):
            model.start()
            if not index or self.residents is None:
                self._warm.append(model.warm_up())

    @property
    def ready(self) -> bool:
        """Whether each model has generated an image, its queue works, and new requests are accepted."""
        warm = all(job.state == "completed" for job in self._warm)
        return warm and not self.draining and all(model.works for model in self.models.values())

    def warmed(self) -> None:
        """Wait for the first images; raises the error of one that failed."""
        for job in self._warm:
            job.wait()

    def close(self, seconds: float | None = None) -> bool:
        """Accept no more jobs, and wait up to `seconds` for those that were accepted; returns whether all finished."""
        self.draining = True
        with self._swap:
            every = self._every
        for model in every:
            model.stop()
        finished = close_all([model.queue for model in every], seconds)
        if self.residents is not None:
            self.residents.close()
        with self._swap:
            self._swap.wait_for(lambda: not self._leaving or self.hung, CLOSE_SECONDS)
        return finished

    @property
    def hung(self) -> bool:
        """Whether `close` has given up a batch; see `Queue.hung`."""
        return any(model.queue.hung for model in self._every)

    def replace(self, new: ServedModel) -> bool:
        """Let a model that was started answer instead of the one of its name, which finishes the jobs that it has
        accepted, and is closed. Returns False at the end of the server, and changes nothing.
        """
        with self._swap:
            if self.draining:
                return False
            old = self.models[new.name]
            self._leaving.append(old)  # before the other takes its place, so that `of` finds its jobs
            self.models = {**self.models, new.name: new}
        Thread(target=self._retire, args=(old,), name=f"latentc {new.name} leaving", daemon=True).start()
        return True

    def _retire(self, old: ServedModel) -> None:
        """Wait for the jobs of a model that was replaced, and close it."""
        old.queue.refuse()
        if not old.queue.join(None):
            return
        self.discard(old)
        with self._swap:
            self._leaving.remove(old)
            self._swap.notify_all()

    def discard(self, model: ServedModel) -> None:
        """Close a model whose queue is closed."""
        model.stop()
        try:
            model.pipeline.close()
        except Exception:
            log.exception("%s could not be closed", model.name)

    @property
    def _every(self) -> list[ServedModel]:
        return [*self.models.values(), *self._leaving]

    def of(self, job: ImageJob) -> ServedModel:
        """The model that has a job."""
        current = self.models[job.model]
        return next((one for one in tuple(self._leaving) if one.queue.has(job)), current)

    def leaves(self, name: str) -> bool:
        """Whether a model of this name that was replaced is still open."""
        return any(one.name == name for one in tuple(self._leaving))

    def state(self, name: str) -> Presence:
        """Whether the engines of a model are in memory."""
        return "open" if self.residents is None else self.residents.state(name)

    def model(self, name: str | None) -> ServedModel:
        """The model of a name; with a single one, any name is taken. Raises `ApiError` 404."""
        if len(self.models) == 1 or name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(
                404,
                f"There is no model {name[:80]!a}. Known: {', '.join(self.models)}.",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    def check_first(self, request: Request, model: str | None = None) -> ServedModel:
        """The model of a name, if its queue has room and what the request states is within the limits.

        `submit` begins with it; APIs call it before they decode images. Raises `ApiError`.
        """
        while True:
            chosen = self.model(model)
            try:
                chosen.queue.check_room()
            except ApiError:
                if chosen is self.models[chosen.name]:
                    raise
                continue
            self.limits.check(request)
            return chosen

    async def submit(
        self,
        request: Request,
        http: HttpRequest,
        *,
        model: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        api: str = "",
        keep: bool = False,
        on_step: Callable[[ImageJob, Step], bool | None] | None = None,
        store: bool = True,
        source: bytes | None = None,
        seconds: float = math.inf,
    ) -> ImageJob:
        """Check a request against the limits and the model, and queue it.

        `inputs` is what is passed in beside it: keyword arguments of `Pipeline.__call__`, where images may be the bytes
        of files, and `control` is a list. Whoever sent `http` may list the job, and pays. With `keep`, the result can
        be found by the job's id for a time. Without `store`, the images don't enter the history. `source` is the file
        of an image that is passed in decoded. The deadline is `job_seconds` of the limits after `http` arrived, or
        `seconds`, if they are fewer.

        Raises `ApiError` and `RequestError` before anything is queued.
        """
        chosen = self.check_first(request, model)
        again = partial(self.submit, request, http, model=chosen.name, inputs=inputs, api=api, keep=keep)
        again = partial(again, on_step=on_step, store=store, source=source, seconds=seconds)
        beside = dict(inputs or {})
        check = partial(chosen.pipeline.check, request, within=self.limits.check, **beside)
        check_taken(chosen.pipeline.bundle.manifest.model, beside)
        try:
            asked = await (self.decode(check, files_of(beside)) if beside else asyncio.to_thread(check))
        except Exception:
            if chosen is self.models[chosen.name]:
                raise
            return await again()  # another has replaced it meanwhile
        size_and_seed = {name: getattr(asked, name) for name in ("width", "height", "seed")}
        job = ImageJob(
            request.model_copy(update=size_and_seed),
            beside,
            chosen.name,
            api,
            http.state.owner,
            deadline=http.state.arrived + min(seconds, self.limits.job_seconds),
            on_step=on_step,
            completed=asked,
        )
        if store and self.added.history is not None:
            job.stored = Future()
        if self.added.signer is not None:
            job.source = beside["image"] if isinstance(beside.get("image"), bytes) else source
        if self.added.check is not None:
            job.finish = checking(self.added.check, self._checks, job, self.metrics)
        prices = self.added.credits
        cost = 0 if prices is None else prices.cost(asked, steps_run(chosen.pipeline, asked))
        ended = self._at_the_end(job, cost)
        job.listeners.append(ended)
        try:
            chosen.queue.submit(job)
        except Exception:
            job.state = "failed"
            ended()
            if chosen is self.models[chosen.name]:
                raise
            return await again()
        if keep:
            self.kept.add(job)
        return job

    def _at_the_end(self, job: ImageJob, cost: int) -> Callable[[], None]:
        """A listener that does once, when a job has ended, what follows from that. `cost` is set aside: raises
        `ApiError` 402.
        """
        account, prices, within = account_of(job.owner), self.added.credits, trace_context()
        if prices is not None:
            prices.reserve(account, cost)

        def heard() -> None:
            if not job.done:
                return
            try:
                job.listeners.remove(heard)
            except ValueError:  # heard in another thread
                return
            if prices is not None:
                prices.settle(account, cost, spent=cost * _charged(job) // job.request.count)
            if job.stored is not None and self.added.history is not None:
                if job.state == "completed":
                    self.added.history.put(job)
                else:
                    job.stored.set_result({})
            record_job(job, within)

        return heard

    def cancel(self, job: ImageJob, reason: str = "client") -> bool:
        """Cancel a job; see `Queue.cancel`."""
        return self.of(job).queue.cancel(job, reason)

    def position(self, job: ImageJob) -> int | None:
        """Number of jobs before a job that waits, from 0; None if it doesn't wait."""
        return self.of(job).queue.position(job)

    def shows_previews(self, model: ServedModel) -> bool:
        """Whether images in progress may be shown: a model can't where its export fitted no preview, and a server with
        a check doesn't, because the check decides on finished images.
        """
        return self.added.check is None and model.pipeline.bundle.manifest.model.preview is not None

    async def result(self, job: ImageJob, http: HttpRequest, *, black: bool = False) -> Result:
        """Wait for a job until its end or deadline; cancels it if its client disconnects. Raises its error, or
        `ApiError` `NO_ANSWER`.

        If `black`, a result that was withheld is black images, and no error.
        """
        gone = asyncio.ensure_future(_disconnected(http))
        try:
            async for _ in self.changes(job, gone, steps=False):
                pass
        finally:
            gone.cancel()
            self.cancel(job, "disconnect")  # unless it has ended
        if job.reason == "disconnect":
            raise ApiError(NO_ANSWER, "The client has left.", code="disconnected")
        if black and isinstance(job.error, FilteredError):
            return job.error.result
        return result_of(job)

    async def changes(
        self, job: ImageJob, gone: asyncio.Future[None] | None = None, *, steps: bool = True, whole: bool = False
    ) -> AsyncGenerator[None]:
        """Yield at first, after each change of a job (without `steps`, after its end) and every `HEARTBEAT` seconds,
        until it has ended or `gone` is done. At its deadline, cancels it, and ends unless `whole`: the engine may take
        long to stop.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def heard() -> None:
            if not steps and not job.done:
                return
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.set)

        job.listeners.append(heard)
        try:
            while True:
                changed.clear()
                done = job.done
                yield
                if done or (gone is not None and gone.done()) or (job.reason == "deadline" and not whole):
                    return
                left = HEARTBEAT
                if job.deadline is not None and job.reason is None:
                    left = min(left, max(0.0, job.deadline - time.monotonic()))
                waiting = asyncio.ensure_future(changed.wait())
                try:
                    either = [waiting] if gone is None else [waiting, gone]
                    await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
                if job.late:
                    self.cancel(job, "deadline")
        finally:
            job.listeners.remove(heard)


def serve(
    pipelines: Mapping[str, OpenModel],
    limits: Limits | None = None,
    added: Additions | None = None,
    residents: Residents | None = None,
) -> Service:
    """A service of open pipelines by name; `start` begins its work, and `close` ends it. `residents` loads those that
    aren't loaded.
    """
    limits, metrics = limits or Limits(), Metrics()
    models = {name: served(name, pipeline, limits, metrics, residents) for name, pipeline in pipelines.items()}
    kept = KeptJobs(limits.keep_seconds, limits.keep_bytes)
    return Service(limits, metrics, models, kept, added or Additions(), residents)


def _charged(job: ImageJob) -> int:
    """How many images of a job that has ended are paid for: those that are not withheld. Whoever cancels it after a
    partial image pays as if it were finished.
    """
    left = job.shown and job.reason in ("client", "disconnect")
    return job.request.count - len(job.filtered) if left or job.state == "completed" else 0


async def _disconnected(http: HttpRequest) -> None:
    """Return when the client has closed the connection."""
    with suppress(ApiError):  # more than a body, which is too much
        while (await http.receive())["type"] != "http.disconnect":
            pass
