"""What holds for every API: who may ask, limits, clients that leave, jobs at once, probes and metrics."""

import base64
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Event

import httpx2
import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import BundleError, CompileError
from latentc.serving.errors import ApiError
from latentc.serving.guard import Access
from latentc.serving.image_job import ImageJob
from latentc.serving.limits import Limits
from latentc.serving.service import serve

from .conftest import MODEL, asking, running, wait_for

GENERATIONS = "/v1/images/generations"
FIELDS = {"steps": 4, "scheduler": "euler", "guidance": 5.0, "size": "64x64"}


def pixels(answer):
    return np.asarray(Image.open(BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))


def post(http, prompt, seed, **more):
    return http.post(GENERATIONS, json={"prompt": prompt, "seed": seed, **FIELDS, **more})


def test_requests_at_once_give_what_they_give_alone(http, gate):
    prompts = ["a red cube", "a lighthouse in fog", "a cat", "a dog"]
    gate.batches.clear()
    with ThreadPoolExecutor() as pool:
        with gate.closed():
            first = pool.submit(post, http, "the first", 0)
            wait_for(lambda: gate.batches)
            others = [pool.submit(post, http, prompt, seed) for seed, prompt in enumerate(prompts)]
            wait_for(lambda: 'latentc_queue_depth{model="tiny"} 4.0' in http.get("/metrics").text)
        found = [pixels(one.result()) for one in others]
    assert gate.batches == [1, 4]
    assert first.result().status_code == 200
    for seed, (prompt, image) in enumerate(zip(prompts, found, strict=True)):
        assert np.array_equal(image, gate(asking(prompt, seed)).images[0]), prompt


def test_a_queue_of_four_answers_eight_of_twelve_with_429(gate):
    service = serve({MODEL: gate}, Limits(queue=4))
    with running(service) as address, httpx2.Client(base_url=address) as http, ThreadPoolExecutor(12) as pool:
        with gate.closed():
            asked = [pool.submit(post, http, str(seed), seed) for seed in range(12)]
            wait_for(lambda: sum(one.done() for one in asked) == 8)
        answers = [one.result() for one in asked]
    assert sorted(one.status_code for one in answers) == [200] * 4 + [429] * 8
    assert all(int(one.headers["retry-after"]) >= 1 for one in answers if one.status_code == 429)


def raw(server, method, path, body, headers=(), length=None):
    """A connection on which a request was sent."""
    host, port = server.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    length = length or len(body)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {length}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(server, http, gate, queue, stream):
    """Within two steps; another job of its batch goes on."""
    body = {"prompt": "left alone", "seed": 1, **FIELDS, "steps": 60, "stream": stream}
    gate.batches.clear()
    with ThreadPoolExecutor() as pool:
        with gate.held_at(3):
            with gate.closed():
                blocking = pool.submit(post, http, "x", 0)
                wait_for(lambda: gate.batches)
                connection = raw(
                    server, "POST", GENERATIONS, json.dumps(body).encode(), ["Content-Type: application/json"]
                )
                other = pool.submit(post, http, "stays", 2, steps=60)
                wait_for(lambda: len(queue._waiting) == 2)
                gate.hold_at = None
            wait_for(lambda: len(queue._running) == 2)
            (left,) = (job for job in queue._running if job.request.prompt == "left alone")
            gate.hold_at = left.step + 5
            assert gate.held.wait(60)
            connection.close()
            wait_for(lambda: left.reason)
            held = gate.hold_at
        image = pixels(other.result())
        assert blocking.result().status_code == 200
    assert (left.state, left.reason) == ("cancelled", "disconnect")
    assert left.step <= held + 2
    assert np.array_equal(image, gate(asking("stays", 2, steps=60)).images[0])
    assert 'latentc_cancelled_total{model="tiny",reason="disconnect"}' in http.get("/metrics").text
    assert stream or 'latentc_requests_total{api="openai",status="499"}' in http.get("/metrics").text


def test_a_job_that_takes_too_long(gate):
    service = serve({MODEL: gate}, Limits(job_seconds=0.2))
    queue = service.models[MODEL].queue
    with running(service) as address, httpx2.Client(base_url=address, timeout=60) as http, gate.closed():
        queue.submit(ImageJob(asking("without a deadline", 1), model=MODEL))
        wait_for(lambda: queue._running)
        answer = post(http, "y", 2)
        job = http.post("/v1/jobs", json={"prompt": "y"}).json()["poll_url"]
        last = http.get(f"{job}/events").text.rpartition("data: ")[2]
        for found in (json.loads(last), http.get(job).json()):
            assert (found["status"], found["error"]["code"]) == ("cancelled", "deadline")
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"


