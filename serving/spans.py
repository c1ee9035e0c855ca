"""Spans of requests and jobs, where OpenTelemetry is installed and the operator has configured it.

Only its API is used: without an SDK, which `opentelemetry-instrument` sets up, spans are recorded nowhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..core.version import __version__
from .image_job import ImageJob

STAGES = ("text_encoder", "vae_encoder", "denoiser", "vae_decoder")
"""Stages of a result whose seconds the span of its generation has."""


@cache
def _api() -> Any:
    """OpenTelemetry's API; None where it isn't installed."""
    try:
        from opentelemetry import context, propagate, trace
    except ImportError:
        return None
    return context, propagate, trace


@contextmanager
def request_span(method: str, path: str, headers: Mapping[str, str]) -> Generator[dict[str, Any]]:
    """A span of an HTTP request, within its client's trace (`traceparent`); yields a place for more attributes."""
    more: dict[str, Any] = {}
    if (api := _api()) is None:
        yield more
        return
    _, propagate, trace = api
    began = {"http.request.method": method, "url.path": path}
    with trace.get_tracer("latentc", __version__).start_as_current_span(
        f"{method} request", propagate.extract(headers), kind=trace.SpanKind.SERVER, attributes=began
    ) as span:
        try:
            yield more
        finally:
            span.set_attributes(more)
            if more.get("http.response.status_code", 0) >= 500:
                span.set_status(trace.StatusCode.ERROR)


def trace_context() -> Any:
    """What later spans are made part of: the current request."""
    return None if (api := _api()) is None else api[0].get_current()


def record_job(job: ImageJob, within: Any) -> None:
    """The spans of a job that has ended: `job`, and in it `queue` and `generate` with the seconds of its stages."""
    if (api := _api()) is None or job.finished is None:  # it was refused
        return
    trace, ended = api[2], job.finished
    tracer = trace.get_tracer("latentc", __version__)
    about = {"latentc.model": job.model, "latentc.api": job.api, "latentc.state": job.state}
    about |= {"latentc.images": job.request.count, "latentc.steps": job.request.steps}
    whole = tracer.start_span("job", within, attributes=about, start_time=_nanoseconds(job.created))
    inner = trace.set_span_in_context(whole, within)
    waited = tracer.start_span("queue", inner, start_time=_nanoseconds(job.created))
    waited.end(_nanoseconds(job.started or ended))
    if job.started is not None:
        seconds: Mapping[str, float] = {} if job.result is None else job.result.seconds
        stages = {f"latentc.{name}.seconds": seconds[name] for name in STAGES if name in seconds}
        drawn = tracer.start_span("generate", inner, attributes=stages, start_time=_nanoseconds(job.started))
        drawn.end(_nanoseconds(ended))
    if job.state == "failed":
        whole.set_status(trace.StatusCode.ERROR, type(job.error).__name__)
    whole.end(_nanoseconds(ended))


def _nanoseconds(seconds: float) -> int:
    """A time of `time.time`, as OpenTelemetry counts."""
    return round(seconds * 1e9)
