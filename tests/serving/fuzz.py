"""Send malformed requests to every route of a server, and say what it did wrong.

    PYTHONPATH=.venv/links .venv/bin/python -m tests.serving.fuzz BUNDLE --count 10000 --seed 1

starts `latentc serve` on the bundle, for the second half of the requests with everything that an operator may add, and
prints each fault with the number of its request, which `--only` repeats. The routes are those of the application's own
table.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np
import psutil
from fastapi import FastAPI
from fastapi.routing import APIRoute
from PIL import Image

from .malformed import Case, case_of
from .test_prompts import chatting

TOKEN = "secret"
SECONDS = 20.0
"""Within which a server must answer, or close the connection."""
GOOD = {"prompt": "a red cube", "seed": 7, "steps": 2, "size": "64x64"}
DOCUMENTED = {503: ("draining", "busy", "not_ready"), 504: ("deadline",)}
"""Codes of the answers above 499 that docs/serving.md has."""
PRIVATE = re.compile(
    r"Traceback|site-packages|File \\?\"|root:x:0|\.py\b|"
    + "|".join(map(re.escape, (str(Path(__file__).parents[2]), sys.prefix)))
)
"""What no answer may hold."""
SPARE_FILES = 8
"""Open files beyond those at the beginning that are connections about to close."""
GROWTH_BYTES = 24 << 20
"""Growth of memory over the second half of a run that is noise of the allocator."""


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Methods and paths of an application, from its own table."""
    return sorted((method, route.path) for route in flat(app) for method in route.methods - {"HEAD"})


def flat(app: object) -> Iterator[APIRoute]:
    """The routes of an application or a router, with those of the routers in it."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from flat(getattr(route, "original_router", None) or route.app)


@dataclass
class Answered:
    """What came back; `status` is None where the server closed the connection without an answer."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    hung: bool = False


def ask(address: str, case: Case) -> Answered:
    """Send a request over a socket of its own, and read all of the answer."""
    name, port = address.removeprefix("http://").split(":")
    began, found = time.monotonic(), Answered()
    with socket.create_connection((name, int(port)), timeout=SECONDS) as connection:
        if case.leaves:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            connection.sendall(case.raw(f"{name}:{port}"))
            if case.leaves:
                return found
            if case.unfinished:  # nothing more comes; for a whole request, that would be a client that leaves
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connection, method=case.method)
            answer.begin()
            found.status, found.headers = answer.status, {name.lower(): value for name, value in answer.getheaders()}
            found.body = answer.read()
        except TimeoutError:
            found.hung = True
        except (OSError, http.client.HTTPException):  # closed before an answer, or in it
            pass
    found.seconds = time.monotonic() - began
    return found


def faults(case: Case, found: Answered) -> list[str]:
    """What is wrong with an answer, in words."""
    wrong: list[str] = []
    if found.hung:
        return [f"no answer within {SECONDS:g} s"]
    if found.status is None:
        return []
    text = found.body.decode("utf-8", "replace")
    if found.status >= 500 and not any(f'"{code}"' in text for code in DOCUMENTED.get(found.status, ())):
        wrong.append(f"status {found.status}: {text[:300]}")
    if leak := PRIVATE.search(text if "image/" not in found.headers.get("content-type", "") else ""):
        wrong.append(f"the answer holds {leak.group()!r}: {text[max(0, leak.start() - 80) :][:300]}")
    if "x-injected" in found.headers:
        wrong.append("a header was injected")
    if found.status >= 400 and found.headers.get("content-type") == "application/json":
        wrong += error_faults(text)
    if found.status < 400 and "application/json" in found.headers.get("content-type", "") and case.method != "HEAD":
        try:
            json.loads(text, parse_constant=lambda name: wrong.append(f"the JSON holds {name}"))
        except ValueError as exc:
            wrong.append(f"the answer is no JSON ({exc})")
    by_server = found.headers.get("content-type", "").startswith("text/plain") and found.status in (400, 503)
    if not by_server and "x-request-id" not in found.headers:
        wrong.append(f"status {found.status} without an x-request-id")
    return wrong


def error_faults(text: str) -> list[str]:
    """What is wrong with the body of an error."""
    try:
        found = json.loads(text) if text else {"error": "of HEAD"}
    except ValueError:
        return ["the error is no JSON"]
    error = found["error"] if isinstance(found.get("error"), dict) else found
    message = error.get("message") or error.get("detail") or error.get("error")
    if not isinstance(message, str) or not message.strip():
        return [f"the error has no message: {text[:300]}"]
    return [f"the error has {len(message)} characters"] if len(message) > 3000 else []


def picture(client: httpx2.Client) -> bytes:
    """The pixels of a good request."""
    answer = client.post("/v1/images/generations", json=GOOD).raise_for_status()
    return np.asarray(Image.open(BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))).tobytes()


def old_job(client: httpx2.Client) -> str:
    """The id of a job that has ended."""
    fields = {"prompt": "x", "steps": 1, "width": 64, "height": 64}
    job = client.post("/v1/jobs", json=fields).raise_for_status().json()["id"]
    client.get(f"/v1/jobs/{job}/events")  # ends with the job
    return job


@dataclass
class Report:
    """Outcome of a run."""

    faults: list[str] = field(default_factory=list)
    statuses: Counter[int | None] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    held: list[int] = field(default_factory=list)
    """Resident bytes of the server, at intervals."""


