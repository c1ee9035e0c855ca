"""Processes that are started while jobs wait, and ended when they generate nothing; stand-ins, without engines."""

import logging
from dataclasses import replace

import pytest

from latentc.serving import replica, scaling
from latentc.serving.limits import Limits
from latentc.serving.metrics import Metrics
from latentc.serving.queue import Queue
from latentc.serving.replicas import Replicas
from latentc.serving.scaling import IDLE_SECONDS, WAIT_SECONDS, Scaling

from . import standins
from .conftest import wait_for
from .test_hangs import OPENING
from .test_queue import ask

pytestmark = pytest.mark.usefixtures("found_by_processes")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(replica, "work", standins.silent)
    monkeypatch.setattr(replica, "END_SECONDS", 0.0)
    one = Replicas("m", [OPENING] * 2, least=1)
    yield one
    one.close()


def test_processes_follow_the_queue(model):
    queue = Queue("m", model.draw_many, Limits(), Metrics(), threads=2, room=model.room)
    look = Scaling(model, queue).look
    look(1)
    assert model.state() == {"open": 1, "count": 1, "restarts": 0}
    job = queue.submit(ask("x"))
    look(2)
    look(2 + WAIT_SECONDS - 0.1)
    assert model.state()["count"] == 1
    look(2 + WAIT_SECONDS)
    assert model.state()["count"] == 2
    wait_for(lambda: model.room() == 2)
    look(20 + WAIT_SECONDS)
    assert (model.state()["count"], model.grow()) == (2, False), "there may be no more"
    queue.cancel(job)
    look(100)
    look(100 + IDLE_SECONDS - 0.1)
    assert model.room() == 2
    look(100 + IDLE_SECONDS)
    assert model.state() == {"open": 1, "count": 1, "restarts": 0}
    look(200 + 2 * IDLE_SECONDS)
    assert (model.room(), model.shrink()) == (1, False)


def test_one_that_generates_is_not_ended(model):
    assert model.grow()
    wait_for(lambda: model.room() == 2)
    model._drawing.update(model._open.values())
    assert (model.idle, model.shrink()) == (False, False)
    model._drawing.clear()


def test_it_looks_by_itself(model, monkeypatch):
    monkeypatch.setattr(scaling, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(scaling, "WAIT_SECONDS", 0.0)
    queue = Queue("m", model.draw_many, Limits(), Metrics(), room=lambda: 0)
    one = Scaling(model, queue)
    one.start()
    queue.submit(ask("x"))
    wait_for(lambda: model.room() == 2)
    one.close()


def test_one_that_does_not_open_is_given_up(model, monkeypatch, caplog):
    """The only one that is open goes on, whatever is looked for afterwards."""
    monkeypatch.setattr(model, "_openings", [OPENING, replace(OPENING, embeddings=("fails",))])
    (pid,) = model.processes
    queue = Queue("m", model.draw_many, Limits(), Metrics(), room=model.room)
    look = Scaling(model, queue).look
    with caplog.at_level(logging.WARNING, "latentc.serving"):
        assert model.grow()
        wait_for(lambda: not model._starting)
    assert "process 2 of m did not open and is given up: 'no memory'" in caplog.text
    assert model.state() == {"open": 1, "count": 1, "restarts": 0}
    assert not model.grow(), "not at once"
    for now in (1, 2 + IDLE_SECONDS):
        look(now)
    assert (model.processes, model.shrink()) == ((pid,), False)


def test_one_that_is_not_open_is_ended_before_one_that_is(model, monkeypatch):
    monkeypatch.setattr(model, "_openings", [OPENING, replace(OPENING, embeddings=("opens",))])
    (pid,) = model.processes
    assert model.grow()
    assert not model.grow()
    wait_for(lambda: model._opening)
    assert model.shrink()
    wait_for(lambda: not model._starting)
    assert (model.processes, model.state()["count"], model.shrink()) == ((pid,), 1, False)
    assert not model._opening


def test_a_thread_that_cannot_be_started_does_not_end_scaling(model, monkeypatch, caplog):
    looks = []

    def broken(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("latentc.serving.replicas.Thread.start", broken)
        with pytest.raises(RuntimeError):
            model.grow()
    assert model.state()["count"] == 1
    monkeypatch.setattr(scaling, "LOOK_SECONDS", 0.01)
    one = Scaling(model, Queue("m", model.draw_many, Limits(), Metrics(), room=model.room))
    monkeypatch.setattr(one, "look", lambda now: looks.append(now) or broken(None))
    one.start()
    wait_for(lambda: len(looks) > 1)
    one.close()
    assert "the processes of m were not scaled" in caplog.text
