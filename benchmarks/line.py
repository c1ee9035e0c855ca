"""The line between the harness and a process under measure: one JSON value a line, an order in, an answer out.

An order is `{"verb": ..., "what": {...}}`; an answer is `{"ok": {...}}` or `{"error": "..."}`. Only the standard
library and `core.errors` are imported here: subjects also run where no library of latentc's is installed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, Protocol

from ..core.errors import LatentcError, RuntimeMissing

LONGEST = 400

BOOT = """
import importlib.util, runpy, sys
root, module = sys.argv[1:3]
spec = importlib.util.spec_from_file_location("latentc", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["latentc"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["latentc"])
runpy.run_module("latentc." + module, run_name="__main__")
"""
"""Runs a module of latentc under a Python that latentc isn't installed in."""


def command(python: Path, module: str) -> list[str]:
    """The command line that runs `latentc.<module>` under some Python of 3.11 or later."""
    return [str(python), "-P", "-c", BOOT, str(Path(__file__).parent.parent), module]


@dataclass(frozen=True)
class Brief:
    """What a process is to measure: said with `open`, `build` and `load`."""

    bundle: str
    checkpoint: str
    """Folder in diffusers' layout, behind the bundle; empty where there is none."""
    models: str
    """Folder for what a baseline exports; it lasts, so that the next run finds it."""
    profile: dict[str, Any] | None
    request: Mapping[str, Any]
    """The fields of the `Request` that will be drawn."""
    ceiling: bool
    """Also measure how fast matrices are multiplied, when building."""


@dataclass(frozen=True)
class Wish:
    """What to draw."""

    request: Mapping[str, Any]
    """The fields of a `Request` with its size and seed."""
    latents: str
    """`.npy` of the initial latents that the seed means: [batch, channels, height / 8, width / 8] f32."""
    keep: str | None = None
    """Write the pictures beside this path: PATH-0.png, PATH-1.png ..."""


@dataclass(frozen=True)
class Imported:
    """Its libraries are imported."""

    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Prepared:
    """What is to be loaded is on disk."""

    seconds: float | None = None
    reused: bool = False
    bytes: int | None = None
    parts: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """PSNR in dB and cosine of each part against the reference, where the build compares."""
    step_psnr_db: float | None = None
    reference: str = ""
    ceiling_tflops: dict[str, float] = field(default_factory=dict[str, float])
    """What a matrix product reached, by the part whose precision it was done in."""
    leaves_out: tuple[str, ...] = ()
    """What couldn't be found out, in sentences."""


@dataclass(frozen=True)
class Loaded:
    """It can draw."""

    seconds: float
    engines: dict[str, str]
    """What runs each part, as `openvino 2026.4.1 CPU bf16`."""
    scheduler: str
    """Class name, as diffusers has it."""


@dataclass(frozen=True)
class Timed:
    """The seconds of one draw."""

    text_encoder: float
    denoiser: tuple[float, ...]
    vae_decoder: float
    total: float
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """What the field's measures say of pictures; empty or None where a measure wasn't asked for."""

    clip: tuple[float, ...] = ()
    """Of each picture with its prompt: 0 to 100."""
    lpips: tuple[float, ...] = ()
    """Of each picture and the reference's."""
    fid: float | None = None
    """Of all and all of the reference's."""


@dataclass(frozen=True)
class Checked:
    """Its weights can be loaded."""

    lpips: str
    """Name of LPIPS' network; empty where it wasn't asked for."""


class Measurable(Protocol):
    """What is measured, inside its process. Each method may raise whatever it likes: that is a row with its reason."""

    def open(self, brief: Brief) -> Imported:
        """Import what is needed."""
        ...

    def build(self, brief: Brief) -> Prepared:
        """Make what `load` loads, unless it is there. Asked of a process that is closed after."""
        ...

    def load(self, brief: Brief) -> Loaded:
        """Make ready to draw."""
        ...

    def draw(self, wish: Wish) -> Timed:
        """Draw once."""
        ...


Verbs = Mapping[str, Callable[[dict[str, Any]], Any]]
"""What each order calls; it returns a dataclass, a record, or nothing."""


def serve_subject(subject: Measurable, others: Verbs | None = None, install: str = "") -> None:
    """Answer the harness until it hangs up, to `others` too. `install` says how to get the libraries that it opens."""

    def opened(what: dict[str, Any]) -> Imported:
        try:
            return subject.open(Brief(**what))
        except ImportError as exc:
            raise RuntimeMissing(f"A library isn't here ({exc}). {install}") from exc

    verbs: Verbs = {
        "open": opened,
        "build": lambda what: subject.build(Brief(**what)),
        "load": lambda what: subject.load(Brief(**what)),
        "draw": lambda what: subject.draw(Wish(**what)),
    }
    serve({**verbs, **(others or {})})


def serve(verbs: Verbs) -> None:
    """Read orders from standard input and answer each with what its verb's function returns.

    Standard output is the line's alone: what libraries print there goes to standard error. When the harness hangs up
    or dies the process and what it started end at once, even in the middle of an order.
    """
    orders: Queue[str] = Queue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        _end()

    Thread(target=read, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        while True:
            order = json.loads(orders.get())
            try:
                answer = {"ok": _plain(verbs[order["verb"]](order["what"]))}
            except Exception as exc:
                answer = {"error": reason(exc)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _plain(answer: Any) -> dict[str, Any]:
    if answer is None:
        return {}
    return answer.model_dump() if hasattr(answer, "model_dump") else asdict(answer)


def _end() -> None:
    """End at once, with whatever this process started, where it leads a group of its own."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def reason(exc: BaseException) -> str:
    """An exception in one line: our own in their words, others with their type."""
    words = " ".join(str(exc).split())[:LONGEST]
    return words if isinstance(exc, LatentcError) else f"{type(exc).__name__}: {words}" if words else type(exc).__name__
