"""An operator's check of images, in each API's own shape; and the marks of what each API answers."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import BytesIO
from threading import Event

import httpx2
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

from latentc.core.errors import RequestError
from latentc.serving.checks import load_check
from latentc.serving.history import History
from latentc.serving.limits import Limits
from latentc.serving.service import Additions, serve
from latentc.serving.state import open_state

from .conftest import ASKED, MODEL, PATIENCE, asking, running, wait_for
from .test_jobs import ended, events, submit

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""As in https://cv.iptc.org/newscodes/digitalsourcetype."""
BAD = 8
"""Seed whose image the check withholds."""
BODY = {
    "text_prompts": [{"text": "a hut"}],
    "steps": 4,
    "width": 64,
    "height": 64,
    "sampler": "K_EULER",
    "cfg_scale": 5,
}


@pytest.fixture(scope="module")
def bad(gate):
    """The image that is withheld."""
    return gate(asking("a hut", BAD)).images[0]


@pytest.fixture(scope="module")
def checked(gate, bad, tmp_path_factory):
    """A client of a server with a check and a history."""

    def check(image):
        assert (image.dtype, image.flags.writeable) == (np.uint8, False)
        return "too\n  dark" if np.array_equal(image, bad) else None

    with serving(gate, check, tmp_path_factory.mktemp("state")) as http:
        yield http


@contextmanager
def serving(gate, check, folder):
    with open_state(folder) as state, closing(History(state)) as history:
        service = serve({MODEL: gate}, Limits(), Additions(history, check=check))
        with running(service) as address, httpx2.Client(base_url=address, timeout=120) as http:
            yield http


def pixels(content):
    return np.asarray(Image.open(BytesIO(content)))


def of_text(text):
    return pixels(base64.b64decode(text))


def withheld(http):
    return http.get("/metrics").text.partition('latentc_filtered_images_total{model="tiny"} ')[2].partition("\n")[0]


def drawn(http, seed, **more):
    job = submit(http, "a hut", seed, **more)
    return job, ended(http, job)


def test_jobs(checked, gate):
    before = float(withheld(checked) or 0)
    job, found = drawn(checked, BAD)
    assert (found["status"], found["error"]["code"]) == ("failed", "moderation_blocked")
    assert "too dark" in found["error"]["message"]
    assert checked.get(f"{job['poll_url']}/result").status_code == 400
    assert checked.get(f"/files/{job['id']}/0.png").status_code == 400
    assert float(withheld(checked)) == before + 1
    job, found = drawn(checked, BAD - 1, count=2)
    assert found["status"] == "completed"
    result = checked.get(f"{job['poll_url']}/result").json()
    assert [one["filtered"] for one in result["images"]] == [None, "too dark"]
    assert [one["url"] is None for one in result["images"]] == [False, True]
    assert [one["history"] is None for one in result["images"]] == [False, True]
    assert "Image 2 of 2 was withheld: too dark" in result["notices"]
    good = checked.get(result["images"][0]["url"]).content
    assert np.array_equal(pixels(good), gate(asking("a hut", BAD - 1)).images[0])
    assert checked.get(f"/files/{job['id']}/1.png").status_code == 404
    seeds = [one["seed"] for one in checked.get("/v1/history").json()["data"]]
    assert str(BAD) not in seeds


def test_previews_are_not_shown(checked, gate):
    assert checked.get("/v1/capabilities").json()["models"][MODEL]["previews"] is False
    with gate.held_at(3):
        job = submit(checked)
        assert gate.held.wait(60)
        (_, found) = next(events(checked, job, "?previews=true"))
    assert "preview" not in found
    fields = {**ASKED, "prompt": "x", "seed": 1, "stream": True, "partial_images": 2}
    answer = checked.post("/v1/images/generations", json=fields).text
    assert "partial_image" not in answer
    assert "image_generation.completed" in answer


