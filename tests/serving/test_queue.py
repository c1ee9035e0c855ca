"""The queue alone, over a function that draws nothing."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Thread, current_thread
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import CancelledError, RequestError
from latentc.core.request import Request, Result, Step
from latentc.serving.checks import FilteredError
from latentc.serving.errors import ApiError
from latentc.serving.image_job import ImageJob, result_of
from latentc.serving.kept import MOST_KEPT, KeptJobs
from latentc.serving.limits import Limits
from latentc.serving.metrics import Metrics
from latentc.serving.queue import Interrupted, Queue

from .conftest import wait_for

ASKED = {"width": 64, "height": 64, "prompt": "x"}


def result(request):
    pixels = np.zeros((request.count, 8, 8, 3), np.uint8)
    return Result(pixels, np.zeros(1, np.float32), request, {"total": 0.5, "denoiser": 0.25}, (0.25,), {})


@dataclass
class Drawing:
    """Stands for `Pipeline.draw_many`: walks each request's steps in turn, `go` permitting."""

    batches: list = field(default_factory=list)
    go: Event = field(default_factory=Event)
    faults: dict[str, Exception] = field(default_factory=dict)
    before_step: Callable[[int], None] = lambda _: None

    def __call__(self, requests, on_step, *, inputs, return_exceptions):
        assert return_exceptions
        assert self.go.wait(60)
        self.batches.append([request.prompt for request in requests])
        found: dict[int, Result | Exception] = {}
        for step in range(1, requests[0].steps + 1):
            self.before_step(step)
            for index, request in enumerate(requests):
                latents = np.zeros(1, np.float32)
                if index not in found and not on_step[index](Step(step, request.steps, latents, latents)):
                    found[index] = CancelledError("stopped")
        return [found.get(i) or self.faults.get(one.prompt) or result(one) for i, one in enumerate(requests)]


@pytest.fixture
def drawing():
    return Drawing()


@pytest.fixture
def queue(drawing):
    one = Queue("m", drawing, Limits(queue=8, batch=4, wait_seconds=0.0), Metrics())
    one.start()
    yield one
    drawing.go.set()
    one.close(0)


def ask(prompt, **more):
    return ImageJob(Request(**{**ASKED, "steps": 2, **more, "prompt": prompt}))


def submitted(queue, drawing, jobs):
    """The jobs after their end; the first begins alone, and the others wait together."""
    queue.submit(ask("first"))
    wait_for(lambda: queue._running)
    for job in jobs:
        queue.submit(job)
    drawing.go.set()
    wait_for(lambda: all(job.done for job in jobs))
    return jobs


def test_what_waits_is_joined_in_order(queue, drawing):
    jobs = submitted(queue, drawing, [ask(str(index)) for index in range(6)])
    assert drawing.batches == [["first"], ["0", "1", "2", "3"], ["4", "5"]]
    assert [job.state for job in jobs] == ["completed"] * 6


def test_images_are_counted_not_requests(queue, drawing):
    submitted(queue, drawing, [ask("a", count=2), ask("b", count=3), ask("c", count=2), ask("d", count=9)])
    assert drawing.batches == [["first"], ["a"], ["b"], ["c"], ["d"]], "none overtakes an earlier one"


@pytest.fixture
def patient(drawing):
    """A queue that waits long for others, of two jobs a batch."""
    one = Queue("m", drawing, Limits(batch=2, wait_seconds=600.0), Metrics())
    one.start()
    yield one
    drawing.go.set()
    one.close(0)


def test_a_client_alone_waits_for_nobody(patient, drawing):
    drawing.go.set()
    for prompt in ("a", "b"):
        job = patient.submit(ask(prompt))
        wait_for(lambda job=job: job.done)
    assert drawing.batches == [["a"], ["b"]]


def test_clients_that_took_turns_are_joined(patient, drawing):
    """The first client sends its next request once it has its image: a moment after the engine is free."""
    first = patient.submit(ask("a"))
    wait_for(lambda: patient._running)
    second = patient.submit(ask("b"))
    drawing.go.set()
    wait_for(lambda: first.done)
    assert not second.done
    third = patient.submit(ask("c"))
    wait_for(lambda: second.done and third.done)
    assert drawing.batches == [["a"], ["b", "c"]]


