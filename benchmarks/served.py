"""Measure `latentc serve`: its rate beside that of a bare loop, latency under load, memory, and clients that leave."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import IO, Any, cast
from urllib.parse import urlsplit

from ..core.bundle import Bundle
from ..core.errors import LatentcError, RequestError
from ..core.progress import Progress, quiet
from ..core.request import Request
from ..pipelines.pipeline import Pipeline
from ..profiles import Profile
from .load import arrivals, closed_loops, open_loop, rate_of
from .memory import cpu_seconds, pss_bytes, tree
from .plan import PROMPT, SEED
from .records import STAGES, StageName, model_of
from .row import run_facts
from .served_records import Disconnected, HeldMemory, LoadLevel, ServedMeasurement, ServedRound, append_served

SHARES = (0.5, 0.8, 1.0)
"""Of the rate at saturation, at which latency is measured."""
EARLY = 100
"""Requests after which memory is measured for the first time: by then, libraries have what they keep."""
LEAVING_STEPS, LEAVING_TRIES = 100, 100
"""Steps of the request whose client leaves, and how often it is sent: a fast engine may be done before it is seen."""
ANSWER_SECONDS, POLL_SECONDS = 900.0, 0.005
GENERATIONS, ROOM = "/v1/images/generations", 256
"""`ROOM` is `latentc serve --queue`: an overloaded server is to queue, so that latency shows it."""

_SAMPLE = re.compile(r"(\w+)(?:\{([^}]*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class ServePlan:
    """What to measure."""

    steps: int = 20
    batch: int = 8
    """Images of one batch, of the server and of the bare loop."""
    rounds: int = 6
    """Alternations of the bare loop and the server."""
    pictures: int = 48
    """Images of a round, for each of the two."""
    requests: int = 100
    """Requests at each level of load."""
    seed: int = SEED
    url: str | None = None
    """Of a server that runs; None starts one."""
    options: tuple[str, ...] = ()
    """Of the `latentc serve` that is started, which name the profile."""

    def check(self) -> None:
        """Raise `RequestError` for numbers that can't be measured."""
        for name in ("steps", "batch", "rounds", "pictures", "requests"):
            if getattr(self, name) < 1:
                raise RequestError(f"--{name} is {getattr(self, name)}; it must be 1 or more.")


@dataclass
class ServedAddress:
    """A server that is measured, and what was sent to it."""

    host: str
    port: int
    fields: Mapping[str, Any]
    """Of each request, but its seed."""
    pid: int | None = None
    answered: int = 0
    """Requests with an image that were answered."""
    memory: list[HeldMemory] = field(default_factory=list[HeldMemory])
    _seeds: count[int] = field(default_factory=count)

    def draw(self, _number: int = 0, **more: Any) -> int:
        """Ask for an image; returns the HTTP status, 0 without an answer."""
        body = json.dumps({**self.fields, "seed": next(self._seeds), **more})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("POST", GENERATIONS, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        self.answered += answer.status == 200
        return answer.status

    def metrics(self) -> dict[tuple[str, str], float]:
        """The server's metrics by name and by the label that tells samples of a name apart: `le`, `stage` or none."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as exc:
            raise LatentcError(f"http://{self.host}:{self.port}/metrics can't be read ({exc}).") from exc
        finally:
            connection.close()
        return parse_metrics(text)

    def weigh(self) -> None:
        """Remember how much memory the server's processes hold."""
        held = None if self.pid is None else pss_bytes(tree(self.pid))
        if held is not None:
            self.memory.append(HeldMemory(requests=self.answered, pss_bytes=held))


def parse_metrics(text: str) -> dict[tuple[str, str], float]:
    """Prometheus' text as values by name and `le` or `stage`; samples that differ by other labels are added up."""
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if sample := _SAMPLE.fullmatch(line):
            labels = dict(_LABEL.findall(sample[2] or ""))
            key = (sample[1], labels.get("le") or labels.get("stage", ""))
            found[key] = found.get(key, 0.0) + float(sample[3])
    return found


def batches_between(before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]) -> dict[str, int]:
    """Batches by the upper bound of their size, from the cumulative buckets of two readings of the metrics."""
    name = "latentc_batch_size_bucket"
    bounds = sorted((one for key, one in after if key == name), key=float)
    below = [round(after[name, one] - before.get((name, one), 0.0)) for one in bounds]
    each = [here - under for here, under in zip(below, [0, *below], strict=False)]
    return {one.removesuffix(".0"): number for one, number in zip(bounds, each, strict=True) if number}


