"""Several requests at once: their denoiser calls are joined, and each gets the rows that it would get alone.

Each of several requests is generated in a thread of its own. When all of them wait for a denoiser, the calls that
differ in their rows only are computed as one. Text encoders and the VAE are called as for a single request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import TypeVar

import numpy as np

from ..core.bundle import Bundle
from ..core.engine import Engine, Run
from ..core.errors import CancelledError, RequestError
from ..core.request import Fitted, Request
from ..core.tensors import Array
from ..sampling.denoise import is_guided
from .complete import size_and_seed
from .engines import EngineProvider

T = TypeVar("T")

_Key = tuple[int, ...]
"""The identities of the arrays that are bound."""

_Bound = tuple[tuple[Mapping[str, Array], ...], Run]
"""These arrays, which are kept for as long as their identities are used, and the bound engine."""


@dataclass(eq=False)
class _Call:
    """A call that waits for the others."""

    part: str
    fixed: Mapping[str, Array]
    """The same arrays in each call of a request."""
    varying: Mapping[str, Array]
    outputs: dict[str, Array] | None = None
    error: Exception | None = None

    @property
    def feeds(self) -> dict[str, Array]:
        return {**self.fixed, **self.varying}


def together(
    bundle: Bundle, engines: EngineProvider, work: Sequence[Callable[[EngineProvider], T]], rows: int | None = None
) -> list[T | Exception]:
    """Run functions that take engines, each in a thread, with their denoiser calls joined; returns results or errors.
    A single one runs in the calling thread. Where denoisers take so many `rows` only, a call of fewer is filled with
    copies of its last one, whose results are dropped.

    An error of one function doesn't affect the others. If the calling thread is interrupted, all of them are cancelled.
    """
    if len(work) == 1 and rows is None:
        try:
            return [work[0](engines)]
        except Exception as exc:
            return [exc]
    meeting = _Meeting(bundle, engines, len(work), rows)
    found: list[T | Exception] = [CancelledError("The request was cancelled.")] * len(work)

    def run(index: int) -> None:
        try:
            found[index] = work[index](meeting)
        except Exception as exc:
            found[index] = exc
        finally:
            meeting.leave()

    threads = [Thread(target=run, args=(index,), daemon=True) for index in range(len(work))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        for thread in threads:
            if thread.ident is None:  # it was never started
                meeting.leave()
        meeting.stop()
        raise
    return found


@dataclass
class _Meeting:
    """An `EngineProvider` for several threads, where the calls of denoisers wait for each other."""

    bundle: Bundle
    inner: EngineProvider
    live: int
    """Threads that are not finished."""
    rows: int | None
    """Of each call, if calls of fewer are filled."""
    _waiting: list[_Call] = field(default_factory=list[_Call], init=False)
    _turn: Condition = field(default_factory=Condition, init=False)
    _stopped: bool = field(default=False, init=False)
    _asked: dict[tuple[int, int], Request] = field(default_factory=dict[tuple[int, int], Request], init=False)
    """A completed request of each width and height."""
    _fitting: dict[tuple[int, int, int], bool] = field(default_factory=dict[tuple[int, int, int], bool], init=False)
    """Whether rows of a width and height can be computed together, by all three."""
    _bound: dict[_Key, _Bound] = field(default_factory=lambda: dict[_Key, _Bound](), init=False)
    """Engines that were bound for the last calls."""

    @property
    def notices(self) -> tuple[str, ...]:
        return self.inner.notices

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        if self.bundle.part(part).role != "denoiser":
            return self.inner.engine(part, shapes)
        rowed = self._rowed(part) if self.rows is not None else ()
        self.inner.engine(
            part, {name: (self.rows or 0, *one[1:]) if name in rowed else one for name, one in shapes.items()}
        )
        return _Joined(self, part)

    def check_room(self, request: Request) -> None:
        self.inner.check_room(request)
        with self._turn:
            self._asked[size_and_seed(request)[:2]] = request

    def fit(self, passes: Sequence[Request]) -> Fitted | None:
        return self.inner.fit(passes)

    def describe(self) -> dict[str, str]:
        return self.inner.describe()

    def close(self) -> None:
        self.inner.close()

    def leave(self) -> None:
        """A thread is finished: the others no longer wait for it."""
        with self._turn:
            self.live -= 1
            self._turn.notify_all()

    def stop(self) -> None:
        """Cancel every call from now on, and wait for those that run."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
            while self.live > 0:
                self._turn.wait()

    def answer(self, call: _Call) -> dict[str, Array]:
        """The outputs of a call, after every live thread has made one."""
        with self._turn:
            self._waiting.append(call)
            self._turn.notify_all()
            while call.outputs is None and call.error is None:
                if self._stopped:
                    raise CancelledError("The request was cancelled.")
                if len(self._waiting) < self.live:
                    self._turn.wait()
                    continue
                calls, self._waiting = self._waiting, []
                self._compute_all(calls)
                self._turn.notify_all()
        if call.error is not None:
            raise call.error
        assert call.outputs is not None
        return call.outputs

    def _compute_all(self, calls: Sequence[_Call]) -> None:
        """Give each call its outputs or an error."""
        before, self._bound = self._bound, {}
        try:
            for group in self._groups(calls):
                for part in self._parted(group):
                    self._compute(part, before)
        except Exception as exc:  # the other threads wait for an answer
            for call in calls:
                call.error = call.error or (exc if call.outputs is None else None)

    def _groups(self, calls: Sequence[_Call]) -> list[list[_Call]]:
        """Calls of one part that differ in their rows only."""
        found: dict[object, list[_Call]] = {}
        for call in calls:
            rowed = self._rowed(call.part)
            same = tuple(
                (name, array.shape[1:] if name in rowed else array.tobytes())
                for name, array in sorted(call.feeds.items())
            )
            found.setdefault((call.part, same), []).append(call)
        return list(found.values())

    def _parted(self, group: list[_Call]) -> list[list[_Call]]:
        """The same calls in groups of at most `rows`."""
        parts: list[list[_Call]] = [[]]
        for call in group:
            if self.rows is not None and parts[-1] and self._rows_of([*parts[-1], call])[2] > self.rows:
                parts.append([])
            parts[-1].append(call)
        return parts

    def _rowed(self, part: str) -> frozenset[str]:
        return frozenset(one.name for one in self.bundle.part(part).inputs if one.shape and one.shape[0] == "batch")

    def _compute(self, group: list[_Call], before: Mapping[_Key, _Bound]) -> None:
        """Compute calls as one, or one by one where they don't fit an engine or memory together, or fail."""
        if len(group) > 1 and self._fits(group):
            if self._tried(group, before) is None:
                return
            self._fitting[self._rows_of(group)] = False
        for call in group:
            call.error = self._tried([call], before)

    def _tried(self, group: Sequence[_Call], before: Mapping[_Key, _Bound]) -> Exception | None:
        """Compute calls as one; returns the error, after which they have no outputs."""
        rowed = self._rowed(group[0].part)
        try:
            outputs = self._run(group, before)(_joined([call.varying for call in group], rowed, self.rows))
            first = 0
            for call in group:
                rows = next(len(array) for name, array in call.feeds.items() if name in rowed)
                call.outputs = {name: array[first : first + rows].copy() for name, array in outputs.items()}
                first += rows
        except Exception as exc:
            for call in group:
                call.outputs = None
            return exc
        return None

    def _fits(self, group: Sequence[_Call]) -> bool:
        """Whether the rows of all calls are predicted to fit in memory."""
        width, height, rows = key = self._rows_of(group)
        if key not in self._fitting:
            asked, model = self._asked.get((width, height)), self.bundle.manifest.model
            self._fitting[key] = True
            if asked is not None:
                per_image = model.guided_rows if is_guided(model, asked) else 1
                try:
                    self.inner.check_room(asked.model_copy(update={"count": -(-rows // per_image)}))
                except RequestError:
                    self._fitting[key] = False
        return self._fitting[key]

    def _rows_of(self, group: Sequence[_Call]) -> tuple[int, int, int]:
        """Width and height of calls in pixels, and their rows together."""
        model = self.bundle.manifest.model
        sample = [call.varying[model.latents_input] for call in group]
        height, width = (side * model.downscale for side in sample[0].shape[-2:])
        return width, height, sum(map(len, sample))

    def _run(self, group: Sequence[_Call], before: Mapping[_Key, _Bound]) -> Run:
        """The engine for these calls, with their fixed arrays bound, as in the calls `before`."""
        key = tuple(id(call.fixed) for call in group)
        if key not in before:
            rowed, part = self._rowed(group[0].part), group[0].part
            fixed = _joined([call.fixed for call in group], rowed, self.rows)
            varying = _joined([call.varying for call in group], rowed, self.rows)
            shapes = {name: array.shape for name, array in (fixed | varying).items()}
            engine = self.inner.engine(part, shapes)
            if not fixed:
                return engine.run
            self._bound[key] = tuple(call.fixed for call in group), engine.bind(fixed)
        else:
            self._bound[key] = before[key]
        return self._bound[key][1]


class _Joined:
    """The engine of a part, as one of the threads sees it."""

    def __init__(self, meeting: _Meeting, part: str) -> None:
        self._meeting, self._part = meeting, part

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._meeting.answer(_Call(self._part, {}, feeds))

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        fixed = dict(feeds)
        return lambda varying: self._meeting.answer(_Call(self._part, fixed, varying))

    def close(self) -> None:
        """Nothing of its own."""


def _joined(each: Sequence[Mapping[str, Array]], rowed: frozenset[str], rows: int | None) -> dict[str, Array]:
    """Arrays of several calls, row after row, filled up to `rows`; those without rows are the same in all."""
    if len(each) == 1 and rows is None:
        return dict(each[0])

    def joined(arrays: list[Array]) -> Array:
        more = (rows or 0) - sum(map(len, arrays))
        return np.concatenate([*arrays, *[arrays[-1][-1:]] * more])

    return {name: joined([one[name] for one in each]) if name in rowed else array for name, array in each[0].items()}
