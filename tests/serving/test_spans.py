"""Spans of requests and jobs, as OpenTelemetry's own SDK receives them."""

import sys

import httpx2
import pytest

from latentc.core.errors import RequestError
from latentc.serving import spans
from latentc.serving.limits import Limits
from latentc.serving.service import serve

from .conftest import ASKED, MODEL, running, wait_for
from .test_jobs import ended, submit

trace = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed (the extra dev)")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
api = pytest.importorskip("opentelemetry.trace")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
"""As in https://www.w3.org/TR/trace-context."""


@pytest.fixture
def received(monkeypatch):
    """What an exporter has received; the provider is this test's alone."""
    exporter, provider = memory.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(api, "get_tracer", lambda *given: provider.get_tracer(*given))
    yield exporter
    provider.shutdown()


def named(received, name, count=1):
    found = []
    wait_for(lambda: found.extend(one for one in received.get_finished_spans() if one.name == name) or found)
    assert len(found) == count
    return found[0]


def test_a_request_and_its_job(http, received):
    body = {**ASKED, "prompt": "secret words", "seed": 1}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert http.post("/v1/images/generations", json=body, headers=headers).status_code == 200
    request, job = named(received, "POST request"), named(received, "job")
    queue, generate = named(received, "queue"), named(received, "generate")
    assert format(request.context.trace_id, "032x") == TRACE
    assert format(request.parent.span_id, "016x") == PARENT
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["url.path"] == "/v1/images/generations"
    assert job.parent.span_id == request.context.span_id
    assert queue.parent.span_id == generate.parent.span_id == job.context.span_id
    assert (job.attributes["latentc.model"], job.attributes["latentc.state"]) == (MODEL, "completed")
    assert queue.end_time == generate.start_time
    assert job.start_time == queue.start_time <= queue.end_time <= generate.end_time == job.end_time
    assert generate.attributes["latentc.denoiser.seconds"] > 0
    assert generate.attributes["latentc.vae_decoder.seconds"] > 0
    assert "secret words" not in "".join(one.to_json() for one in received.get_finished_spans())


def test_errors_and_secrets(http, gate, received, monkeypatch):
    monkeypatch.setattr(gate._pipeline, "draw_many", lambda *_, **__: [RequestError("No.")], raising=False)
    job = submit(http)
    ended(http, job)
    found = named(received, "job")
    assert (found.status.status_code, found.status.description) == (api.StatusCode.ERROR, "RequestError")
    paths = [one.attributes.get("url.path", "") for one in received.get_finished_spans()]
    assert not [path for path in paths if job["id"] in path], "whoever knows the id may fetch its images"
    http.get("/none")
    wait_for(lambda: any(one.attributes.get("url.path") == "/none" for one in received.get_finished_spans()))
    missing = next(one for one in received.get_finished_spans() if one.attributes.get("url.path") == "/none")
    assert missing.attributes["http.response.status_code"] == 404
    assert missing.status.status_code == api.StatusCode.UNSET, "the client's mistake"


def test_jobs_that_are_refused_have_no_span(gate, received):
    with running(serve({MODEL: gate}, Limits(queue=1))) as address, httpx2.Client(base_url=address) as http:
        with gate.closed():
            job = submit(http)
            assert http.post("/v1/jobs", json={**ASKED, "prompt": "y"}).status_code == 429
        ended(http, job)
        named(received, "job")


def test_without_opentelemetry(http, received, monkeypatch):
    for name in ("opentelemetry", "opentelemetry.trace", "opentelemetry.propagate", "opentelemetry.context"):
        monkeypatch.setitem(sys.modules, name, None)
    spans._api.cache_clear()
    try:
        assert http.post("/v1/images/generations", json={**ASKED, "prompt": "x"}).status_code == 200
        assert received.get_finished_spans() == ()
    finally:
        spans._api.cache_clear()