def test_limits_are_checked_before_work(http, gate):
    gate.batches.clear()
    large = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'
    answer = http.post(GENERATIONS, content=large, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    def parts():
        yield from (large[start : start + 4096] for start in range(0, len(large), 4096))

    answer = http.post(GENERATIONS, content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413, "without a Content-Length too"
    assert http.post(GENERATIONS, data={"prompt": "x"}).status_code == 415
    for more in ({"size": "136x128"}, {"steps": 61}, {"n": 11}, {"hires": 1.5, "size": "128x128"}):
        answer = post(http, "x", 1, **more)
        assert answer.status_code == 400, more
        assert answer.json()["error"]["code"] == "limit_exceeded", more
    assert post(http, "x" * 32_001, 1).status_code == 400
    assert gate.batches == []


def test_a_body_that_does_not_arrive(gate):
    with running(serve({MODEL: gate}, Limits(body_seconds=0.1))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(
                f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                "Content-Length: 100\r\n\r\n{".encode()
            )
            assert b" 408 " in slow.recv(4096)


def test_a_client_that_leaves_during_its_upload(gate, caplog):
    with running(serve({MODEL: gate}, Limits())) as address, httpx2.Client(base_url=address) as http:
        for content in ("application/json", "multipart/form-data; boundary=b"):
            path = GENERATIONS if "json" in content else "/v1/images/edits"
            with raw(address, "POST", path, b"--", [f"Content-Type: {content}"], length=100):
                pass
        wait_for(lambda: 'latentc_requests_total{api="openai",status="499"} 2.0' in http.get("/metrics").text)
    assert "Traceback" not in caplog.text


def test_bodies_of_requests_that_wait_are_limited_together(gate):
    service = serve({MODEL: gate}, Limits(bodies_bytes=1000))
    with running(service) as address, httpx2.Client(base_url=address, timeout=60) as http, ThreadPoolExecutor() as pool:
        with gate.closed():
            first = pool.submit(post, http, "x" * 600, 1)
            wait_for(lambda: service.models[MODEL].queue._running)
            refused = post(http, "x" * 600, 1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert first.result().status_code == post(http, "x" * 600, 1).status_code == 200


def test_json_of_many_small_parts_is_not_parsed(http):
    content = b'{"prompt": [' + b"[]," * 150_000 + b"1]}"
    answer = http.post(GENERATIONS, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.fixture(scope="module")
def guarded(gate):
    """A server that needs a token, and that may be called by a name."""
    access = Access(("secret", "me:pass word", "clé"), ("127.0.0.1", "Pictures.Example"))
    with (
        running(serve({MODEL: gate}, Limits()), access) as address,
        httpx2.Client(base_url=address, timeout=60) as http,
    ):
        yield http


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "Basic " + base64.b64encode(b"me:pass word").decode()}, 200),
        ({"authorization": "Bearer secret", "host": "pictures.example:1234"}, 200),
        ({"authorization": "Bearer secret", "host": "evil.example"}, 403),
        ({"authorization": "Bearer secret", "host": "PICTURES.example"}, 200),
        ({"authorization": "Bearer clé".encode()}, 200),
        ({"authorization": "Bearer secret", "origin": "https://evil.example"}, 403),
        ({"authorization": "Bearer secret", "origin": "null"}, 403),
        ({"authorization": "Bearer secret", "origin": "http://pictures.example", "host": "pictures.example"}, 200),
    ],
)
def test_who_may_ask(guarded, headers, status):
    answer = guarded.get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert "Bearer" in answer.headers["www-authenticate"]


def test_probes_need_no_token(guarded):
    """And those who fetch an image by its URL have none."""
    assert [guarded.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 401]
    pod = {"host": "10.1.2.3:8000"}  # as Kubernetes' probes state it
    assert [guarded.get(path, headers=pod).status_code for path in ("/livez", "/readyz", "/")] == [200, 200, 403]
    fields = {"prompt": "x", **FIELDS, "response_format": "url"}
    answer = guarded.post(GENERATIONS, json=fields, headers={"authorization": "Bearer secret"})
    assert guarded.get(answer.json()["data"][0]["url"]).status_code == 200


def test_request_ids(http, caplog):
    caplog.set_level("INFO", "latentc.serving")
    assert http.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    forged = http.get("/livez%0Aforged", headers={"x-request-id": "a b{}<script>"})
    assert forged.headers["x-request-id"].isalnum()
    wait_for(lambda: any("forged" in one.getMessage() for one in caplog.records))
    assert all("\n" not in one.getMessage() for one in caplog.records)
    assert any(one.getMessage().startswith("mine-1 GET '/livez' 200") for one in caplog.records)
    for path in ("/v1/jobs/secret-of-a-job/events", "/files/secret-of-a-job/0.png"):
        http.get(path, headers={"x-request-id": "mine-2"})
        shown = f"mine-2 GET '{path.replace('-of-a-job', '...')}' 404"
        wait_for(lambda shown=shown: any(one.getMessage().startswith(shown) for one in caplog.records))


@pytest.mark.parametrize(("kind", "code"), [(KeyError, "internal"), (BundleError, "BundleError")])
def test_an_error_shows_no_traceback_and_no_path(http, gate, monkeypatch, caplog, kind, code):
    def broken(*_, **__):
        raise kind("/secret/path")

    caplog.set_level("WARNING", "latentc.serving")  # whatever another test has set
    monkeypatch.setattr(gate._pipeline, "check", broken)
    answer = post(http, "x", 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, code)
    assert "secret" not in answer.text
    assert answer.headers["x-should-retry"] == "false"
    assert "/secret/path" in caplog.text, "the log has it"


def test_readiness(gate):
    service = serve({MODEL: gate}, Limits())
    with gate.closed():
        service.start()
        assert not service.ready
    service.warmed()
    assert service.ready
    assert service.metrics.registry.get_sample_value("latentc_images_total", {"model": MODEL}) is None
    service.close()
    assert not service.ready


def test_a_first_image_that_fails(gate, monkeypatch):
    monkeypatch.setattr(gate._pipeline, "draw_many", lambda *_, **__: [CompileError("No kernel.")], raising=False)
    service = serve({MODEL: gate}, Limits())
    service.start()
    with pytest.raises(CompileError, match="No kernel"):
        service.warmed()
    assert not service.ready
    service.close()


def test_every_queue_is_closed_before_one_is_waited_for(gate, monkeypatch):
    service = serve({"a": gate, "b": gate})
    first, second = (model.queue for model in service.models.values())
    monkeypatch.setattr(first, "join", lambda _: second.submit(ImageJob(asking("x", 1))))
    with pytest.raises(ApiError, match="shutting down"):
        service.close()


def test_a_first_image_has_a_size_of_the_engines(gate, monkeypatch):
    shapes = gate.profile.shapes.model_copy(update={"sizes": ("64x64",)})
    monkeypatch.setattr(gate._pipeline, "profile", gate.profile.model_copy(update={"shapes": shapes}))
    service = serve({MODEL: gate})
    service.start()
    service.warmed()
    service.close()


EACH_API = {
    "openai": (GENERATIONS, {"prompt": "x", "n": 1, **FIELDS}),
    "webui": ("/sdapi/v1/txt2img", {"prompt": "x", "steps": 4, "width": 64, "height": 64}),
    "stability": (f"/v1/generation/{MODEL}/text-to-image", {"text_prompts": [{"text": "x"}], "steps": 4}),
    "kserve": (f"/v2/models/{MODEL}/infer", {"inputs": [{"name": "prompt", "data": ["x"]}]}),
    "jobs": ("/v1/jobs", {"prompt": "x", "steps": 4}),
}


def test_draining(gate):
    """As at SIGTERM: what each API has accepted is finished, and 503 is the only other error of the server."""
    service = serve({MODEL: gate}, Limits(batch=2))
    queue = service.models[MODEL].queue
    with (
        running(service) as address,
        httpx2.Client(base_url=address, timeout=60) as http,
        ThreadPoolExecutor(12) as pool,
    ):

        def ask_all():
            return {name: pool.submit(http.post, path, json=body) for name, (path, body) in EACH_API.items()}

        with gate.closed():
            asked = ask_all()
            wait_for(lambda: len(queue._running + queue._waiting) == 5)
            job = asked["jobs"].result().json()
            closing = pool.submit(service.close, 60)
            wait_for(lambda: service.draining)
            refused = {name: one.result() for name, one in ask_all().items()}
            ready, alive = http.get("/readyz"), http.get("/livez")
        accepted = {name: one.result().status_code for name, one in asked.items()}
        assert accepted == {**dict.fromkeys(EACH_API, 200), "jobs": 202}
        assert closing.result()
        assert http.get(job["poll_url"]).json()["status"] == "completed"
    assert {name: one.status_code for name, one in refused.items()} == dict.fromkeys(EACH_API, 503)
    assert all("retry-after" in one.headers and "shutting down" in one.text for one in refused.values())
    assert (ready.status_code, alive.status_code) == (503, 200)


def test_a_request_whose_check_takes_long_keeps_no_other_waiting(server, http, gate, monkeypatch):
    """Checking a request decodes its images: it is done in a thread beside the server's."""
    began, go = Event(), Event()

    def check(request, **more):
        if request.prompt == "slow":
            began.set()
            assert go.wait(60)
        return gate._pipeline.check(request, **more)

    monkeypatch.setattr(gate, "check", check, raising=False)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(post, http, "slow", 1)
        assert began.wait(60)
        assert http.get("/livez").status_code == 200
        assert post(http, "fast", 1).status_code == 200
        assert not slow.done()
        go.set()
        assert slow.result().status_code == 200
