"""onnxruntime-web in Chromium: what a page of `latentc package --for web` computes with, called part by part.

An artifact is the graph and its files of weights, as lowered: onnxruntime-web optimizes graphs when it opens them. With
free sizes that is the bundle's own graph, which such a page has too. All engines of a process with the same device and
number of threads share one browser.
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

from ..core.engine import Engine
from ..core.errors import CompileError, RuntimeMissing
from ..core.graph import inspect_graph
from ..core.limits import threads
from ..core.progress import Progress, quiet
from ..core.record import suggest
from ..core.tensors import Array
from .base import COUNTS, Facts, Job, Runtime, Target
from .border import ENOUGH, border, rebuild
from .chromium import FLAGS, VARIABLES, Browser, version, why_no_program
from .host import HostEngine
from .web_library import BACKENDS, FOLDER, NAME, VERSION, installed, library_files, why_not_installed

GRAPH = "model.onnx"
THREADS = "threads"
DEVICES: Mapping[str, str] = {"CPU": "wasm", "WebGPU": "webgpu"}
"""Devices, and the names of their backends in the library."""
SOFTWARE = "--use-webgpu-adapter=swiftshader"
"""The flag of Chromium that chooses its GPU in software."""


class ONNXRuntimeWeb(Runtime):
    """The adapter to onnxruntime-web."""

    facts = Facts(
        title=NAME,
        devices=tuple(DEVICES),
        variables=VARIABLES,
        options={THREADS: COUNTS},
        at_load=frozenset({THREADS}),
        threads=THREADS,
        page=True,
    )

    def kinds(self, device: str) -> tuple[str, ...]:
        """The device, and its backend in the library."""
        return device, DEVICES[device]

    def missing(self, device: str) -> str | None:
        """Report a missing browser or library, and for WebGPU a browser that offers no GPU."""
        if device not in DEVICES:
            return f"{NAME} has no device {device!r}. {suggest(device, list(DEVICES))}"
        if reason := why_no_program() or why_not_installed():
            return reason
        if device == "CPU":
            return None
        try:
            adapter, software = _adapter()
        except RuntimeMissing as exc:
            return str(exc)
        if not adapter:
            return f"{version()} offers no GPU for WebGPU here. Open chrome://gpu in it, which says why."
        if software and SOFTWARE not in os.environ.get(FLAGS, ""):
            return (
                f"{version()} offers no GPU for WebGPU here but {adapter}, which computes on the CPU. For a trial of "
                f'that, set {FLAGS}="{SOFTWARE} --enable-unsafe-swiftshader".'
            )
        return None

    def versions(self) -> dict[str, str]:
        """The version of the library, whose files are compared with their digests."""
        return {NAME: VERSION}

    def drivers(self, device: str) -> dict[str, str]:
        """The browser, which compiles the library's WebAssembly, and the GPU that it offers."""
        return {"browser": version()} | ({} if device == "CPU" else {"adapter": _adapter()[0]})

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Copy the graph and the files of its weights. Whether the library computes it, the proof tells."""
        on_progress(f"{job.part}: copy", None)
        with border(CompileError, f"The graph of {job.part} cannot be copied", f"Check that {out} has space left."):
            shutil.copyfile(job.graph, out / GRAPH)
            for name in sorted({one.location for one in inspect_graph(job.graph).external}):
                own = job.graph.with_name(name)
                shutil.copyfile(own if own.is_file() else job.weights / name, out / name)

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Open a session in the browser, which reads the files now."""
        if reason := self.missing(target.place):
            raise RuntimeMissing(reason)
        count = target.options.get(THREADS, threads())
        tab = _tab(target.device, None if count is None else int(count))
        with border(CompileError, f"{NAME} cannot load {artifact}", rebuild(artifact)):
            name = tab.open(artifact, sorted(files.keys() - {GRAPH}))
        wanted = [tensor.name for tensor in target.outputs]

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del sizes
            with border(CompileError, f"{NAME} failed while computing", ENOUGH):
                return tab.run(name, feeds, wanted)

        return HostEngine(target, call, lambda: tab.release(name))


class _Tab:
    """The browser that the engines of a device and number of threads share; closed with the last of them."""

    def __init__(self, device: str, count: int | None) -> None:
        self._device, self._count = device, count
        self._lock = RLock()
        self._browser: Browser | None = None
        self._folders: dict[str, Path] = {}
        self._opened = 0
        self._library: dict[str, bytes] = {}

    def open(self, artifact: Path, external: list[str]) -> str:
        """Open a session; returns its name."""
        with self._lock:
            self._opened += 1
            name = f"engine-{self._opened}"
            self._folders[name] = artifact
            try:
                self._started().ask("open", {"name": name, "graph": GRAPH, "external": external})
            except BaseException:
                self.release(name)
                raise
            return name

    def run(self, name: str, feeds: Mapping[str, Array], outputs: list[str]) -> dict[str, Array]:
        """Call a session."""
        with self._lock:
            return self._started().ask("run", {"name": name, "outputs": outputs}, feeds)[1]

    def release(self, name: str) -> None:
        """Close a session, and the browser with the last one. Does nothing for one that is closed."""
        with self._lock:
            if self._folders.pop(name, None) is None or self._browser is None:
                return
            if self._folders:
                self._browser.ask("close", {"name": name})
            else:
                self.close()

    def close(self) -> None:
        """Close the browser."""
        with self._lock:
            if self._browser is not None:
                self._browser.close()
                self._browser = None

    def _started(self) -> Browser:
        """The browser, with the library loaded."""
        if self._browser is None:
            backend = DEVICES[self._device]
            module, glue, wasm = (f"{FOLDER}/{name}" for name in BACKENDS[backend])
            self._library = {f"{FOLDER}/{name}": content for name, content in library_files(installed(), quiet).items()}
            self._browser = Browser("engines.html", self._find)
            given: dict[str, Any] = {"module": module, "glue": glue, "wasm": wasm, "threads": self._count}
            self._browser.ask("library", {**given, "on": backend})
            self._library = {name: self._library[name] for name in (module, glue)}  # threads fetch these again
        return self._browser

    def _find(self, path: str) -> bytes | Path | None:
        if path in self._library:
            return self._library[path]
        name, _, file = path.partition("/")
        folder = self._folders.get(name)
        return folder / file if folder is not None and "/" not in file and (folder / file).is_file() else None


_TABS: dict[tuple[str, int | None], _Tab] = {}
_MAKING = RLock()


def _tab(device: str, count: int | None) -> _Tab:
    with _MAKING:
        if (device, count) not in _TABS:
            _TABS[device, count] = tab = _Tab(device, count)
            atexit.register(tab.close)
        return _TABS[device, count]


@cache
def _adapter() -> tuple[str, bool]:
    """The GPU that the browser offers for WebGPU, in its own words, and whether it is in software; empty for none."""
    with border(RuntimeMissing, "Chromium cannot be asked for its GPU", "Check that it runs: chromium --headless"):
        browser = Browser("engines.html")
        try:
            found = browser.ask("adapter")[0]
            return str(found["adapter"]), bool(found["software"])
        finally:
            browser.close()
