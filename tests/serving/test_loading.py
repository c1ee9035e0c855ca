"""Models that are replaced while the server runs, by tritonclient, unmodified."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from latentc.core.errors import BundleError
from latentc.pipelines.pipeline import Pipeline
from latentc.serving.limits import Limits
from latentc.serving.residents import Residents
from latentc.serving.service import serve

from .conftest import MODEL, PATIENCE, Gate, asking, running, wait_for
from .test_kserve import tensors
from .test_server import pixels, post

PROFILE = "cpu-onnxruntime"
FIELDS = {"steps": 4, "width": 64, "height": 64, "scheduler": "euler", "guidance": 5.0}


@pytest.fixture
def place(opened, tmp_path):
    """`place()`: put the model into its folder, as an operator who exported it again does."""
    folder = tmp_path / "model.bundle"

    def put():
        fresh = shutil.copytree(opened("sd1").bundle.folder, tmp_path / "fresh")
        if folder.exists():
            folder.rename(tmp_path / "old")
        fresh.rename(folder)

    put()
    return put


@pytest.fixture
def alone(opened):
    """The image of a seed, generated alone."""
    return lambda seed: opened("sd1")(asking("a hut", seed)).images[0]


@pytest.fixture
def served(place, tmp_path):
    """`served(residents)`: a service of the model at `place`, the gates that were opened, its address and a client."""
    gates, running_now = [], []

    def reopen(_):
        gates.append(Gate(Pipeline.open(tmp_path / "model.bundle", PROFILE)))
        return gates[-1], 6

    service = serve({MODEL: reopen(MODEL)[0]}, Limits())
    service.reopen = reopen
    with running(service) as address, triton.InferenceServerClient(address.removeprefix("http://")) as client:
        running_now.append(address)
        with httpx2.Client(base_url=address, timeout=PATIENCE) as http:
            yield service, gates, http, client
    assert all(closed(gate) for gate in gates[:-1])
    gates[-1].close()


def closed(gate):
    return gate._pipeline._own_engines()._closed


def drawn(client, seed):
    return client.infer(MODEL, tensors(True, prompt="a hut", seed=seed, **FIELDS)).as_numpy("image")[0]


def test_a_model_is_replaced_while_requests_run(served, place, alone):
    """Those that wait are answered by the old one, and those that come then by the new one."""
    service, gates, http, client = served
    (old,) = gates
    with ThreadPoolExecutor() as pool:
        with old.closed():
            waiting = [pool.submit(post, http, "a hut", 0)]
            wait_for(lambda: service.models[MODEL].queue.generates)
            waiting += [pool.submit(post, http, "a hut", seed) for seed in (1, 2)]
            wait_for(lambda: 'latentc_queue_depth{model="tiny"} 2.0' in http.get("/metrics").text)
            job = http.post("/v1/jobs", json={"prompt": "a hut"}).json()
            wait_for(lambda: 'latentc_queue_depth{model="tiny"} 3.0' in http.get("/metrics").text)
            place()
            client.load_model(MODEL)
            assert np.array_equal(drawn(client, 7), alone(7))
            assert gates[1].batches == [1, 1]  # its first image, and this one
            assert http.get(job["poll_url"]).json()["queue_position"] == 2
            assert http.post(f"{job['poll_url']}/cancel").json()["status"] == "cancelled"
            assert not closed(old)
            assert not any(one.done() for one in waiting)
        for seed, one in enumerate(waiting):
            assert np.array_equal(pixels(one.result()), alone(seed))
    wait_for(lambda: closed(old))
    metrics = http.get("/metrics").text
    assert 'latentc_queue_depth{model="tiny"} 0.0' in metrics
    assert 'latentc_running{model="tiny"} 0.0' in metrics
    assert http.get("/readyz").status_code == 200


def test_a_request_that_was_being_checked_meanwhile(served, place, alone, monkeypatch):
    """It is checked again, for the new one."""
    _, gates, http, client = served
    (old,) = gates
    began, go = Event(), Event()

    def check(request, **more):
        began.set()
        assert go.wait(PATIENCE)
        return old._pipeline.check(request, **more)

    monkeypatch.setattr(old, "check", check, raising=False)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(post, http, "a hut", 1)
        assert began.wait(PATIENCE)
        place()
        client.load_model(MODEL)
        wait_for(lambda: closed(old))
        go.set()
        assert np.array_equal(pixels(asked.result()), alone(1))
    assert (old.batches, gates[1].batches) == ([1], [1, 1])


def test_one_that_cannot_be_loaded(served, alone, monkeypatch, tmp_path):
    """The answer says why, without the machine's folders, and the old one goes on."""
    service, gates, _, client = served
    (tmp_path / "model.bundle" / "latentc.json").rename(tmp_path / "away")
    with pytest.raises(
        InferenceServerException, match=r"tiny was not loaded, .* still answers\. .*model\.bundle"
    ) as said:
        client.load_model(MODEL)
    assert str(tmp_path) not in str(said.value)
    (tmp_path / "away").rename(tmp_path / "model.bundle" / "latentc.json")

    def broken(*_, **__):
        return [BundleError("It is damaged.")]

    monkeypatch.setattr(Pipeline, "draw_many", broken)
    with pytest.raises(InferenceServerException, match="It is damaged"):
        client.load_model(MODEL)
    monkeypatch.undo()
    assert [closed(gate) for gate in gates] == [False, True]
    del gates[1]
    assert np.array_equal(drawn(client, 1), alone(1))
    for wrong, said in (({"model_name": "other"}, "There is no model"), ({"config": "{}"}, "takes no config")):
        with pytest.raises(InferenceServerException, match=said):
            client.load_model(**{"model_name": MODEL, **wrong})
    with pytest.raises(InferenceServerException, match="Start it with --memory"):
        client.unload_model(MODEL)
    with service.loads, pytest.raises(InferenceServerException, match="being loaded"):
        client.load_model(MODEL)
    service.reopen = None
    with pytest.raises(InferenceServerException, match="can't load models again"):
        client.load_model(MODEL)


def test_within_a_budget_that_holds_one(place, alone, tmp_path):
    """Its engines are freed for those of the new one, as those of another model are."""
    made = []

    def reopen(_):
        made.append(Pipeline.open(tmp_path / "model.bundle", PROFILE, loaded=False))
        return made[-1], 6

    residents = Residents(10, patience=0.0)
    service = serve({MODEL: reopen(MODEL)[0]}, Limits(), residents=residents)
    service.reopen = reopen
    residents.add(MODEL, made[0], 6)
    with running(service) as address, triton.InferenceServerClient(address.removeprefix("http://")) as client:
        place()
        with ThreadPoolExecutor() as pool, httpx2.Client(base_url=address, timeout=PATIENCE) as http:
            asked = [pool.submit(post, http, "a hut", seed) for seed in range(4)]
            client.load_model(MODEL)
            found = [pixels(one.result()) for one in asked]
        assert all(np.array_equal(image, alone(seed)) for seed, image in enumerate(found))
        assert np.array_equal(drawn(client, 7), alone(7))
        wait_for(lambda: made[0]._own_engines()._closed)
        ready = {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
        assert client.get_model_repository_index() == [ready]
        client.unload_model(MODEL)
        assert made[1]._own_engines()._loaded == {}
        (one,) = client.get_model_repository_index()
        assert (one["state"], one["reason"]) == ("UNAVAILABLE", "A request loads it.")
        assert np.array_equal(drawn(client, 7), alone(7))
    made[1].close()
