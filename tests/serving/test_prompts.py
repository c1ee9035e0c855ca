"""Prompts expanded by a chat model: a server of our own on loopback that answers as it is asked to."""

import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import httpx2
import pytest

from latentc.core.errors import RequestError
from latentc.serving.limits import Limits
from latentc.serving.prompts import MOST_ANSWERED, MOST_BYTES, PromptModel
from latentc.serving.service import Additions, serve

from .conftest import MODEL, running

GOOD = "A lighthouse on a cliff, warm light."


def completion(text):
    """As in OpenAI's reference of chat completions."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "choices": [choice]}).encode()


class Chat(ThreadingHTTPServer):
    """Answers with `status`, `headers` and `body`; remembers what it was asked; `pause` is waited for in the middle."""

    daemon_threads = True

    def __init__(self):
        self.status, self.headers, self.body, self.asked = 200, {}, completion(GOOD), []
        self.pause = Event()
        self.pause.set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):  # the name that http.server calls
        chat = self.server
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        chat.asked.append((self.path, dict(self.headers), json.loads(sent or "null")))
        self.send_response(chat.status)
        for name, value in {"content-type": "application/json", **chat.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(chat.body[:10])
            chat.pause.wait(60)
            self.wfile.write(chat.body[10:])
        except OSError:  # the client has left
            pass

    def do_GET(self):
        self.do_POST()

    def log_message(self, *_):
        pass


@contextmanager
def chatting():
    chat = Chat()
    thread = Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        chat.pause.set()
        chat.shutdown()
        chat.server_close()
        thread.join()


@pytest.fixture
def chat():
    with chatting() as one:
        yield one


@contextmanager
def helped(gate, model):
    service = serve({MODEL: gate}, Limits(), Additions(prompts=model))
    with running(service) as address, httpx2.Client(base_url=address, timeout=60) as http:
        yield http


def expand(http, prompt="a lighthouse", **more):
    return http.post("/v1/prompts/expand", json={"prompt": prompt, **more})


def test_a_prompt_is_expanded_and_kept(gate, chat):
    with helped(gate, PromptModel(chat.url, "small", "hidden")) as http:
        assert http.get("/v1/capabilities").json()["prompts"] is True
        assert expand(http).json() == {"prompt": "a lighthouse", "expanded": GOOD}
        ((path, headers, sent),) = chat.asked
        assert path == "/v1/chat/completions"
        assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer hidden"
        assert (sent["model"], sent["stream"]) == ("small", False)
        assert [one["role"] for one in sent["messages"]] == ["system", "user"]
        assert sent["messages"][1]["content"] == "a lighthouse"


def test_nothing_of_a_client_is_an_address_or_reaches_the_model(gate, chat):
    with helped(gate, PromptModel(f"{chat.url}/chat/completions")) as http:
        assert expand(http, url="http://127.0.0.1:1/").status_code == 400
        assert expand(http, model="other").json()["error"]["param"] == "model"
        for prompt in ("", "  ", 5, "x" * 4001):
            assert expand(http, prompt).status_code == 400
        assert chat.asked == []
        headers = {"authorization": "Bearer own", "x-forwarded-host": "evil.example"}
        assert http.post("/v1/prompts/expand", json={"prompt": "x"}, headers=headers).status_code == 200
        ((path, sent, body),) = chat.asked
        assert path == "/v1/chat/completions"
        assert "model" not in body
        assert not {"authorization", "x-forwarded-host"} & {name.lower() for name in sent}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("  two\n\nlines\t\x00\x1b[31m ", "two lines [31m"),
        ("a\u202eb\u2028c\ufeff", "ab c"),
        ("a family \U0001f468\u200d\U0001f469", "a family \U0001f468\u200d\U0001f469"),
        ("<think>What do they want?</think>\n\nA boat.", "A boat."),
        ("x" * 5000, "x" * MOST_ANSWERED),
    ],
)
def test_answers_are_plain_and_short(chat, text, expanded):
    chat.body = completion(text)
    assert PromptModel(chat.url).expand("x") == expanded


def test_answers_that_are_of_no_use(gate, chat, caplog):
    caplog.set_level("WARNING", "latentc.serving")  # whatever earlier tests left
    bodies = [
        *(
            b"",
            b"garbage",
            b"[]",
            b"{}",
            b'{"choices": []}',
            b'{"choices": {"0": 1}}',
            b'{"choices": [{"message": 5}]}',
        ),
        *(completion(None), completion(" \n "), completion(5), b"\xff" * 40, b"[" * 100_000),
        completion("x" * MOST_BYTES),
    ]
    with helped(gate, PromptModel(chat.url)) as http:
        for body in bodies:
            chat.body = body
            answer = expand(http)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "prompt_model_failed"), body[:40]
            assert answer.headers["x-should-retry"] == "false"
        chat.body, chat.status = b"secret of the model", 500
        answer = expand(http)
        assert answer.status_code == 502
        assert "secret" not in answer.text
    assert "it answered 500" in caplog.text


def test_no_redirect_is_followed_and_no_proxy_used(gate, chat, monkeypatch):
    with chatting() as other, helped(gate, PromptModel(chat.url)) as http:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):  # the client has read them already
            monkeypatch.setenv(name, other.url)
        for status in (301, 302, 303, 307, 308):
            chat.status, chat.headers = status, {"location": f"{other.url}/chat/completions"}
            assert expand(http).status_code == 502
        assert len(chat.asked) == 5
        assert other.asked == []


def test_a_model_that_is_slow_or_gone(gate, chat):
    chat.pause.clear()
    with helped(gate, PromptModel(chat.url, seconds=0.2)) as http:
        answer = expand(http)
        assert (answer.status_code, "within 0.2 seconds" in answer.text) == (504, True)
    chat.pause.set()
    with chatting() as other:
        url = other.url
    with helped(gate, PromptModel(url)) as http:
        assert expand(http).status_code == 502


def test_a_few_at_once(gate, chat):
    chat.pause.clear()
    model = PromptModel(chat.url, seconds=30)
    threads = [Thread(target=model.expand, args=("x",), daemon=True) for _ in range(2)]
    for one in threads:
        one.start()
    while len(chat.asked) < 2:
        time.sleep(0.005)
    with helped(gate, model) as http:
        answer = expand(http)
        assert (answer.status_code, "retry-after" in answer.headers) == (429, True)
        chat.pause.set()
        for one in threads:
            one.join()
        assert expand(http).status_code == 200


def test_without_a_model(http):
    answer = expand(http)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_prompt_model")
    assert http.get("/v1/capabilities").json()["prompts"] is False


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "ftp://a/v1", "file:///etc/passwd", "http://", "http://a:b@c/v1", "http://a/v1?x=1", "http://a/#x",
     "http://a:99999/", "http://a\r\nb/", "http://a/ b", "http://[::1/v1"],
)  # fmt: skip
def test_addresses_that_are_refused(url):
    with pytest.raises(RequestError, match="not an address of a chat model"):
        PromptModel(url)