def attack(
    address: str,
    routes: Sequence[tuple[str, str]],
    seed: int,
    numbers: Sequence[int],
    pid: int | None = None,
    token: str = "",
) -> Report:
    """Send the requests of these numbers, and check the answers and that the server still draws as before."""
    signed = {"authorization": f"Bearer {token}"} if token else {}
    client = httpx2.Client(base_url=address, headers=signed, timeout=SECONDS)
    found, before, job = Report(), picture(client), old_job(client)
    files = psutil.Process(pid).num_fds() if pid is not None else 0
    for place, number in enumerate(numbers):
        case = case_of(seed, number, routes)
        named = re.sub(r"(\{|%7B)an(%20| )old(%20| )job(\}|%7D)", job, case.path)
        headers = (*(f"{name}: {value}" for name, value in signed.items()), *case.headers)
        case = replace(case, path=named, headers=headers)
        answered = ask(address, case)
        found.statuses[answered.status] += 1
        found.kinds[case.kind] += 1
        found.slowest = max(found.slowest, answered.seconds)
        found.faults += [
            f"{number} ({case.kind}) {case.method} {case.path[:80]}: {one}" for one in faults(case, answered)
        ]
        if pid is not None and place % max(1, len(numbers) // 20) == 0:
            found.held.append(psutil.Process(pid).memory_info().rss)
    if picture(client) != before:
        found.faults.append("a good request is drawn otherwise than before")
    if (ready := client.get("/readyz")).status_code != 200:
        found.faults.append(f"/readyz answers {ready.status_code}")
    until = time.monotonic() + SECONDS
    while (left := _left(client)) and time.monotonic() < until:
        time.sleep(0.05)
    found.faults += [f"left over: {left}"] if left else []
    client.close()
    if pid is not None and (more := psutil.Process(pid).num_fds() - files) > SPARE_FILES:
        found.faults.append(f"{more} more files are open than before")
    return found


def growth(held: Sequence[int]) -> int:
    """Bytes of growth over the second half, without its largest step: a runtime's for the first large picture."""
    half = held[len(held) // 2 :]
    steps = sorted(later - earlier for earlier, later in pairwise(half))
    return sum(steps[:-1])


def _left(client: httpx2.Client) -> list[str]:
    """Gauges of the queue that aren't zero."""
    lines = client.get("/metrics").text.splitlines()
    return [line for line in lines if re.match(r"latentc_(queue_depth|running)\{.*\} (?!0\.0)", line)]


@contextmanager
def additions() -> Iterator[tuple[str, ...]]:
    """Options of a server with everything that an operator may add."""
    with TemporaryDirectory() as folder, chatting() as chat:
        tokens = Path(folder) / "tokens"
        tokens.write_text(TOKEN)
        paths = ("--state", f"{folder}/state", "--token-file", str(tokens), "--prompt-model", chat.url)
        yield (*paths, "--credits", "1000000", "--image-cost", "1", "--model-control")


@contextmanager
def started(bundle: Path, profile: str, log: Path, more: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server of its own process, which writes into a log."""
    options = ("--quiet", "--port", "0", "--steps", "3", "--megapixels", "0.02", "--count", "2", "--timeout", "15")
    line = [sys.executable, "-m", "latentc", "serve", str(bundle), "-p", profile, *options, *more]
    with (
        log.open("a") as complaints,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=complaints, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rpartition(" ")[2].strip(), process
        finally:
            process.terminate()


def main() -> int:
    """Run, print what was found, and return the exit code."""
    from latentc.pipelines.pipeline import Pipeline
    from latentc.serving.app import create_app
    from latentc.serving.service import serve

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--profile", default="cpu-onnxruntime")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"), help="file for the server's log")
    parser.add_argument("--only", type=int, help="number of the only request to send")
    given = parser.parse_args()
    with Pipeline.open(given.bundle, given.profile) as pipeline:
        routes = routes_of(create_app(serve({"tiny": pipeline})))
    numbers = range(given.count) if given.only is None else [given.only]
    if given.only is not None:
        sys.stdout.write(f"{case_of(given.seed, given.only, routes)!r}\n")
    wrong = 0
    for added in (False, True):
        part = [number for number in numbers if (number >= given.count // 2) == added]
        if not part:
            continue
        given.log.write_text("")
        began = time.monotonic()
        with (
            additions() if added else nullcontext(()) as more,
            started(given.bundle, given.profile, given.log, more) as (address, process),
        ):
            found = attack(address, routes, given.seed, part, process.pid, TOKEN if added else "")
        if count := given.log.read_text().count("Traceback"):
            found.faults.append(f"the log has {count} tracebacks")
        if (grown := growth(found.held)) > GROWTH_BYTES:
            found.faults.append(f"memory grew by {grown / 1e6:.0f} MB in the second half")
        sys.stdout.write(
            f"{len(part)} requests to {len(routes)} routes{' with additions' * added} in "
            f"{time.monotonic() - began:.0f} s, the slowest took {found.slowest:.2f} s\n"
            f"statuses {dict(sorted(found.statuses.items(), key=str))}\nkinds {dict(found.kinds)}\n"
            f"resident MB {[round(one / 1e6) for one in found.held]}\n{len(found.faults)} faults\n"
        )
        sys.stdout.write("".join(f"{one}\n" for one in found.faults[:200]))
        wrong += len(found.faults)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