def stages_between(
    before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]
) -> dict[StageName, float]:
    """Mean seconds of each stage, from two readings of the metrics."""
    found: dict[StageName, float] = {}
    for stage in STAGES:
        seconds, number = (
            after.get((f"latentc_stage_seconds_{kind}", stage), 0.0)
            - before.get((f"latentc_stage_seconds_{kind}", stage), 0.0)
            for kind in ("sum", "count")
        )
        if number > 0:
            found[stage] = seconds / number
    return found


def bench_serve(
    bundle: Bundle, profile: Profile, plan: ServePlan, output: Path, on_progress: Progress = quiet
) -> ServedMeasurement:
    """Measure a server of a bundle, and add a line to `output`.

    Raises `RequestError` for an invalid plan, what `Pipeline.open` raises for a profile that isn't built, and
    `LatentcError` if the server doesn't start or `output` can't be written.
    """
    plan.check()
    append_served(output)
    facts, options = run_facts(), (*plan.options, "--queue", str(ROOM), "--batch", str(plan.batch))
    with Pipeline.open(bundle, profile) as pipeline:
        width, height = bundle.manifest.model.own_size
        request = Request(prompt=PROMPT, steps=plan.steps, width=width, height=height, seed=plan.seed)
        fields = {"prompt": PROMPT, "steps": plan.steps, "size": f"{width}x{height}"}
        with _server(bundle, options, plan.url, fields) as server:
            server.weigh()
            row = ServedMeasurement(
                **{name: facts[name] for name in ServedMeasurement.model_fields if name in facts},
                model=model_of(bundle),
                profile=profile.name,
                options=options if plan.url is None else (),
                request=request,
                batch=plan.batch,
                **_measured(pipeline, server, request, plan, on_progress),
            )
    append_served(output, row)
    return row


def _measured(
    pipeline: Pipeline, server: ServedAddress, request: Request, plan: ServePlan, on_progress: Progress
) -> dict[str, Any]:
    """The figures of a row."""
    on_progress("warm-up", None)
    _bare(pipeline, request, plan.batch, plan.batch)
    closed_loops(server.draw, 2 * plan.batch, 2 * plan.batch)
    while len(server.memory) == 1 and server.answered < EARLY:
        closed_loops(server.draw, 2 * plan.batch, min(plan.pictures, EARLY - server.answered))
    server.weigh()
    rounds: list[ServedRound] = []
    before = server.metrics()
    for index in range(plan.rounds):
        on_progress(f"round {index + 1} of {plan.rounds}", (index + 1) / plan.rounds)
        bare, bare_cpu = _bare(pipeline, request, plan.batch, plan.pictures)
        served, served_cpu = _saturated(server, plan)
        rounds.append(ServedRound(bare=bare, served=served, bare_cpu=bare_cpu, served_cpu=served_cpu))
    after = server.metrics()
    rate = median(one.served for one in rounds)
    levels = [_level(server, share, share * rate, plan, on_progress) for share in SHARES]
    server.weigh()
    on_progress("a client that leaves", None)
    return {
        "rounds": tuple(rounds),
        "stages": stages_between(before, after),
        "batches": batches_between(before, after),
        "levels": tuple(levels),
        "disconnected": _leave(server, plan.steps),
        "memory": tuple(server.memory),
    }


def _bare(pipeline: Pipeline, request: Request, batch: int, pictures: int) -> tuple[float, float | None]:
    """Images per second of a loop over `draw_many`, and CPU seconds of each image."""
    began, spent, drawn = time.monotonic(), cpu_seconds(tree(os.getpid())[:1]), 0
    while drawn < pictures:
        pipeline.draw_many([request.model_copy(update={"seed": drawn + index}) for index in range(batch)])
        drawn += batch
    seconds, cpu = time.monotonic() - began, cpu_seconds(tree(os.getpid())[:1])
    return drawn / seconds, None if spent is None or cpu is None else (cpu - spent) / drawn


