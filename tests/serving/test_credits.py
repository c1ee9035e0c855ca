"""Credits: what requests cost, who pays, and what a balance survives."""

import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import httpx2
import openai
import pytest
from PIL import Image

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.serving.credits import Credits
from latentc.serving.guard import Access
from latentc.serving.image_job import ImageJob
from latentc.serving.limits import Limits
from latentc.serving.service import Additions, serve
from latentc.serving.state import open_state

from .conftest import ASKED, MODEL, running, wait_for
from .test_jobs import ended, submit

ONE, TWO = ({"authorization": f"Bearer {name}"} for name in ("one", "two"))


def every_step(steps, _):
    """Steps that a scheduler makes at a strength: all of them."""
    return steps


@contextmanager
def selling(gate, prices, access=None, **limits):
    service = serve({MODEL: gate}, Limits(**limits), Additions(credits=prices))
    with running(service, access) as address, httpx2.Client(base_url=address, timeout=120) as http:
        yield http


def balance(http, **more):
    return http.get("/v1/user/balance", **more).json()["credits"]


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"width": 1000, "height": 1000, "steps": 20}, 1 + 20 * 0.1),
        ({"width": 1000, "height": 504, "steps": 20, "count": 4}, 4 * (1 + 20 * 0.504 * 0.1)),
        ({"width": 1000, "height": 1000, "steps": 20, "hires": 2}, 1 + (20 + 4 * 20) * 0.1),
        ({"width": 1000, "height": 1000, "steps": 20, "hires": 2, "hires_steps": 5}, 1 + (20 + 4 * 5) * 0.1),
    ],
)
def test_costs(fields, cost):
    assert Credits(10, 1, 0.1).cost(Request(prompt="x", **fields), every_step) == pytest.approx(cost * 1e6)


def test_fractions_are_exact():
    prices, request = Credits(0.3, 0.1), Request(prompt="x", width=64, height=64)
    for _ in range(3):
        cost = prices.cost(request, every_step)
        prices.reserve("", cost)
        prices.settle("", cost, spent=cost)
    assert prices.balance("") == 0


def test_a_balance_is_spent_and_then_refused(gate):
    with selling(gate, Credits(2.5, 1)) as http:
        assert http.get("/v1/capabilities").json()["credits"] is True
        body = {"text_prompts": [{"text": "a hut"}], "samples": 2, "steps": 4, "width": 64, "height": 64}
        path = f"/v1/generation/{MODEL}/text-to-image"
        assert http.post(path, json=body).status_code == 200
        assert http.get("/v1/user/balance").json() == {"credits": 0.5}
        refused = http.post(path, json=body)
        assert refused.status_code == 402
        assert refused.json().keys() >= {"id", "name", "errors"}
        assert refused.json()["name"] == "payment_required"
        assert "costs 2 credits, and 0.5 are left" in refused.json()["errors"][0]
        form = {"prompt": (None, "a hut")}
        assert http.post("/v2beta/stable-image/generate/sd3", files=form).json()["name"] == "payment_required"
        jobs = http.post("/v1/jobs", json={**ASKED, "prompt": "x"})
        assert (jobs.status_code, jobs.json()["error"]["code"]) == (402, "payment_required")
        assert http.post("/sdapi/v1/txt2img", json={"prompt": "x"}).status_code == 402
        inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["x"]}]
        assert http.post(f"/v2/models/{MODEL}/infer", json={"inputs": inputs}).status_code == 402
        with openai.OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none") as client:
            with pytest.raises(openai.APIStatusError, match="credits") as caught:
                client.images.generate(prompt="x")
            assert (caught.value.status_code, caught.value.type) == (402, "insufficient_quota")
        assert balance(http) == 0.5


FROM_AN_IMAGE = {"strength": 0.5, "width": None, "height": None}


@pytest.mark.parametrize(
    "more",
    [
        {"store": False},
        {"count": 2, "hires": 2},
        {"image": [64, 96], **FROM_AN_IMAGE},
        {"image": [128, 128], **FROM_AN_IMAGE},
    ],
)
def test_a_cost_that_is_stated_before_is_the_one_that_is_paid(gate, more):
    fields = {**ASKED, "prompt": "x", **more}
    with selling(gate, Credits(99, 1, 100)) as http:
        stated = http.post("/v1/jobs/cost", json=fields).json()["credits"]
        if "image" in more:
            file = BytesIO()
            Image.new("RGB", tuple(more["image"])).save(file, "PNG")
            fields["image"] = base64.b64encode(file.getvalue()).decode()
        ended(http, http.post("/v1/jobs", json=fields).json())
        assert stated == pytest.approx(99 - balance(http))
        wrong = [{"image": one} for one in ([64], [64, "96"], [0, 9], [True, True], 7)]
        for one in (*wrong, {"model": []}, {"model": 5}, {"steps": 1000}):
            answer = http.post("/v1/jobs/cost", json={"prompt": "x", **one})
            assert answer.status_code == 400, one