@pytest.mark.parametrize("other", [{"width": 96}, {"steps": 3}, {"scheduler": "euler"}, {"adapters": {"a": 1.0}}])
def test_only_what_is_alike_is_joined(queue, drawing, other):
    submitted(queue, drawing, [ask("a"), ask("b", **other), ask("c")])
    assert drawing.batches == [["first"], ["a", "c"], ["b"]]


def test_a_full_queue(queue):
    for index in range(8):
        queue.submit(ask(str(index)))
    with pytest.raises(ApiError) as error:
        queue.submit(ask("more"))
    assert (error.value.status, error.value.code) == (429, "queue_full")
    assert int(error.value.headers["retry-after"]) >= 1


def test_retry_after_is_measured(drawing, monkeypatch):
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("latentc.serving.queue.time", clock)
    drawing.before_step = lambda _: now.__setitem__(0, now[0] + 20)
    queue = Queue("m", drawing, Limits(queue=1, batch=1, wait_seconds=0.0), Metrics())
    queue.start()
    for steps, seconds in ((2, 1), (4, 40), (4, 52)):  # 20 seconds a step, in a moving average
        job = ask("x", steps=steps)
        job.arrived = 0.0
        queue.submit(job)
        with pytest.raises(ApiError) as error:
            queue.submit(ask("more"))
        assert int(error.value.headers["retry-after"]) == seconds
        drawing.go.set()
        wait_for(lambda job=job: job.done)
        drawing.go.clear()
    drawing.go.set()
    queue.close()


def test_a_job_that_waits_is_cancelled_at_once(queue, drawing):
    running, waiting, after = (queue.submit(ask(name)) for name in "abc")
    wait_for(lambda: running in queue._running)
    queue.submit(other := ask("other", steps=9))
    assert queue.position(waiting) is not None or waiting in queue._running
    assert queue.cancel(other)
    assert (other.state, other.reason) == ("cancelled", "client")
    assert not queue.cancel(other)
    drawing.go.set()
    wait_for(lambda: after.done)
    assert after.state == "completed"
    assert not any("other" in batch for batch in drawing.batches)


def test_a_job_is_cancelled_without_its_batch(queue, drawing):
    jobs = [ask(name, steps=5) for name in "abc"]
    drawing.before_step = lambda step: step == 3 and len(drawing.batches) == 2 and queue.cancel(jobs[1])
    submitted(queue, drawing, jobs)
    assert [job.state for job in jobs] == ["completed", "cancelled", "completed"]
    assert [job.step for job in jobs] == [5, 3, 5]


def test_an_error_of_one_job(queue, drawing):
    drawing.faults["b"] = RequestError("It has no prompt.")
    jobs = submitted(queue, drawing, [ask(name) for name in "abc"])
    assert [job.state for job in jobs] == ["completed", "failed", "completed"]
    assert str(jobs[1].error) == "It has no prompt."


def test_an_error_of_a_preview(queue, drawing, caplog):
    job = ask("x")
    job.on_step = lambda *_: 1 / 0
    submitted(queue, drawing, [job])
    assert job.state == "completed"
    assert "without previews" in caplog.text


def test_an_error_of_a_listener(queue, drawing, caplog):
    jobs, heard = [ask("a"), ask("b")], []
    jobs[0].listeners += [lambda: 1 / 0, lambda: heard.append(jobs[0].state)]
    submitted(queue, drawing, jobs)
    assert [job.state for job in jobs] == ["completed"] * 2
    assert heard[-1] == "completed"
    assert "a listener of job" in caplog.text
    assert queue.works


def test_an_error_keeps_nothing_else_in_memory(queue, drawing):
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    frames, gone = [], ref(pixels)

    def finish(found, pixels):
        frames.append(pixels.shape)
        try:
            raise ValueError("inner")
        except ValueError as exc:
            raise RequestError("No.") from exc

    job = ask("x")
    job.finish = lambda found, pixels=pixels: finish(found, pixels)
    submitted(queue, drawing, [job])
    job.finish = None
    del pixels
    gc.collect()
    assert gone() is None
    assert (frames, job.error.__cause__, job.error.__context__) == ([(4, 8, 8, 3)], None, None)
    lengths = []
    for _ in range(3):
        with pytest.raises(RequestError) as error:
            result_of(job)
        lengths.append(len(error.traceback))
    assert lengths == [lengths[0]] * 3, "the traceback doesn't grow"


