"""Compare `latentc serve` with what a user would run instead on a CPU, with the same checkpoint of `scenes`.

    python -m latentc.benchmarks.servers scenes.bundle servers.jsonl --genai PYTHON

serves the checkpoint by latentc, by diffusers, and by OpenVINO GenAI (if `--genai` names a Python that has
openvino-genai, openvino-tokenizers, transformers, fastapi, uvicorn and pillow), the latter two behind the minimal
application of `subjects/plain_app.py`. All are open at once, and are driven in turn by 1, 4 and 16 clients with DDIM at
the same steps. Each file gets a line for each server.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints import SHIPPED
from ..core.bundle import open_bundle
from ..core.errors import LatentcError
from ..core.units import counted
from .load import closed_loops, rate_of
from .meaning import captions, meaning_of, open_judge, read, require_scenes
from .memory import cpu_seconds, pss_bytes, tree
from .records import ResultRecord, Seconds
from .row import run_facts
from .summary import summarize

CLIENTS = (1, 4, 16)
SCHEDULER, GUIDANCE = "ddim", 4.0
CAPTIONS = 32
"""Images whose content is scored."""
START_SECONDS, ANSWER_SECONDS = 300.0, 900.0
SUBJECTS = Path(__file__).parent / "subjects"


class ClientLoad(ResultRecord):
    """So many clients, each of which sends a request once the one before is answered."""

    clients: int
    rates: tuple[float, ...]
    """Images per second, by round."""
    seconds: tuple[Seconds, ...]
    """Latency of each request of all rounds."""
    cpu: tuple[float, ...] = ()
    """CPU seconds of the server's processes for each image, by round: the same on a machine that others load."""


class ServerRow(ResultRecord):
    """One server of a comparison."""

    run: str
    time: str
    latentc: str
    commit: str | None
    machine: dict[str, Any]
    load_average: float | None
    server: str
    steps: int
    scheduler: str = SCHEDULER
    guidance: float = GUIDANCE
    loads: tuple[ClientLoad, ...]
    pss_bytes: int | None = None
    """Of its processes, after all rounds."""
    captions: int = CAPTIONS
    scene_score: float | None = None
    """Share of the captions' attributes that its images show, by the judge of `scenes`."""


@dataclass
class Rival:
    """A server that is compared."""

    name: str
    port: int
    path: str
    fields: Mapping[str, Any]
    read: Callable[[bytes], bytes]
    """The image file in an answer."""
    pid: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    rates: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    cpu: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    def draw(self, prompt: str, seed: int) -> bytes:
        """The file of an image; raises `LatentcError` for another answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            body = json.dumps({**self.fields, "prompt": prompt, "seed": seed})
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise LatentcError(f"{self.name} answered {answer.status}: {content[:200]!r}")
        return self.read(content)

    def measure(self, clients: int, pictures: int) -> None:
        """Add the rate and the latencies of a round."""
        seconds = self.seconds.setdefault(clients, [])

        def send(number: int) -> int:
            began = time.monotonic()
            try:
                self.draw("a red cube on a table", number)
            except (LatentcError, OSError, http.client.HTTPException):
                return 0
            seconds.append(time.monotonic() - began)
            return 200

        number, processes = clients + pictures, tree(self.pid) if self.pid else []
        spent = cpu_seconds(processes)
        ended = closed_loops(send, clients, number)
        if len(ended) < number:
            raise LatentcError(f"{self.name} did not answer {clients} clients. See its output.")
        self.rates.setdefault(clients, []).append(rate_of(ended, clients, number))
        if spent is not None and (now := cpu_seconds(processes)) is not None:
            self.cpu.setdefault(clients, []).append((now - spent) / len(ended))


def _artifact(content: bytes) -> bytes:
    return base64.b64decode(json.loads(content)["data"][0]["b64_json"])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def _running(rival: Rival, line: Sequence[str]) -> Generator[Rival]:
    """The server of a command line, once it listens; it ends with the block."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        try:
            rival.pid, until = process.pid, time.monotonic() + START_SECONDS
            while True:
                try:
                    rival.draw("", 0)
                    break
                except OSError as exc:
                    if process.poll() is not None or time.monotonic() > until:
                        raise LatentcError(f"{rival.name} did not start. Its output is above.") from exc
                    time.sleep(0.2)
            yield rival
        finally:
            process.terminate()