def test_what_gives_no_image_costs_nothing(gate, monkeypatch):
    with selling(gate, Credits(5, 1), queue=1) as http:
        with gate.closed():
            job = submit(http)
            wait_for(lambda: http.get(job["poll_url"]).json()["status"] == "generating")
            assert balance(http) == 4, "set aside"
            assert http.post("/v1/jobs", json={**ASKED, "prompt": "y"}).status_code == 429
            assert balance(http) == 4
            http.post(f"{job['poll_url']}/cancel")
        ended(http, job)
        wait_for(lambda: balance(http) == 5)
        monkeypatch.setattr(gate._pipeline, "draw_many", lambda *_, **__: [RequestError("No.")], raising=False)
        ended(http, submit(http))
        wait_for(lambda: balance(http) == 5)


@pytest.mark.parametrize(("partial", "left"), [(1, 4), (0, 5)])
def test_who_leaves_after_a_partial_image_pays(gate, partial, left):
    fields = {**ASKED, "prompt": "x", "steps": 40, "stream": True, "partial_images": partial}
    with selling(gate, Credits(5, 1), steps=60) as http:
        with gate.held_at(21), http.stream("POST", "/v1/images/generations", json=fields) as answer:
            lines = answer.iter_lines()
            while partial and next(lines) != "event: image_generation.partial_image":
                pass
            assert gate.held.wait(60)
            assert balance(http) == 4, "set aside"
        text = 'latentc_cancelled_total{model="tiny",reason="disconnect"} 1'
        wait_for(lambda: text in http.get("/metrics").text)
        wait_for(lambda: balance(http) == left)


@pytest.mark.parametrize(("decodes", "status", "left"), [(True, 200, 4), (False, 409, 5)])
def test_an_interrupt_is_paid_if_it_is_answered_with_images(gate, monkeypatch, decodes, status, left):
    def broken(*_):
        raise RequestError("No image can be decoded.")

    if not decodes:
        monkeypatch.setattr(gate._pipeline, "decode_step", broken)
    fields = {"prompt": "x", "width": 64, "height": 64, "steps": 40}
    with selling(gate, Credits(5, 1), steps=60) as http, ThreadPoolExecutor() as pool:
        with gate.held_at(10):
            asked = pool.submit(http.post, "/sdapi/v1/txt2img", json=fields)
            assert gate.held.wait(60)
            assert http.post("/sdapi/v1/interrupt").status_code == 200
        assert asked.result().status_code == status
        wait_for(lambda: balance(http) == left)


@pytest.mark.parametrize(("given", "left"), [("completed", 7), ("failed", 10), ("cancelled", 10)])
def test_withheld_images_are_not_paid_for(given, left):
    prices, job = Credits(10, 1), ImageJob(Request(prompt="x", width=64, height=64, count=4))
    ended = serve({}, added=Additions(credits=prices))._at_the_end(job, prices.cost(job.request, every_step))
    job.listeners.append(ended)
    assert prices.balance("") == 6
    job.state, job.filtered = given, {2: "dark"}
    ended()
    ended()
    assert prices.balance("") == left


def test_each_token_has_its_own_balance_which_survives_a_restart(gate, tmp_path):
    access = Access(("one", "two"))
    with open_state(tmp_path) as state, selling(gate, Credits(3, 1, state=state), access) as http:
        job = http.post("/v1/jobs", json={**ASKED, "prompt": "x", "count": 2}, headers=ONE).json()
        wait_for(lambda: http.get(job["poll_url"], headers=ONE).json()["status"] == "completed")
        wait_for(lambda: state.run("SELECT COUNT(*) FROM spent") == [(1,)])
        assert [balance(http, headers=who) for who in (ONE, TWO)] == [1, 3]
        assert http.get("/v1/user/balance").status_code == 401
        assert state.run("SELECT account FROM spent") != [("one",)], "the token itself is not in the file"
    with open_state(tmp_path) as state, selling(gate, Credits(4, 1, state=state), access) as http:
        assert [balance(http, headers=who) for who in (ONE, TWO)] == [2, 4], "a larger grant tops all up"


def test_without_credits(http):
    answer = http.get("/v1/user/balance")
    assert (answer.status_code, answer.json()["name"]) == (404, "no_credits")


def test_a_damaged_table_is_an_error_at_start(tmp_path):
    with open_state(tmp_path) as state:
        state.run("DROP TABLE spent")
        with pytest.raises(RequestError, match="can't be used as a database"):
            Credits(1, 1, state=state)


def test_steps_that_a_strength_skips_cost_nothing(gate):
    """As many are paid for as diffusers runs: `int(steps * strength)`."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    asked = {"prompt": "x", "width": 64, "height": 64, "scheduler": "euler", "steps": 9, "guidance": 5}
    for strength, steps in ((0.5, 4), (1.0, 9), (None, 7)):  # the default is 0.8
        with selling(gate, Credits(1, step_cost=10)) as http:
            more = {} if strength is None else {"strength": strength}
            job = http.post("/v1/jobs", json={**asked, "image": image, **more}).json()
            found = ended(http, job)
            assert (found["status"], found["steps"]) == ("completed", steps)
            wait_for(lambda steps=steps: balance(http) == pytest.approx(1 - steps * 10 * 64 * 64 / 1e6))
