"""The comparison of servers: what is counted, and what is said."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from latentc.benchmarks.servers import CLIENTS, ClientLoad, Rival, ServerRow, markdown
from latentc.core.errors import LatentcError


class Echo(BaseHTTPRequestHandler):
    """Answers with the body that it got; with 429 for a prompt of `busy`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(429 if json.loads(body)["prompt"] == "busy" else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def rival():
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Rival("echo", server.server_port, "/generate", {"steps": 3}, bytes)
        server.shutdown()


def test_a_rival_is_asked_and_counted(rival):
    assert json.loads(rival.draw("a cat", 5)) == {"steps": 3, "prompt": "a cat", "seed": 5}
    with pytest.raises(LatentcError, match="echo answered 429"):
        rival.draw("busy", 5)
    for clients in (1, 4):
        rival.measure(clients, 6)
    assert all(len(rival.seconds[clients]) >= clients + 6 for clients in (1, 4))
    assert all(rate > 0 for rates in rival.rates.values() for rate in rates)


def test_a_rival_that_fails_is_an_error(rival):
    rival.read = lambda _: (_ for _ in ()).throw(LatentcError("no image"))
    with pytest.raises(LatentcError, match="did not answer 1 clients"):
        rival.measure(1, 2)


def test_the_table():
    loads = tuple(ClientLoad(clients=one, rates=(1.0, 3.0), seconds=(0.5, 0.5, 1.5), cpu=(0.2, 0.4)) for one in CLIENTS)
    row = ServerRow(
        run="1",
        time="",
        latentc="0",
        commit=None,
        machine={},
        load_average=None,
        server="echo",
        steps=2,
        loads=loads,
        pss_bytes=10**8,
        scene_score=0.5,
    )
    line = markdown([row]).splitlines()[2]
    assert line == "| echo | " + "2.00, 0.50 s, 1.40 s, 0.30 s | " * 3 + "100 MB | 0.500 |"