def test_black_images_take_no_memory():
    kept = FilteredError(result(ask("x", count=4).request), {0: "dark"}).result
    assert (kept.images.shape, kept.images.dtype, kept.images.any()) == ((4, 8, 8, 3), np.uint8, False)
    assert kept.images.strides == (0, 0, 0, 0)
    assert np.array_equal(Image.fromarray(kept.images[0]), np.zeros((8, 8, 3)))


def test_an_error_of_the_whole_batch(queue, drawing):
    def no_threads(_):
        raise RuntimeError("can't start new thread")

    drawing.before_step = no_threads
    jobs = submitted(queue, drawing, [ask(name) for name in "ab"])
    assert [type(job.error) for job in jobs] == [RuntimeError] * 2
    drawing.before_step = lambda _: None
    last = queue.submit(ask("c"))
    wait_for(lambda: last.done)
    assert last.state == "completed", "the engine goes on"


def test_jobs_of_a_process_that_ended_run_again_alone(queue, drawing):
    """Which of a batch ended it is not known: one that ends two fails, and the others complete."""

    def ends(step):
        if "b" in drawing.batches[-1] and step == 2:
            raise Interrupted(began=True)

    drawing.before_step = ends
    jobs = submitted(queue, drawing, [ask(name) for name in "abcdef"])
    assert drawing.batches == [["first"], ["a", "b", "c", "d"], ["a"], ["b"], ["c"], ["d"], ["e", "f"]]
    assert [job.state for job in jobs] == ["completed", "failed", *["completed"] * 4]
    assert [job.lost for job in jobs] == [1, 2, 1, 1, 0, 0]
    assert jobs[1].error.status == 500


def test_a_cancellation_while_a_batch_is_put_back(queue, drawing):
    """It waits until the job is in the queue again, and takes it out of there: it is not generated again."""

    class Watched(ImageJob):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "state" and value == "queued" and self.lost:
                thread.start()
                thread.join(0.2)

    job = Watched(ask("a").request)
    thread = Thread(target=lambda: queue.cancel(job))
    ends = [Interrupted(began=True)]

    def heard():  # before the queue goes on
        if thread.ident is not None and current_thread() is not thread:
            thread.join()

    def end_once(_):
        if drawing.batches[-1] == ["a"] and ends:
            raise ends.pop()

    job.listeners.append(heard)
    drawing.before_step = end_once
    submitted(queue, drawing, [job])
    last = queue.submit(ask("last"))
    wait_for(lambda: last.done)
    assert (job.state, job.reason, job.lost) == ("cancelled", "client", 1)
    assert drawing.batches == [["first"], ["a"], ["last"]]


def test_a_process_that_never_began_is_not_counted(queue, drawing):
    ends = [Interrupted(began=False)] * 5

    def drawn(*args, **kwargs):
        if ends:
            raise ends.pop()
        return drawing(*args, **kwargs)

    queue._draw_many = drawn
    (job,) = submitted(queue, drawing, [ask("a")])
    assert (job.state, job.lost) == ("completed", 0)


def test_several_threads_share_what_waits(drawing):
    """As many batches at once as there is room for, each with its share."""
    room = [0]
    queue = Queue("m", drawing, Limits(batch=4, wait_seconds=0.0), Metrics(), threads=3, room=lambda: room[0])
    queue.start()
    jobs = [queue.submit(ask(str(index))) for index in range(5)]
    assert all(job.state == "queued" for job in jobs)
    room[0] = 2
    queue.wake()
    wait_for(lambda: len(queue._running) == 5)
    assert sorted(map(len, queue._batches)) == [2, 3]
    drawing.go.set()
    assert queue.close(60)
    assert [job.state for job in jobs] == ["completed"] * 5


def test_deadlines(queue, drawing):
    late, soon = ask("late", steps=9), ask("soon")
    late.deadline = time.monotonic() - 1
    drawing.before_step = lambda _: len(drawing.batches) == 2 and setattr(soon, "deadline", time.monotonic() - 1)
    submitted(queue, drawing, [late, soon])
    assert [(job.state, job.reason) for job in (late, soon)] == [("cancelled", "deadline")] * 2
    assert (late.step, soon.step) == (0, 1)


def test_a_deadline_while_nothing_is_generated(drawing):
    queue = Queue("m", drawing, Limits(), Metrics(), room=lambda: 0)
    queue.start()
    jobs = [queue.submit(ask(name)) for name in "ab"]
    jobs[1].deadline = time.monotonic() + 0.05
    queue.wake()
    wait_for(lambda: jobs[1].done)
    assert [(job.state, job.reason) for job in jobs] == [("queued", None), ("cancelled", "deadline")]
    queue.cancel(jobs[0])
    assert queue.close(60)


