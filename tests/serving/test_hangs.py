"""Processes that never answer, and those that end at the start: stand-ins, which load no engines."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from latentc.core.errors import CancelledError, ProfileError
from latentc.serving import replica, replicas
from latentc.serving.errors import ApiError
from latentc.serving.limits import Limits
from latentc.serving.metrics import Metrics
from latentc.serving.queue import GRACE_SECONDS, Queue, close_all
from latentc.serving.replicas import Replicas
from latentc.serving.worker import Opening

from . import standins
from .conftest import wait_for
from .test_queue import Drawing, ask

OPENING = Opening(None, None, {})
pytestmark = pytest.mark.usefixtures("found_by_processes")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(replica, "work", standins.silent)
    monkeypatch.setattr(replica, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(replica, "END_SECONDS", 0.0)  # it would not end by itself
    one = Replicas("m", [OPENING])
    yield one
    one.close()


@pytest.fixture
def queue(model):
    one = Queue("m", model.draw_many, Limits(wait_seconds=0.0), Metrics(), room=model.room)
    model.hangs, model.on_change = one.hangs, one.wake
    one.start()
    yield one
    one.refuse()


def test_one_that_hangs_is_killed_after_the_deadline(queue, model):
    (process,) = model.processes
    job = ask("x")
    queue.submit(job)
    wait_for(lambda: model._drawing)
    assert not queue.hangs([job.request])
    job.deadline = time.monotonic() - GRACE_SECONDS + 3600
    assert not queue.hangs([job.request])
    job.deadline = time.monotonic() - GRACE_SECONDS
    wait_for(lambda: job.done)
    assert (job.state, job.reason) == ("cancelled", "deadline")
    wait_for(lambda: model.restarts == 1)
    assert process not in model.processes


def test_one_that_hangs_is_killed_at_the_end_of_the_server(queue, model, monkeypatch):
    monkeypatch.setattr("latentc.serving.queue.GRACE_SECONDS", 0.0)
    job = ask("x")
    job.deadline = time.monotonic() + 3600
    queue.submit(job)
    wait_for(lambda: model._drawing)
    assert not queue.close(0)
    assert (job.state, job.reason, type(job.error)) == ("cancelled", "shutdown", CancelledError)


def test_a_partial_image_has_the_time_of_its_job(queue, model, monkeypatch):
    monkeypatch.setattr(replicas, "ASK_SECONDS", 0.0)
    found = []
    model.hangs = lambda requests: found.append(queue.hangs(requests)) or found[-1]
    job = ask("x")
    job.deadline = time.monotonic() + 3600
    queue.submit(job)
    wait_for(lambda: model._drawing)
    (process,) = model.processes
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(model.decode_step, job.request, None)
        wait_for(lambda: len(found) > 5)
        assert (model.processes, {*found}) == ((process,), {False})
        job.deadline = time.monotonic() - GRACE_SECONDS
        assert isinstance(asked.exception(), ApiError)


def test_one_that_answers_no_question_is_killed(model, monkeypatch):
    monkeypatch.setattr(replicas, "ASK_SECONDS", 0.0)
    with pytest.raises(ApiError) as error:
        model.check_decoding()
    assert (error.value.status, error.value.code) == (503, "restarting")
    wait_for(lambda: model.restarts == 1)


def test_one_that_ends_while_it_opens(monkeypatch):
    monkeypatch.setattr(replica, "work", standins.ends)
    with pytest.raises(ProfileError, match=r"opened m has ended.* Serve fewer replicas"):
        Replicas("m", [OPENING, OPENING])


def test_a_batch_in_this_process_that_hangs_is_given_up(monkeypatch):
    for name in ("GRACE_SECONDS", "END_SECONDS"):
        monkeypatch.setattr(f"latentc.serving.queue.{name}", 0.0)
    go, drawing = Event(), Drawing()
    queue = Queue("m", lambda *_, **__: (go.wait() and drawing.go.set()) or drawing(*_, **__), Limits(), Metrics())
    queue.start()
    job = queue.submit(ask("x"))
    wait_for(lambda: queue.generates)
    assert not queue.close(0)
    assert (job.state, job.reason, queue.hung) == ("cancelled", "shutdown", True)
    assert not queue.close()
    go.set()
    wait_for(lambda: not queue.generates)
    assert job.state == "cancelled", "what comes later changes nothing"


def test_queues_that_hang_are_cancelled_together(monkeypatch):
    """The grace of all begins at once: none is waited for before the next is cancelled."""
    monkeypatch.setattr("latentc.serving.queue.GRACE_SECONDS", 0.0)
    monkeypatch.setattr("latentc.serving.queue.END_SECONDS", 0.0)
    go = Event()
    queues = [Queue(name, lambda *_, **__: go.wait() and [], Limits(), Metrics()) for name in "ab"]
    jobs = [queue.submit(ask("x")) for queue in queues]
    reasons = []
    for queue in queues:
        monkeypatch.setattr(
            queue, "give_up", lambda one=queue: (reasons.append([job.reason for job in jobs]), Queue.give_up(one))
        )
        queue.start()
    wait_for(lambda: all(queue.generates for queue in queues))
    assert not close_all(queues, 0)
    assert reasons[0] == ["shutdown"] * 2
    assert all(queue.hung for queue in queues)
    assert not close_all(queues)
    go.set()
    wait_for(lambda: not any(queue.generates for queue in queues))
