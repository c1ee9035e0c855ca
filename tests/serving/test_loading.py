"""Models that are replaced while the server runs, by tritonclient, unmodified."""

import json
import re
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
from latentc.serving.errors import ApiError
from latentc.serving.limits import Limits
from latentc.serving.loading import load, load_all
from latentc.serving.residents import Residents
from latentc.serving.service import serve

from .conftest import MODEL, PATIENCE, Gate, asking, running, wait_for
from .guided import pixels as decoded
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
    """A service of the model at `place`, the gates that were opened, and two clients."""
    gates = []

    def reopen(_, beside):
        assert [*beside] == [MODEL]
        gates.append(Gate(Pipeline.open(tmp_path / "model.bundle", PROFILE)))
        return gates[-1]

    service = serve({MODEL: reopen(MODEL, [MODEL])}, Limits())
    service.reopen, service.model_control = reopen, True
    with (
        running(service) as address,
        triton.InferenceServerClient(address.removeprefix("http://")) as client,
        httpx2.Client(base_url=address, timeout=PATIENCE) as http,
    ):
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
    """It is checked again, for the new one, which decodes its partial image."""
    _, gates, http, client = served
    (old,) = gates
    began, go = Event(), Event()

    def check(request, **more):
        began.set()
        assert go.wait(PATIENCE)
        return old._pipeline.check(request, **more)

    monkeypatch.setattr(old, "check", check, raising=False)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(post, http, "a hut", 1, stream=True, partial_images=1)
        assert began.wait(PATIENCE)
        place()
        client.load_model(MODEL)
        wait_for(lambda: closed(old))
        go.set()
        partial, last = (json.loads(one) for one in re.findall("(?m)^data: (.*)", asked.result().text))
        assert partial["type"] == "image_generation.partial_image"
        assert np.array_equal(decoded(last["b64_json"]), alone(1))
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
    with pytest.raises(InferenceServerException, match="not unloaded by requests"):
        client.unload_model(MODEL)
    with service.loads, pytest.raises(InferenceServerException, match="being loaded"):
        client.load_model(MODEL)
    service.model_control = False
    with pytest.raises(InferenceServerException, match="with --model-control"):
        client.load_model(MODEL)
    (one,) = client.get_model_repository_index()
    assert one == {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
    service.reopen, service.model_control = None, True
    with pytest.raises(InferenceServerException, match="can't load models again"):
        client.load_model(MODEL)


def test_where_models_take_turns(opened):
    """Engines are found in the folder by what they hold, so that those of the one before would be gone with it."""
    service = serve({MODEL: opened("sd1")}, Limits(), residents=Residents(10))
    service.reopen = pytest.fail
    with pytest.raises(ApiError, match="with --memory .* can't load models again"):
        load(service, MODEL)


def test_a_second_load_waits_for_the_one_before(served, place):
    """At most two of a name are open."""
    service, gates, http, client = served
    with ThreadPoolExecutor() as pool, gates[0].closed():
        asked = pool.submit(post, http, "a hut", 1)
        wait_for(lambda: service.models[MODEL].queue.generates)
        client.load_model(MODEL)
        with pytest.raises(InferenceServerException, match="before has jobs"):
            client.load_model(MODEL)
    assert asked.result().status_code == 200
    wait_for(lambda: not service.leaves(MODEL))
    load_all(service)
    wait_for(lambda: closed(gates[1]))
    assert len(gates) == 3


@pytest.mark.parametrize("at", ["opened", "first image"])
def test_the_end_of_the_server_ends_a_load(served, monkeypatch, at):
    service, gates, _, _ = served
    real, service.draining = service.reopen, at == "opened"

    def reopen(*given):
        made = real(*given)
        made._open.clear()
        return made

    service.reopen = reopen
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(load, service, MODEL)
        if at == "first image":
            wait_for(lambda: len(gates) > 1 and gates[1].batches)
            service.draining = True
            gates[1]._open.set()
        with pytest.raises(ApiError, match="shutting down"):
            loading.result(PATIENCE)
    assert not service.loads.locked()
    assert [closed(one) for one in gates] == [False, True][: len(gates)]
    del gates[1:]