def _saturated(server: ServedAddress, plan: ServePlan) -> tuple[float, float | None]:
    """Images per second, and CPU seconds of each, with twice as many clients as a batch has images: the next batch
    waits while one is drawn.
    """
    clients, processes = 2 * plan.batch, [] if server.pid is None else tree(server.pid)
    number, spent = clients + plan.pictures, cpu_seconds(processes)
    ended = closed_loops(server.draw, clients, number)
    if len(ended) < number:
        raise LatentcError("The server refused most requests at saturation. See its log; --url needs a --queue of 64.")
    cpu = cpu_seconds(processes)
    return rate_of(ended, clients, number), None if spent is None or cpu is None else (cpu - spent) / len(ended)


def _level(server: ServedAddress, share: float, rate: float, plan: ServePlan, on_progress: Progress) -> LoadLevel:
    on_progress(f"{share:.0%} of saturation: {rate:.2f} requests per second", None)
    before = server.metrics()
    sent = open_loop(server.draw, arrivals(rate, plan.requests, plan.seed))
    refused: dict[str, int] = {}
    for one in sent:
        if one.status != 200:
            refused[str(one.status)] = refused.get(str(one.status), 0) + 1
    return LoadLevel(
        share=share,
        rate=rate,
        seconds=tuple(one.seconds for one in sent if one.status == 200),
        refused=refused,
        batches=batches_between(before, server.metrics()),
    )


def _leave(server: ServedAddress, steps: int) -> Disconnected:
    """Ask for an image of many steps, close the connection while it is drawn, and wait until nothing runs."""
    before = server.metrics()
    server.draw()
    after = server.metrics()
    spent, calls = (
        after["latentc_step_seconds_" + kind, ""] - before.get(("latentc_step_seconds_" + kind, ""), 0.0)
        for kind in ("sum", "count")
    )
    step = spent / max(calls, 1.0)
    body = json.dumps({**server.fields, "steps": max(LEAVING_STEPS, steps)}).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
    for _ in range(LEAVING_TRIES):
        with socket.create_connection((server.host, server.port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if _wait(server, running=True, unless=connection):
                time.sleep(3 * step)
                break
    else:
        raise LatentcError("Each image was finished before its client could leave. Pass more --steps.")
    began = time.monotonic()
    _wait(server, running=False)
    seconds = time.monotonic() - began
    return Disconnected(seconds=seconds, steps=seconds / step if step > 0 else 0.0)


def _wait(server: ServedAddress, *, running: bool, unless: socket.socket | None = None) -> bool:
    """Wait until something runs, or nothing; False where a connection has its answer before."""
    until = time.monotonic() + ANSWER_SECONDS
    while bool(server.metrics().get(("latentc_running", ""))) is not running:
        if unless is not None and select.select([unless], [], [], 0)[0]:
            return False
        if time.monotonic() > until:
            raise LatentcError("The server did not begin or end a request in time. See its log.")
        time.sleep(POLL_SECONDS)
    return True


@contextmanager
def _server(
    bundle: Bundle, options: Sequence[str], url: str | None, fields: Mapping[str, Any]
) -> Generator[ServedAddress]:
    """The server of a URL, or a new one that ends with the block."""
    if url is not None:
        yield _address(url, fields)
        return
    line = [sys.executable, "-m", str(__package__).partition(".")[0], "serve", str(bundle.folder), *options]
    with (
        tempfile.TemporaryFile(mode="w+", errors="replace") as log,
        subprocess.Popen(
            [*line, "--port", "0", "--quiet"], stdout=subprocess.PIPE, stderr=log, text=True, errors="replace"
        ) as process,
    ):
        try:
            said = cast("IO[str]", process.stdout).readline()
            if not said:
                log.seek(0)
                words = " ".join(log.read().split())[-400:]
                raise LatentcError(f"The server did not start. Its last output: {words or 'none'}")
            server = _address(said.rpartition(" ")[2].strip(), fields)
            server.pid = process.pid
            yield server
        finally:
            process.terminate()


def _address(url: str, fields: Mapping[str, Any]) -> ServedAddress:
    found = urlsplit(url)
    if found.scheme != "http" or not found.hostname:
        raise RequestError(f"{url[:80]!r} is not the address of a server. Pass one such as http://127.0.0.1:8000.")
    return ServedAddress(found.hostname, found.port or 80, fields)
