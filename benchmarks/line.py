"""The protocol between the harness and a measured process: one JSON value per line, an order in, an answer out.

An order is `{"verb": ..., "what": {...}}`; an answer is `{"ok": {...}}` or `{"error": "..."}`. This module imports only
the standard library and `core.errors`, because subjects also run in environments without latentc's dependencies.
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
"""Program that runs a module of latentc in an environment in which latentc isn't installed."""


def command(python: Path, module: str) -> list[str]:
    """The command line that runs `latentc.<module>` with a Python of 3.11 or later."""
    return [str(python), "-P", "-c", BOOT, str(Path(__file__).parent.parent), module]


@dataclass(frozen=True)
class Brief:
    """What a process measures: sent with `open`, `build` and `load`."""

    bundle: str
    checkpoint: str
    """The diffusers folder that the bundle was exported from; empty for profiles."""
    models: str
    """Folder for the exports of a baseline, which later runs reuse, or for the page of a profile of browsers."""
    profile: dict[str, Any] | None
    request: Mapping[str, Any]
    """The fields of the `Request` to generate."""
    ceiling: bool
    """Whether the build also measures matrix products."""


@dataclass(frozen=True)
class Wish:
    """What to generate."""

    request: Mapping[str, Any]
    """The fields of a `Request`, with size and seed."""
    latents: str
    """`.npy` file of the seed's initial latents: f32 [batch, channels, height / 8, width / 8]; videos have the frames
    after the batch."""
    image_noise: str = ""
    """`.npy` file of the seed's noise for the image of a video: f32 [batch, 3, height, width]."""
    files: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Image files by the name of the pipeline's argument, the image itself as PNG."""
    keep: str | None = None
    """Prefix of image files to write: PATH-0.png, PATH-1.png ..., of videos PATH-0-000.png for the first frame ..."""


@dataclass(frozen=True)
class Imported:
    """Answer to `open`: libraries are imported."""

    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Prepared:
    """Answer to `build`: engines or exports are on disk."""

    seconds: float | None = None
    reused: bool = False
    bytes: int | None = None
    parts: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """PSNR in dB and cosine of each part against the reference, if the build compares them."""
    step_psnr_db: float | None = None
    reference: str = ""
    ceiling_tflops: dict[str, float] = field(default_factory=dict[str, float])
    """Rate of a matrix product in each part's precision, by part."""
    leaves_out: tuple[str, ...] = ()
    """Sentences on figures that are missing."""


@dataclass(frozen=True)
class Loaded:
    """Answer to `load`: ready to generate."""

    seconds: float
    engines: dict[str, str]
    """What runs each part, for example `openvino 2026.4.1 CPU bf16`."""
    scheduler: str
    """Class name in diffusers."""


@dataclass(frozen=True)
class Timed:
    """Answer to `draw`: the seconds of one generation."""

    text_encoder: float | None
    """None for a model that reads no prompt."""
    denoiser: tuple[float, ...]
    vae_decoder: float
    total: float
    image_encoder: float | None = None
    """None for a request without an image."""
    pictures: tuple[str, ...] = ()
    device_seconds: dict[str, Any] | None = None
    """The fields of `records.OnDevice`; None where the device's clock is not read."""
    replays: dict[str, tuple[int, int]] | None = None
    """Calls that replayed a recorded graph, and all calls, by part; None like `device_seconds`."""


@dataclass(frozen=True)
class Scored:
    """Scores of images by published measures; empty or None for measures that weren't requested."""

    clip: tuple[float, ...] = ()
    """CLIP score of each image with its prompt, 0 to 100."""
    lpips: tuple[float, ...] = ()
    """LPIPS of each image and the reference's."""
    fid: float | None = None
    """FID of all images and all of the reference's."""


@dataclass(frozen=True)
class Checked:
    """The weights of all measures could be loaded."""

    lpips: str
    """Name of the LPIPS network; empty if it wasn't requested."""


class Measurable(Protocol):
    """A measured subject inside its process. Whatever a method raises becomes the error of its row."""

    def open(self, brief: Brief) -> Imported:
        """Import the libraries."""
        ...

    def build(self, brief: Brief) -> Prepared:
        """Make what `load` loads, unless it exists. The process is closed afterwards."""
        ...

    def load(self, brief: Brief) -> Loaded:
        """Load the engines."""
        ...

    def draw(self, wish: Wish) -> Timed:
        """Generate once."""
        ...


Verbs = Mapping[str, Callable[[dict[str, Any]], Any]]
"""The function of each verb; it returns a dataclass, a record, or None."""


def serve_subject(subject: Measurable, others: Verbs | None = None, install: str = "") -> None:
    """Serve a subject, and `others`, until the harness disconnects. `install` tells how to install its libraries."""

    def opened(what: dict[str, Any]) -> Imported:
        try:
            return subject.open(Brief(**what))
        except ImportError as exc:
            raise RuntimeMissing(f"A library is missing ({exc}). {install}") from exc

    verbs: Verbs = {
        "open": opened,
        "build": lambda what: subject.build(Brief(**what)),
        "load": lambda what: subject.load(Brief(**what)),
        "draw": lambda what: subject.draw(Wish(**what)),
    }
    serve({**verbs, **(others or {})})


def serve(verbs: Verbs) -> None:
    """Read orders from standard input and answer each with the result of its verb's function.

    Standard output is reserved for answers: what libraries print goes to standard error. When the harness disconnects
    or dies, the process and its children end at once, even in the middle of an order.
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
    """End at once, with all children if this process leads its process group."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def reason(exc: BaseException) -> str:
    """An exception as one line; its type is included unless it is a `LatentcError`."""
    words = " ".join(str(exc).split())[:LONGEST]
    return words if isinstance(exc, LatentcError) else f"{type(exc).__name__}: {words}" if words else type(exc).__name__