def test_the_web_uis_progress_has_no_image(checked, gate):
    fields = {"prompt": "x", "steps": 8, "width": 64, "height": 64, "force_task_id": "mine"}
    with ThreadPoolExecutor() as pool:
        with gate.held_at(5):
            asked = pool.submit(checked.post, "/sdapi/v1/txt2img", json=fields)
            assert gate.held.wait(60)
            found = checked.get("/sdapi/v1/progress", params={"id_task": "mine"}).json()
        assert asked.result().status_code == 200
    assert (found["state"]["job"], found["current_image"]) == ("mine", None)


def test_openai(checked):
    base = str(checked.base_url).rstrip("/")
    with openai.OpenAI(base_url=f"{base}/v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a hut", extra_body={**ASKED, "seed": BAD})
        assert (caught.value.code, caught.value.type) == ("moderation_blocked", "image_generation_user_error")
        for more in ({}, {"response_format": "url"}):
            answer = client.images.generate(prompt="a hut", n=2, extra_body={**ASKED, "seed": BAD - 1}, **more)
            assert len(answer.data) == 1
            assert any("withheld" in one for one in answer.notices)


def test_stability(checked, bad):
    path = f"/v1/generation/{MODEL}/text-to-image"
    found = checked.post(path, json={**BODY, "seed": BAD - 1, "samples": 2}).json()["artifacts"]
    assert [one["finishReason"] for one in found] == ["SUCCESS", "CONTENT_FILTERED"]
    assert not of_text(found[1]["base64"]).any()
    single = checked.post(path, json={**BODY, "seed": BAD}, headers={"accept": "image/png"})
    assert (single.status_code, single.headers["finish-reason"]) == (200, "CONTENT_FILTERED")
    assert not pixels(single.content).any()


def test_stability_v2beta(gate, tmp_path):
    with serving(gate, lambda _: "no", tmp_path) as http:
        form = {"prompt": (None, "a hut"), "seed": (None, "5")}
        url = "/v2beta/stable-image/generate/sd3"
        found = http.post(url, files=form, headers={"accept": "application/json"}).json()
        assert (found["finish_reason"], of_text(found["image"]).any()) == ("CONTENT_FILTERED", np.False_)
        answer = http.post(url, files=form)
        assert (answer.status_code, answer.headers["finish-reason"]) == (200, "CONTENT_FILTERED")


def test_the_web_ui_has_black_images(checked):
    webui = webuiapi.WebUIApi(host="127.0.0.1", port=checked.base_url.port, sampler="Euler")
    for count in (1, 2):
        fields = {"seed": BAD + 1 - count, "steps": 4, "width": 64, "height": 64, "cfg_scale": 5, "batch_size": count}
        found = webui.txt2img(prompt="a hut", **fields)
        assert [np.asarray(one).any() for one in found.images] == [True] * (count - 1) + [False]
        assert any("withheld" in one for one in found.info["notices"])


def test_kserve(checked):
    def infer(seed, count):
        values = {"prompt": ("BYTES", "a hut"), "seed": ("INT64", seed), "count": ("INT64", count), **{
            name: ("INT64", ASKED[name]) for name in ("steps", "width", "height")
        }, "scheduler": ("BYTES", "euler"), "guidance": ("FP32", 5)}  # fmt: skip
        inputs = [
            {"name": name, "datatype": kind, "shape": [1], "data": [value]} for name, (kind, value) in values.items()
        ]
        return checked.post(f"/v2/models/{MODEL}/infer", json={"inputs": inputs})

    alone = infer(BAD, 1)
    assert (alone.status_code, "too dark" in alone.json()["error"]) == (400, True)
    (output,) = infer(BAD - 1, 2).json()["outputs"]
    images = np.reshape(output["data"], output["shape"])
    assert [one.any() for one in images] == [True, False]


