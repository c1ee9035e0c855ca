"""A server on a free port, in a thread, over a tiny model; and the unmodified clients of its APIs."""

from __future__ import annotations

import shutil
import socket
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

import httpx2
import openai
import pytest
import uvicorn

from latentc.core.request import Request
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.serving.app import create_app
from latentc.serving.limits import Limits
from latentc.serving.service import serve

from .guided import NETS

MODEL = "tiny"
SLOW_SECONDS = 0.08
PAGE_WAIT = 15_000
"""Milliseconds for which a test of the page waits."""
CHROMIUM = shutil.which("chromium")
PATIENCE = 120
"""Seconds after which a test fails that waits for something to happen."""
ASKED = {"steps": 4, "scheduler": "euler", "width": 64, "height": 64, "guidance": 5.0}


def asking(prompt, seed, **more):
    return Request(prompt=prompt, seed=seed, **ASKED | more)


def wait_for(condition):
    """Wait until a condition holds."""
    until = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < until, "it never happened"
        sleep(0.005)


class Gate:
    """A pipeline that can be held: before it begins a batch, or after a step; it remembers the sizes of batches."""

    def __init__(self, pipeline):
        self._pipeline, self._open, self._go = pipeline, Event(), Event()
        self.batches, self.hold_at, self.held = [], None, Event()
        self._open.set()

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def __call__(self, request, **inputs):
        return self._pipeline(request, **inputs)

    def draw_many(self, requests, on_step, **kwargs):
        self.batches.append(len(requests))
        assert self._open.wait(PATIENCE)
        return self._pipeline.draw_many(requests, [self._holding(one) for one in on_step], **kwargs)

    def _holding(self, on_step):
        def stepped(step):
            if step.index == self.hold_at:
                self.held.set()
                assert self._go.wait(PATIENCE)
            return on_step(step)

        return stepped

    @contextmanager
    def closed(self):
        """Begin nothing in this block."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    @contextmanager
    def held_at(self, step):
        """Hold each job after this step until the block ends."""
        self.held.clear()
        self._go.clear()
        self.hold_at = step
        try:
            yield
        finally:
            self.hold_at = None
            self._go.set()


@contextmanager
def running(service, access=None):
    """The address of a server of a service, which listens on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(service, access), log_config=None, timeout_graceful_shutdown=5, lifespan="off")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    service.start()
    thread.start()
    try:
        service.warmed()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        service.close(0)
        thread.join(PATIENCE)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture
def found_by_processes(monkeypatch):
    """Processes import stand-ins by their names."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def gate(opened):
    return Gate(opened("sd1"))


@pytest.fixture(scope="module")
def service(gate):
    return serve({MODEL: gate}, Limits(steps=60, pixels=128 * 128, body_bytes=1 << 20))


@pytest.fixture(scope="module")
def queue(service):
    return service.models[MODEL].queue


@pytest.fixture(scope="module")
def server(service):
    with running(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def http(server):
    with httpx2.Client(base_url=server, timeout=PATIENCE) as one:
        yield one


@pytest.fixture(scope="module")
def guided_pipeline(equipped, checkpoint, controlnet, ip_adapter):
    """A model with two ControlNets and an IP-Adapter."""
    nets = [str(controlnet("sd1", seed)) for seed in range(NETS)]
    adapter = str(ip_adapter("sd1", "plain"))
    bundle = equipped(
        "sd1-guided", lambda folder: export(str(checkpoint("sd1")), folder, controlnets=nets, ip_adapter=adapter)
    )
    with Pipeline.open(bundle, "cpu-onnxruntime") as one:
        yield one


@pytest.fixture(scope="module")
def guided_address(guided_pipeline):
    with running(serve({MODEL: guided_pipeline}, Limits(image_pixels=100 * 100))) as found:
        yield found


@pytest.fixture(scope="module")
def guided(guided_address):
    with httpx2.Client(base_url=guided_address, timeout=PATIENCE) as one:
        yield one


class Slow(Gate):
    """A pipeline that takes a while for each step of requests with a negative prompt of `slow`."""

    def draw_many(self, requests, on_step, **more):
        def slowly(request, on_step):
            def stepped(step):
                sleep(SLOW_SECONDS * (request.negative_prompt == "slow"))
                return on_step(step)

            return stepped

        return super().draw_many(requests, [slowly(*both) for both in zip(requests, on_step, strict=True)], **more)


@pytest.fixture(scope="module")
def slow(opened):
    return Slow(opened("sd1"))


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def visit(browser, request):
    """`visit(**options)`: the page in a browser of its own; complaints and requests to other hosts fail the test."""
    contexts, wrong, expected = [], [], []

    def make(to=None, allowed=(), ready=True, **options):
        to = to or request.getfixturevalue("address")
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        one = context.new_page()
        one.set_default_timeout(PAGE_WAIT)
        one.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
        one.on("pageerror", lambda error: wrong.append(str(error)))
        one.on("request", lambda sent: sent.url.startswith((to, "blob:", "data:")) or wrong.append(sent.url))
        expected.extend(allowed)
        one.goto(to)
        if ready:
            one.wait_for_selector("html[data-ready]")
        return one

    yield make
    for context in contexts:
        context.close()
    assert [text for text in wrong if not any(word in text for word in expected)] == []
