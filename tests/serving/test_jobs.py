"""The API of jobs, over a socket."""

import base64
import json
from io import BytesIO

import httpx2
import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import RequestError
from latentc.serving.guard import Access
from latentc.serving.limits import Limits
from latentc.serving.service import serve

from .conftest import ASKED, MODEL, asking, running, wait_for


def submit(http, prompt="x", seed=1, **more):
    answer = http.post("/v1/jobs", json={**ASKED, "prompt": prompt, "seed": seed, **more})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["poll_url"]
    return answer.json()


def ended(http, job):
    found = {}
    wait_for(lambda: found.update(http.get(job["poll_url"]).json()) or found["status"] not in ("queued", "generating"))
    return found


def test_a_job(http, gate):
    job = submit(http, "a red cube", 7, count=2)
    found = ended(http, job)
    assert (found["status"], found["step"], found["steps"], found["error"]) == ("completed", 4, 4, None)
    assert found["seconds"] > 0
    result = http.get(f"{job['poll_url']}/result").json()
    images = [np.asarray(Image.open(BytesIO(http.get(one["url"]).content))) for one in result["images"]]
    assert np.array_equal(images, gate(asking("a red cube", 7, count=2)).images)
    assert [one["seed"] for one in result["images"]] == [7, 8]
    assert result["request"]["prompt"] == "a red cube"


def test_states_and_positions(http, gate):
    with gate.closed():
        first = submit(http, "first")
        wait_for(lambda: http.get(first["poll_url"]).json()["status"] == "generating")
        second, third = submit(http, "second"), submit(http, "third", width=96)
        shown = [http.get(one["poll_url"]).json() for one in (second, third)]
        assert [one["status"] for one in shown] == ["queued"] * 2
        assert [one["queue_position"] for one in shown] == [0, 1]
        early = http.get(f"{first['poll_url']}/result")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "no_result")
        cancelled = http.post(f"{second['poll_url']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert http.post(f"{second['poll_url']}/cancel").status_code == 409
        assert http.get(third["poll_url"]).json()["queue_position"] == 0
    assert ended(http, first)["status"] == ended(http, third)["status"] == "completed"
    assert http.get(f"{second['poll_url']}/result").status_code == 409


def test_a_running_job_is_cancelled(http, gate):
    with gate.held_at(3):
        job = submit(http, steps=60)
        assert gate.held.wait(60)
        assert http.post(f"{job['poll_url']}/cancel").status_code == 200
    found = ended(http, job)
    assert (found["status"], found["error"]["code"]) == ("cancelled", "cancelled")
    assert found["step"] <= 5


def events(http, job, query=""):
    with http.stream("GET", f"{job['poll_url']}/events{query}") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = None
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            name = value if field == "event" else name
            if field == "data":
                yield name, json.loads(value)


def test_events(http, gate):
    with gate.closed():
        job = submit(http)
        following = events(http, job)
        assert next(following)[0] == "status"
    found = list(following)
    steps = [one["step"] for name, one in found if name == "progress"]
    assert steps == sorted(steps)
    assert (found[-1][0], found[-1][1]["status"]) == ("completed", "completed")
    assert [name for name, _ in events(http, job)] == ["completed"], "for one that has ended too"


def test_events_have_previews_where_they_are_asked_for(http, gate):
    expected = []
    gate(asking("x", 1), on_step=lambda step: expected.append(gate.preview(step)[0]))
    with gate.held_at(3):
        job = submit(http)
        assert gate.held.wait(60)
        (_, plain), (_, found) = next(events(http, job)), next(events(http, job, "?previews=true"))
    assert "preview" not in plain
    preview = np.asarray(Image.open(BytesIO(base64.b64decode(found["preview"]))))
    assert found["step"] == 2
    assert np.array_equal(preview, expected[1])


def test_a_job_that_fails(http, gate, monkeypatch):
    def failing(requests, *_, **__):
        return [RequestError("It can't be drawn.") for _ in requests]

    monkeypatch.setattr(gate._pipeline, "draw_many", failing, raising=False)
    job = submit(http)
    found = ended(http, job)
    assert (found["status"], found["error"]["message"]) == ("failed", "It can't be drawn.")
    assert http.get(f"{job['poll_url']}/result").status_code == 400


def encoded(image):
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_image_to_image(http, gate):
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    job = submit(http, image=f"data:image/png;base64,{encoded(image)}", strength=0.5)
    assert ended(http, job)["status"] == "completed"
    (one,) = http.get(f"{job['poll_url']}/result").json()["images"]
    expected = gate(asking("x", 1, strength=0.5), image=image).images[0]
    assert np.array_equal(np.asarray(Image.open(BytesIO(http.get(one["url"]).content))), expected)


@pytest.mark.parametrize(
    ("side", "more"), [(64, {"width": None, "height": None}), (64, {"crop": 8}), (160, {"crop": 0, "outpaint": None})]
)
def test_what_comes_out_is_limited_before_it_is_laid_out(http, monkeypatch, side, more):
    monkeypatch.setattr("latentc.pipelines.generate.lay_out", lambda *_: 1 / 0)
    image, mask = np.zeros((side, side, 3), np.uint8), np.full((side, side), 255, np.uint8)
    inputs = {"image": encoded(image), "mask": encoded(mask), "outpaint": [2000] * 4}
    answer = http.post("/v1/jobs", json={**ASKED, "prompt": "x", **inputs, **more})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded"), answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"image": 5}, "image"), ({"image": "§"}, "image"), ({"model": 5}, "model"), ({"steps": 0}, "steps")],
)
def test_wrong_fields(http, fields, param):
    answer = http.post("/v1/jobs", json={"prompt": "x", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_clients_see_their_own_jobs(gate):
    access = Access(("one", "two"))
    with running(serve({MODEL: gate}, Limits()), access) as address:
        one, two = (
            httpx2.Client(base_url=address, headers={"authorization": f"Bearer {name}"}) for name in ("one", "two")
        )
        with one, two:
            job = submit(one)
            assert [each["id"] for each in one.get("/v1/jobs").json()["data"]] == [job["id"]]
            assert two.get("/v1/jobs").json()["data"] == []
            ended(one, job)


def test_results_that_are_no_longer_kept(gate):
    with running(serve({MODEL: gate}, Limits(keep_bytes=0))) as address, httpx2.Client(base_url=address) as http:
        job = submit(http)
        wait_for(lambda: http.get(job["poll_url"]).status_code == 410)


def test_unknown_jobs(http):
    for path in ("/v1/jobs/none", "/v1/jobs/none/result", "/v1/jobs/none/events", "/files/none/0.png"):
        assert http.get(path).status_code == 404
    assert http.post("/v1/jobs/none/cancel").status_code == 404


def test_capabilities(http, service):
    found = http.get("/v1/capabilities").json()
    assert found["limits"]["steps"] == service.limits.steps
    model = found["models"][MODEL]
    assert model["default_size"] == "128x128"
    assert model["sizes"] is None, "all"
    assert (model["image"], model["mask"], model["previews"], model["multiple"]) == (True, True, True, 8)
    assert {"ddim", "euler-karras", model["scheduler"]} <= set(model["schedulers"])
    assert (model["adapters"], model["takes_strengths"]) == ({}, False)
