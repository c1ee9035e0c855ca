"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .image_job import WARM_UP, ImageJob

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
"""Bounds of histograms: from a step of a small model to an image of a large one on a CPU."""


class Metrics:
    """The metrics, all with the label `model` but `requests`, which counts requests that name none too."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("latentc_requests", "HTTP requests.", ["api", "status"], registry=own)
        self.images = Counter("latentc_images", "Images generated.", ["model"], registry=own)
        self.depth = Gauge("latentc_queue_depth", "Jobs that wait.", ["model"], registry=own)
        self.running = Gauge("latentc_running", "Jobs that are being generated.", ["model"], registry=own)
        self.waited = Histogram(
            "latentc_queue_seconds", "Seconds from submission to the engine.", ["model"], buckets=SECONDS, registry=own
        )
        self.stages = Histogram(
            "latentc_stage_seconds", "Seconds by stage.", ["model", "stage"], buckets=SECONDS, registry=own
        )
        self.steps = Histogram(
            "latentc_step_seconds",
            "Seconds of one denoiser call, for each job of it.",
            ["model"],
            buckets=SECONDS,
            registry=own,
        )
        self.batches = Histogram(
            "latentc_batch_size", "Jobs generated at once.", ["model"], buckets=(1, 2, 4, 8, 16, 32), registry=own
        )
        self.filtered = Counter(
            "latentc_filtered_images", "Images that the operator's check withheld.", ["model"], registry=own
        )
        self.cancelled = Counter("latentc_cancelled", "Jobs cancelled.", ["model", "reason"], registry=own)

        self.replicas = Gauge("latentc_replicas", "Processes that are open.", ["model"], registry=own)
        self.restarts = Counter(
            "latentc_restarts", "Processes started again after they ended.", ["model"], registry=own
        )

    def ended(self, model: str, job: ImageJob) -> None:
        """Count a job that has ended, and the times of its result."""
        if job.reason is not None:
            self.cancelled.labels(model, job.reason).inc()
        if job.result is None:
            return
        if job.api != WARM_UP:
            self.images.labels(model).inc(len(job.result.images))
        for stage, seconds in job.result.seconds.items():
            self.stages.labels(model, stage).observe(seconds)
        for seconds in job.result.step_seconds:
            self.steps.labels(model).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