@pytest.mark.parametrize("answer", [ValueError("secret"), SystemExit(3), KeyboardInterrupt(), 5, False, b"no", [None]])
def test_a_check_that_fails_lets_nothing_pass(gate, tmp_path, answer):
    def check(_):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with serving(gate, check, tmp_path) as http:
        _, found = drawn(http, 1)
        assert (found["status"], found["error"]["code"]) == ("failed", "check_failed")
        assert "secret" not in json.dumps(found)
        for path, body in (
            (f"/v1/generation/{MODEL}/text-to-image", BODY),
            ("/v1/images/generations", {"prompt": "x"}),
        ):
            assert http.post(path, json=body).status_code == 500
        assert http.get("/v1/history").json()["data"] == []
        assert withheld(http) == ""


def test_an_empty_reason_withholds_too(gate, tmp_path):
    with serving(gate, lambda _: "", tmp_path) as http:
        assert "no reason was given" in drawn(http, 1)[1]["error"]["message"]


def test_checks_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_checks.py").write_text(
        "def good(image): return None\ndef none(): return None\ndef number(image): return 1.0\nthing = 5\n"
        "def leave(image): raise SystemExit(3)\n"
    )
    (tmp_path / "broken_checks.py").write_text("1 / 0\n")
    assert load_check("own_checks:good")(np.zeros((8, 8, 3), np.uint8)) is None
    for name in ("own_checks", "own_checks:missing", "no_such_module:f", "", ":", "broken_checks:f"):
        with pytest.raises(RequestError, match="MODULE:FUNCTION"):
            load_check(name)
    for name in ("own_checks:none", "own_checks:number", "own_checks:thing", "own_checks:leave"):
        with pytest.raises(RequestError, match="failed on a grey image"):
            load_check(name)


def marks(content):
    image = Image.open(BytesIO(content))
    held = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
    return held if isinstance(held, str) else held.decode()


def test_the_files_of_every_api_are_marked(checked):
    found = []
    for kind in ("png", "jpeg", "webp"):
        fields = {**ASKED, "prompt": "x", "output_format": kind}
        for way in ("b64_json", "url"):
            one = checked.post("/v1/images/generations", json={**fields, "response_format": way}).json()["data"][0]
            found.append(checked.get(one["url"]).content if way == "url" else base64.b64decode(one["b64_json"]))
    form = {"prompt": (None, "x"), "output_format": (None, "webp")}
    found.append(checked.post("/v2beta/stable-image/generate/sd3", files=form).content)
    job, _ = drawn(checked, 1)
    (image,) = checked.get(f"{job['poll_url']}/result").json()["images"]
    found += [checked.get(image["url"]).content, checked.get(f"/v1/history/{image['history']}/image").content]
    path = f"/v1/generation/{MODEL}/text-to-image"
    found.append(base64.b64decode(checked.post(path, json=BODY).json()["artifacts"][0]["base64"]))
    drawn_by = checked.post("/sdapi/v1/txt2img", json={"prompt": "x", "steps": 4, "width": 64, "height": 64}).json()
    found.append(base64.b64decode(drawn_by["images"][0]))
    assert len(found) == 11
    for one in found:
        assert f'DigitalSourceType="{SOURCE_TYPE}"' in marks(one)


def test_a_check_that_never_answers_ends_with_the_jobs_deadline(gate):
    go, late = Event(), []

    def check(_):
        if not late:
            wait_for(service.kept.jobs)
            late.extend(service.kept.jobs())
            late[0].deadline = 0.0
            go.wait(PATIENCE)

    service = serve({MODEL: gate}, Limits(), Additions(check=check))
    with running(service) as address, httpx2.Client(base_url=address, timeout=PATIENCE) as http:
        fields = {**ASKED, "prompt": "x"}
        first = submit(http)
        assert ended(http, first)["status"] == "cancelled"
        answer = http.get(f"{first['poll_url']}/result")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
        waits = submit(http)
        wait_for(lambda: http.get(waits["poll_url"]).json()["step"] == 4)
        http.post(f"{waits['poll_url']}/cancel")
        assert ended(http, waits)["status"] == "cancelled", "while the first check goes on"
        go.set()
        assert http.post("/v1/images/generations", json=fields).status_code == 200