def rivals(given: argparse.Namespace, folder: Path, stack: ExitStack) -> list[Rival]:
    """All servers, running; each is asked for an image before the next one starts."""
    asked = {"steps": given.steps, "guidance": GUIDANCE}
    checkpoint, package = str(SHIPPED["scenes"]), str(__package__).partition(".")[0]
    own = {**asked, "scheduler": SCHEDULER}
    first = Rival(f"latentc serve, {given.profile}", _free_port(), "/v1/images/generations", own, _artifact)
    serve = ("serve", str(given.bundle), "-p", given.profile, "--port", str(first.port), "--quiet")
    second = Rival("FastAPI and diffusers", _free_port(), "/generate", asked, bytes)
    app = str(SUBJECTS / "plain_app.py")
    lines = [(first, [sys.executable, "-m", package, *serve])]
    lines.append((second, [sys.executable, "-P", app, "diffusers", checkpoint, str(second.port)]))
    if given.genai is not None:
        third, made = (
            Rival("FastAPI and OpenVINO GenAI", _free_port(), "/generate", asked, bytes),
            str(folder / "genai"),
        )
        convert = [given.genai, "-P", str(SUBJECTS / "genai_folder.py"), str(given.bundle), checkpoint, made]
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
        lines.append((third, [given.genai, "-P", app, "openvino-genai", made, str(third.port)]))
    return [stack.enter_context(_running(rival, line)) for rival, line in lines]


def compared(given: argparse.Namespace) -> list[ServerRow]:
    """Measure all servers in turn."""
    require_scenes([open_bundle(given.bundle)])
    facts, asked = run_facts(), captions(CAPTIONS)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        found = rivals(given, Path(scratch), stack)
        for _ in range(given.rounds):
            for clients in CLIENTS:
                for rival in found:
                    rival.measure(clients, max(given.pictures, clients))
        held = [pss_bytes(tree(rival.pid)) for rival in found]
        drawn = [
            np.stack(
                [np.asarray(Image.open(io.BytesIO(rival.draw(one.text, one.number))).convert("RGB")) for one in asked]
            )
            for rival in found
        ]
    with open_judge() as judge:
        scores = [meaning_of(read(judge, pictures), asked, None).scene_score for pictures in drawn]
    shared = {name: facts[name] for name in ("run", "time", "latentc", "commit", "load_average")}
    return [
        ServerRow(
            **shared,
            machine=facts["machine"].model_dump(mode="json"),
            server=rival.name,
            steps=given.steps,
            loads=tuple(
                ClientLoad(
                    clients=one,
                    rates=tuple(rival.rates[one]),
                    seconds=tuple(rival.seconds[one]),
                    cpu=tuple(rival.cpu.get(one, ())),
                )
                for one in CLIENTS
            ),
            pss_bytes=pss,
            scene_score=score,
        )
        for rival, pss, score in zip(found, held, scores, strict=True)
    ]


def markdown(rows: Sequence[ServerRow]) -> str:
    """A table of rows."""
    head = (
        "| server | "
        + " | ".join(f"{counted(one, 'client')}: images/s, p50, p95, CPU" for one in CLIENTS)
        + " | PSS | scene score |"
    )
    lines = [head, "|---" * (len(CLIENTS) + 3) + "|"]
    for row in rows:
        cells: list[str] = []
        for load in row.loads:
            found = summarize(load.seconds)
            cpu = f", {median(load.cpu):.2f} s" if load.cpu else ""
            cells.append(f"{median(load.rates):.2f}, {found.median:.2f} s, {found.p95:.2f} s{cpu}")
        pss = "-" if row.pss_bytes is None else f"{row.pss_bytes / 1e6:.0f} MB"
        score = "-" if row.scene_score is None else f"{row.scene_score:.3f}"
        lines.append(f"| {row.server} | {' | '.join(cells)} | {pss} | {score} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, and write the lines and the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--profile", default="cpu-openvino-f32")
    parser.add_argument("--genai", help="Python with OpenVINO GenAI")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8, help="images of a round, at least as many as clients")
    given = parser.parse_args()
    try:
        rows = compared(given)
    except LatentcError as exc:
        sys.exit(str(exc))
    with given.output.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(row.model_dump_json(exclude_none=True) + "\n" for row in rows)
    sys.stdout.write(markdown(rows))


if __name__ == "__main__":
    main()
