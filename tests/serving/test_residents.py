"""Models that are loaded when they are asked for: which are freed, and who waits."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import httpx2
import numpy as np
import pytest

from latentc.core.errors import BundleError, ProfileError
from latentc.pipelines.pipeline import Pipeline
from latentc.serving.limits import Limits
from latentc.serving.metrics import Metrics
from latentc.serving.queue import Queue
from latentc.serving.residents import Residents, check_each
from latentc.serving.service import serve

from .conftest import asking, running, wait_for
from .test_queue import Drawing, ask
from .test_server import pixels, post


class Held:
    """A model that is only counted."""

    def __init__(self):
        self.loads, self.unloads, self.go, self.fault = 0, 0, Event(), None
        self.go.set()

    def load(self):
        assert self.go.wait(60)
        if self.fault:
            raise self.fault
        self.loads += 1

    def unload(self):
        self.unloads += 1


class Shop:
    """Models of stand-in sizes, and their queues."""

    def __init__(self, budget, sizes, patience=60.0):
        self.residents = Residents(budget, patience)
        self.models = {name: Held() for name in sizes}
        self.drawings = {name: Drawing() for name in sizes}
        limits = Limits(queue=32, batch=1, wait_seconds=0.0)
        self.queues = {
            name: Queue(name, self.drawings[name], limits, Metrics(), room=lambda name=name: self.residents.ask(name))
            for name in sizes
        }
        for name, size in sizes.items():
            self.residents.add(name, self.models[name], size)
            self.queues[name].start()
        self.residents.start(self.queues)

    def submit(self, name):
        return self.queues[name].submit(ask("x"))

    def draw(self, *names):
        """Generate an image of each, in turn."""
        for name in names:
            self.drawings[name].go.set()
            job = self.submit(name)
            wait_for(lambda job=job: job.done)
            assert job.state == "completed"
            wait_for(lambda name=name: self.queues[name].empty)

    @property
    def open(self):
        return {name for name in self.models if self.residents.state(name) == "open"}

    def close(self):
        for name, queue in self.queues.items():
            self.drawings[name].go.set()
            self.models[name].go.set()
            queue.close(0)
        self.residents.close()


@pytest.fixture
def shop():
    made = []

    def make(*args, **kwargs):
        made.append(Shop(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_least_recently_used_ones_are_freed(shop):
    one = shop(10, {"a": 4, "b": 4, "c": 4, "large": 7})
    assert one.open == set(), "nothing is loaded before it is asked for"
    one.draw("a", "b")
    assert one.open == {"a", "b"}
    one.draw("a", "c")
    assert one.open == {"a", "c"}
    one.draw("large")
    assert one.open == {"large"}
    assert [model.loads for model in one.models.values()] == [1, 1, 1, 1]
    assert [model.unloads for model in one.models.values()] == [1, 1, 1, 0]


def test_others_go_on_while_one_is_loaded(shop):
    one = shop(10, {"a": 4, "b": 4})
    one.draw("a")
    one.models["b"].go.clear()
    job = one.submit("b")
    wait_for(lambda: one.residents.state("b") == "loading")
    one.draw("a", "a")
    assert job.state == "queued"
    one.models["b"].go.set()
    one.drawings["b"].go.set()
    wait_for(lambda: job.done)
    assert job.state == "completed"


def test_one_that_generates_is_not_freed(shop):
    one = shop(4, {"a": 4, "b": 4})
    first, second = one.submit("a"), one.submit("a")
    wait_for(lambda: first.state == "generating")
    other = one.submit("b")
    wait_for(lambda: one.residents.state("b") == "loading")
    assert one.models["a"].unloads == 0
    for drawing in one.drawings.values():
        drawing.go.set()
    wait_for(lambda: other.done)
    assert (first.state, second.state, other.state) == ("completed",) * 3
    assert one.open == {"b"}


def test_one_that_is_always_busy_gives_way_in_the_end(shop):
    """After its batch, and its other jobs wait until it is loaded again."""
    one = shop(4, {"a": 4, "b": 4}, patience=0.0)
    jobs = [one.submit("a") for _ in range(3)]
    wait_for(lambda: jobs[0].state == "generating")
    other = one.submit("b")
    wait_for(lambda: one.residents.state("a") == "closing")
    for drawing in one.drawings.values():
        drawing.go.set()
    wait_for(lambda: all(job.done for job in (*jobs, other)))
    assert {job.state for job in (*jobs, other)} == {"completed"}
    assert other.started <= jobs[1].started
    assert one.models["a"].loads >= 2


def test_a_model_that_cannot_be_loaded(shop):
    one = shop(4, {"a": 4})
    one.models["a"].fault = BundleError("It is damaged. Build it again.")
    job = one.submit("a")
    wait_for(lambda: job.done)
    assert (job.state, str(job.error)) == ("failed", "It is damaged. Build it again.")
    wait_for(lambda: one.models["a"].unloads == 1)  # what was loaded before the error
    one.models["a"].fault = None
    one.draw("a")


def test_others_go_on_after_one_that_cannot_be_freed(shop, monkeypatch):
    one = shop(4, {"a": 4, "b": 4})
    one.draw("a")
    woken, wake = [], one.queues["a"].wake
    monkeypatch.setattr(one.queues["a"], "wake", lambda: (woken.append(one.residents.state("a")), wake()))

    def unload():
        raise BundleError("No.")

    monkeypatch.setattr(one.models["a"], "unload", unload)
    job = one.submit("b")
    wait_for(lambda: job.done)
    assert (job.state, woken) == ("failed", ["closed"])
    one.draw("a")


def test_the_end_waits_for_what_is_loaded_and_logs_nothing(shop, caplog):
    one = shop(4, {"a": 4})
    one.models["a"].go.clear()
    one.models["a"].fault = BundleError("It is damaged.")
    one.submit("a")
    wait_for(lambda: one.residents.state("a") == "loading")
    closing = Thread(target=one.residents.close)
    closing.start()
    wait_for(lambda: one.residents._closed)
    assert closing.is_alive()
    one.models["a"].go.set()
    closing.join(60)
    assert one.residents.state("a") == "closed"
    assert not [each for each in caplog.records if "could not be loaded" in each.getMessage()]


def test_one_that_does_not_fit_alone():
    check_each({"a": 4 * 10**9}, 4 * 10**9)
    with pytest.raises(ProfileError, match=r"b is predicted to hold 5.50 GB, more than the 4.00 GB .* 5.5 at least"):
        check_each({"a": 10**9, "b": 5_500_000_000}, 4 * 10**9)


def test_over_http(opened):
    """Two bundles of which one fits: their images, and their states."""
    alone = opened("sd1")
    residents = Residents(10)
    with (
        Pipeline.open(alone.bundle, alone.profile, loaded=False) as a,
        Pipeline.open(alone.bundle, alone.profile, loaded=False) as b,
    ):
        for name, pipeline in (("a", a), ("b", b)):
            residents.add(name, pipeline, 6)
        service = serve({"a": a, "b": b}, Limits(), residents=residents)
        with running(service) as address, httpx2.Client(base_url=address, timeout=120) as http:
            assert http.get("/readyz").status_code == 200

            def states():
                return {one["id"]: one["state"] for one in http.get("/v1/models").json()["data"]}

            assert states() == {"a": "open", "b": "closed"}
            assert http.get("/v1/capabilities").json()["models"]["b"]["engines"] == alone.describe()
            with ThreadPoolExecutor() as pool:
                asked = [pool.submit(post, http, "x", seed, model="ab"[seed % 2]) for seed in range(6)]
            for seed, answer in enumerate(asked):
                assert np.array_equal(pixels(answer.result()), alone(asking("x", seed)).images[0])
            assert post(http, "x", 1, model="b").status_code == 200
            assert states() == {"a": "closed", "b": "open"}
            assert (a._own_engines()._loaded == {}, b._own_engines()._loaded == {}) == (True, False)