def test_jobs_past_their_deadline_leave_room(queue, drawing):
    first, *late = (queue.submit(ask(str(index))) for index in range(8))
    wait_for(lambda: first in queue._running)
    for job in late:
        job.deadline = time.monotonic() - 1
    queue.check_room()
    assert {(job.state, job.reason) for job in late if job not in queue._running} == {("cancelled", "deadline")}
    assert queue._metrics.registry.get_sample_value("latentc_queue_depth", {"model": "m"}) == 0


def test_an_error_of_the_queue_itself(queue, drawing, monkeypatch):
    monkeypatch.setattr(queue, "_draw_many", lambda *_, **__: [])
    jobs = [queue.submit(ask(name)) for name in "ab"]
    wait_for(lambda: all(job.done for job in jobs))
    assert [(job.state, type(job.error)) for job in jobs] == [("failed", ValueError)] * 2
    drawing.go.set()
    monkeypatch.setattr(queue, "_draw_many", drawing)
    last = queue.submit(ask("c"))
    wait_for(lambda: last.done)
    assert last.state == "completed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_queue_whose_thread_ended_says_so(queue, monkeypatch):
    monkeypatch.setattr("latentc.serving.queue.alike", lambda *_: 1 / 0)
    assert queue.works
    queue.submit(ask("x"))
    wait_for(lambda: not queue.works)


def test_closing_finishes_what_was_accepted(queue, drawing):
    jobs = [queue.submit(ask(str(index))) for index in range(3)]
    drawing.go.set()
    assert queue.close(60)
    assert [job.state for job in jobs] == ["completed"] * 3
    with pytest.raises(ApiError) as error:
        queue.submit(ask("late"))
    assert (error.value.status, error.value.code) == (503, "draining")


def test_metrics(drawing):
    metrics = Metrics()
    queue = Queue("m", drawing, Limits(batch=4, wait_seconds=0.0), metrics)
    queue.start()
    jobs = submitted(queue, drawing, [ask("a", count=2), ask("b")])
    queue.close()
    value = metrics.registry.get_sample_value
    assert value("latentc_images_total", {"model": "m"}) == 4
    assert value("latentc_queue_depth", {"model": "m"}) == 0
    assert value("latentc_batch_size_sum", {"model": "m"}) == 3
    assert value("latentc_stage_seconds_sum", {"model": "m", "stage": "denoiser"}) == 0.75
    assert value("latentc_step_seconds_count", {"model": "m"}) == 3
    assert value("latentc_queue_seconds_count", {"model": "m"}) == 3
    assert all(job.finished for job in jobs)


def ended(count=1):
    job = ask("x", count=count)
    job.state, job.finished, job.result = "completed", time.time(), result(job.request)
    return job


def test_results_are_kept_within_bytes():
    kept = KeptJobs(seconds=60, bytes=2 * 8 * 8 * 3 + 100)
    jobs = [ended() for _ in range(3)]
    for job in jobs:
        kept.add(job)
    assert kept.jobs() == [jobs[2], jobs[1]]
    with pytest.raises(ApiError) as error:
        kept.find(jobs[0].id)
    assert error.value.status == 410


def test_a_number_of_jobs_is_kept_and_their_prompts_count():
    kept, jobs = KeptJobs(seconds=60, bytes=1 << 20), [ask("x") for _ in range(MOST_KEPT + 5)]
    for index, job in enumerate(jobs):
        job.state, job.finished = "cancelled", time.time() + index / 1e6
        kept.add(job)
    assert kept.jobs() == jobs[:4:-1]
    small = KeptJobs(seconds=60, bytes=1000)
    jobs[-1].request = ask("x" * 300).request
    small.add(jobs[-1])
    assert small.jobs() == []


def test_results_are_kept_for_a_time(monkeypatch):
    kept, old, new, waits = KeptJobs(seconds=60, bytes=1 << 20), ended(), ended(), ask("y")
    for job in (old, new, waits):
        kept.add(job)
    now = time.time()
    old.finished = now - 61
    assert kept.jobs() == [waits, new]
    with pytest.raises(ApiError) as error:
        kept.find("unheard-of")
    assert error.value.status == 404
