"""Malformed requests to every route: an error of the client's, never of the server's, and never a traceback."""

import json
import re
from contextlib import closing

import httpx2
import pytest

from latentc.core.errors import BundleError, RequestError
from latentc.core.request import Request
from latentc.serving import jobs, openai
from latentc.serving.app import create_app
from latentc.serving.credits import Credits
from latentc.serving.errors import ApiError, api_error
from latentc.serving.guard import Access
from latentc.serving.history import History
from latentc.serving.limits import Limits
from latentc.serving.prompts import PromptModel
from latentc.serving.service import Additions, serve
from latentc.serving.state import open_state

from .conftest import MODEL, running
from .fuzz import TOKEN, Answered, ask, attack, faults, routes_of
from .malformed import Case
from .test_prompts import chatting
from .values import VALUES

COUNT = 400
NAMES = (
    *(set(Request.model_fields) - {"prompt"}),
    *("n", "size", "model", "response_format", "output_format", "output_compression", "quality", "stream"),
    *("partial_images", "background", "image", "mask"),
)
LIMITS = Limits(steps=3, pixels=96 * 96, count=2, job_seconds=30)


@pytest.fixture(scope="module")
def address(gate):
    with running(serve({MODEL: gate}, LIMITS)) as found:
        yield found


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # Starlette leaves those of broken forms to Python
@pytest.mark.parametrize("added", [False, True], ids=["plain", "all additions"])
def test_nothing_malformed_is_an_error_of_the_server(gate, caplog, tmp_path, added):
    """And a good request is drawn as before. `python -m tests.serving.fuzz` sends more."""
    with open_state(tmp_path) as state, closing(History(state)) as history, chatting() as chat:
        additions = Additions(history, Credits(1e6, 1), PromptModel(chat.url))
        service = serve({MODEL: gate}, LIMITS, additions if added else None)
        routes = routes_of(create_app(service))
        assert {("POST", "/v1/images/edits"), ("POST", "/v2/models/{name}/infer"), ("GET", "/livez")} <= set(routes)
        asked = [one for one in routes if not added or re.search("history|prompts|balance|jobs", one[1])]
        with running(service, Access(tokens=(TOKEN,) * added)) as address:
            found = attack(address, asked, 1, range(COUNT // (1 + added)), token=TOKEN * added)
        assert bool(chat.asked) == added
    assert found.faults == []
    assert {200, 400, 404, 405, 415, *(() if added else (403, 422))} <= set(found.statuses)
    assert len(found.kinds) > 10
    assert not [one for one in caplog.records if one.exc_info]


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")
def test_nothing_malformed_is_an_error_where_models_are_loaded(gate, caplog):
    asked = []

    def reopen(name, _):
        asked.append(name)
        raise BundleError("/srv/models/app.py/tiny.bundle is damaged.")

    service = serve({MODEL: gate}, LIMITS)
    service.reopen, service.model_control = reopen, True
    routes = [one for one in routes_of(create_app(service)) if "/repository/" in one[1]]
    assert len(routes) == 3
    with running(service) as address:
        found = attack(address, routes, 1, range(150))
    assert found.faults == []
    assert {200, 400, 404} <= set(found.statuses)
    assert {*asked} == {MODEL}
    assert not [one for one in caplog.records if one.exc_info]


@pytest.mark.parametrize("path", ["/livez", "/v1/jobs"])
def test_a_body_that_breaks_off_is_no_exception(address, caplog, path):
    framing = ("Transfer-Encoding: chunked",)
    found = ask(address, Case("POST", path, framing=framing, body=b"zz\r\nx\r\n0\r\n\r\n", unfinished=True))
    assert found.status == 400
    assert not [one for one in caplog.records if one.exc_info]


@pytest.mark.parametrize(
    ("status", "body", "headers", "complaint"),
    [
        (500, '{"error": {"message": "x"}}', {}, "status 500"),
        (503, '{"error": {"message": "x", "code": "other"}}', {}, "status 503"),
        (400, '{"error": {"message": "Traceback (most"}}', {}, "Traceback"),
        (400, '{"error": {"message": "in serving/app.py"}}', {}, ".py"),
        (400, '{"error": {"message": ""}}', {}, "no message"),
        (400, "{", {}, "no JSON"),
        (200, '{"a": NaN}', {}, "NaN"),
        (200, "{}", {"x-injected": "1"}, "injected"),
        (200, "{}", {"x-request-id": None}, "x-request-id"),
    ],
)
def test_faults_are_seen(status, body, headers, complaint):
    held = {"content-type": "application/json", "x-request-id": "1", **headers}
    answered = Answered(status, {name: value for name, value in held.items() if value}, body.encode())
    assert any(complaint in one for one in faults(Case(), answered))
    assert faults(Case(), Answered(hung=True))
    documented = Answered(503, {"content-type": "application/json", "x-request-id": "1"}, error("busy"))
    assert faults(Case(), documented) == []


LARGE = 4 << 20


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/generation/tiny/text-to-image", {"text_prompts": [{"text": "(" * LARGE}]}, "text_prompts"),
        ("/v1/generation/tiny/text-to-image", {"text_prompts": [{"text": "("}] * 9000}, "text_prompts"),
        ("/v1/generation/tiny/text-to-image", {"text_prompts": [{"text": "(" * 30_000}] * 100}, "text_prompts"),
        ("/sdapi/v1/txt2img", {"styles": list(range(190_000))}, "styles"),
        ("/sdapi/v1/txt2img", {"prompt": "<lora:a" * (LARGE // 7)}, "prompt"),
        ("/sdapi/v1/img2img", {"init_images": list(range(190_000))}, "init_images"),
        ("/v1/images/generations", {"prompt": "x", "y" * LARGE: 1}, "yyy"),
        ("/v1/jobs", {"prompt": "x", "outpaint": [1] * 190_000}, "outpaint"),
        ("/v1/jobs", {"prompt": "x", "adapters": {"y" * 30_000 + str(n): 1 for n in range(9)}}, "adapters"),
        ("/v2/models/tiny/infer", {"inputs": [{"name": "prompt", "data": ["x" * LARGE]}]}, "inputs"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_large_texts_and_lists_are_refused_before_they_are_read(address, path, fields, named):
    answer = httpx2.post(address + path, json=fields, timeout=60)
    assert answer.status_code == 400
    assert named in answer.text
    assert "limit is" in answer.text
    assert len(answer.text) < 1000


def test_the_text_of_an_image_may_be_as_long_as_the_body(address):
    """It is refused for what it is."""
    fields = {"prompt": "x", "steps": 1, "image": "QUJD" * (LARGE // 4)}
    answer = httpx2.post(address + "/v1/jobs", json=fields, timeout=60)
    assert answer.status_code == 400
    assert "is not an image" in answer.json()["error"]["message"]


def test_large_texts_in_forms_and_tensors(address):
    texts = {f"text_prompts[{index}][text]": (None, "(" * 900_000) for index in range(2)}
    answer = httpx2.post(address + "/v1/generation/tiny/image-to-image", files=texts, timeout=60)
    assert answer.status_code == 400
    assert "limit is" in answer.text
    value = (LARGE).to_bytes(4, "little") + b"x" * LARGE
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(value)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    sent = {"inference-header-content-length": str(len(header))}
    answer = httpx2.post(address + "/v2/models/tiny/infer", content=header + value, headers=sent, timeout=60)
    assert answer.status_code == 400
    assert "32,000 characters" in answer.text


def error(code):
    return b'{"error": {"message": "x", "code": "%s"}}' % code.encode()


@pytest.mark.parametrize("translate", [openai.asked, jobs.asked], ids=["openai", "jobs"])
def test_every_field_with_every_value_is_taken_or_refused(translate):
    refused: list[Exception] = []
    for name in NAMES:
        for value in VALUES[1:]:  # null is left out before
            try:
                translate({"prompt": "x", name: value})
            except (ApiError, RequestError) as exc:
                refused.append(exc)
    assert {api_error(one).status for one in refused} == {400}
    assert max(len(str(one)) for one in refused) < 2000
    assert 0.6 < len(refused) / (len(NAMES) * len(VALUES)) < 1
