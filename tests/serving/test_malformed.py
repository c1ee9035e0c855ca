"""Malformed requests to every route: an error of the client's, never of the server's, and never a traceback."""

import json
import random
import string

import httpx2
import pytest

from latentc.core.errors import RequestError
from latentc.serving import jobs, openai
from latentc.serving.errors import ApiError, api_error

from .conftest import wait_for

ROUTES = (
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{}"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{}"),
    ("GET", "/v1/jobs/{}/events"),
    ("GET", "/v1/jobs/{}/result"),
    ("POST", "/v1/jobs/{}/cancel"),
    ("GET", "/v1/capabilities"),
    ("GET", "/files/{}/{}"),
    *[("POST", f"/sdapi/v1/{name}") for name in ("txt2img", "img2img", "interrupt", "options", "png-info")],
    *[("GET", f"/sdapi/v1/{name}") for name in ("progress", "options", "sd-models", "samplers", "{}")],
    ("POST", "/v1/generation/{}/text-to-image"),
    ("POST", "/v1/generation/{}/image-to-image"),
    ("POST", "/v1/generation/{}/image-to-image/masking"),
    ("GET", "/v1/engines/list"),
    ("POST", "/v2beta/stable-image/generate/sd3"),
    ("POST", "/v2beta/stable-image/edit/inpaint"),
    ("GET", "/v2"),
    ("GET", "/v2/models/{}/ready"),
    ("POST", "/v2/models/{}/infer"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
)
NAMES = (
    *("prompt", "n", "size", "model", "response_format", "output_format", "output_compression", "quality", "stream"),
    *("partial_images", "background", "seed", "steps", "guidance", "scheduler", "negative_prompt", "image", "mask"),
    *(
        "strength",
        "adapters",
        "hires",
        "timesteps",
        "sigmas",
        "outpaint",
        "control_scale",
        "vae_tile",
        "decoder",
        "crop",
    ),
    *("prompt_syntax", "clip_skip", "width", "height", "count", "image_sha256", "fps", "variant", "eta", "fill"),
)
VALUES = (
    *(None, True, False, 0, -1, 10**30, 1e308, -0.5, "", "x", "auto", "64x64", "0x0", "99999x99999", "-1x5", "null"),
    *("\0", "\ud7ff", "é" * 100, "../../etc/passwd", "data:image/png;base64,AAAA", "<script>", "9" * 5000, "NaN"),
    *([], [1, 2], ["x"] * 100, {}, {"a": {"b": [None]}}, [[[[[]]]]], {"\n": "\r\n"}, {"none": 1.0}),
)
TYPES = ("application/json", "multipart/form-data; boundary=b", "text/plain", "multipart/form-data", "x" * 200)
HEADERS = (
    {},
    {"x-request-id": "\t\x7f"},
    {"authorization": "Basic ===="},
    {"authorization": "Bearer " + "x" * 5000},
    {"accept": "image/png"},
    {"content-encoding": "gzip"},
    {"origin": "http://["},
    {"host": "["},
    {"range": "bytes=0-"},
    {"content-type": "application/json; charset=\\"},
)
COUNT = 600


def word(chance):
    return "".join(chance.choices(string.printable + "é\u2028", k=chance.randrange(12)))


def fields(chance):
    """Names and values that mostly don't fit."""
    return {
        chance.choice(NAMES) if chance.random() < 0.9 else word(chance): chance.choice(VALUES)
        for _ in range(chance.randrange(6))
    }


def form(chance):
    """A multipart form, of which something may be missing."""
    lines = []
    for name, value in fields(chance).items():
        file = '; filename="a.png"' if chance.random() < 0.4 else ""
        lines += ["--b", f'Content-Disposition: form-data; name="{name}"{file}', "", str(value)]
    text = "\r\n".join([*lines, "--b--", ""]).encode("utf-8", "replace")
    return text[: chance.randrange(len(text) + 1)] if chance.random() < 0.3 else text


def body(chance, content):
    if content.startswith("multipart"):
        return form(chance)
    text = json.dumps(fields(chance)).encode()
    kind = chance.randrange(6)
    if kind == 0:
        return text[: chance.randrange(len(text) + 1)]
    if kind == 1:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(60)))
    if kind == 2:
        return chance.choice(
            [b"[" * 5000, b"null", b"[]", b'{"a": NaN}', b'{"prompt": 1, "prompt": 2}', b'"\xff"', b""]
        )
    return text


def test_nothing_malformed_is_an_error_of_the_server(http, queue):
    chance = random.Random(1)
    worst = {}
    for number in range(COUNT):
        method, path = chance.choice(ROUTES)
        path = path.replace("{}", "%2e%0a\u2028" if chance.random() < 0.2 else "none")
        if chance.random() < 0.15:
            method = chance.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"))
        content = chance.choice(TYPES)
        headers = {"content-type": content, **chance.choice(HEADERS)}
        sent = None if chance.random() < 0.1 else body(chance, content)
        try:
            answer = http.request(method, path, headers=headers, content=sent)
        except httpx2.LocalProtocolError:
            continue
        worst[answer.status_code] = worst.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (number, method, path, headers, sent, answer.text)
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text
        assert answer.headers["x-request-id"], (method, path)
        if answer.status_code >= 400 and method != "HEAD":
            found = answer.json()
            error = found["error"] if isinstance(found.get("error"), dict) else found  # the form of another API
            assert error.get("message") or error.get("detail") or error["error"], (number, method, path)
            assert error.get("code") or "code" not in error
    assert len(worst) > 4, worst
    assert http.get("/readyz").status_code == 200
    wait_for(lambda: not queue._running)


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
