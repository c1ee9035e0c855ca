"""Chromium without a window, which opens a page of ours and answers orders.

A server of this process serves the page's files. The page fetches orders from it and posts answers (`web/orders.js`):
no driver is needed, and arrays are sent as they are. Chromium can reach no other address. It ends with this process.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from secrets import token_urlsafe
from time import monotonic
from typing import Any

import numpy as np

from ..core.errors import RuntimeMissing
from ..core.tensors import Array

PROGRAM = "LATENTC_CHROMIUM"
"""Environment variable with the program's path, for one that has another name or is not on PATH."""
FLAGS = "LATENTC_CHROMIUM_FLAGS"
"""Environment variable with more flags for it, as a shell splits them."""
VARIABLES = (PROGRAM, FLAGS)
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "microsoft-edge-stable")

ALWAYS = (
    *("--headless", "--mute-audio", "--hide-scrollbars", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-default-apps", "--disable-breakpad", "--disable-domain-reliability", "--no-pings"),
    *("--disable-background-timer-throttling", "--disable-renderer-backgrounding"),
    *("--disable-dev-shm-usage", "--enable-unsafe-webgpu", "--no-proxy-server"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""Flags: no requests of its own, and no work that is put off because nobody looks."""

PAGES = Path(__file__).parent / "web"
TYPES: Mapping[str, str] = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

START_SECONDS = 120.0
"""How long it may take until the page answers for the first time."""
SILENT_SECONDS = 60.0
"""After this time without a sign of life from the page, which comes each second, it counts as ended."""
POLL_SECONDS = 10.0
"""How long a request for an order is held open."""

Find = Callable[[str], "bytes | Path | None"]
"""The content of a path of the server, without a leading slash; None where there is nothing."""


class BrowserFailed(RuntimeError):
    """What a page said that went wrong, or that it ended."""


def program() -> str | None:
    """The path of Chromium, or of a browser that is built from it; None where none is installed."""
    named = os.environ.get(PROGRAM)
    return next(filter(None, map(shutil.which, (named,) if named else NAMES)), None)


def why_no_program() -> str | None:
    """What to install where there is no Chromium; None where there is one."""
    if program() is not None:
        return None
    if named := os.environ.get(PROGRAM):
        return f"{PROGRAM} names {named}, which is not a program. Set it to the path of Chromium, Chrome or Edge."
    return (
        "Chromium is not installed. Install it (Debian and Ubuntu: apt-get install chromium), or set "
        f"{PROGRAM} to the path of Chrome or Edge."
    )


@cache
def version() -> str:
    """The browser's name and version, such as `Chromium 156.0.8078.108`."""
    path = program()
    if path is None:
        raise RuntimeMissing(str(why_no_program()))
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=START_SECONDS)
    line = done.stdout.strip().splitlines()[-1:] or [path]
    return line[0].partition(" built on ")[0].strip()


def packed(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A message: the length of its head, the head in JSON, and the bytes of the arrays."""
    listed = [{"name": name, "dtype": one.dtype.name, "shape": one.shape} for name, one in arrays.items()]
    text = json.dumps({**head, "arrays": listed}).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, *(one.tobytes() for one in arrays.values())))


def unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Head and arrays of a message."""
    at = 4 + int.from_bytes(message[:4], "little")
    head: dict[str, Any] = json.loads(message[4:at])
    arrays: dict[str, Array] = {}
    for one in head.pop("arrays"):
        dtype, count = np.dtype(one["dtype"]), int(np.prod(one["shape"], dtype=np.int64))
        arrays[one["name"]] = np.frombuffer(message, dtype, count, at).reshape(one["shape"]).copy()
        at += count * dtype.itemsize
    return head, arrays


class Browser:
    """A browser with one page open: `start`, a path of what `find` serves beside the files of `PAGES`.

    Orders are answered one after another; callers take turns. Raises `RuntimeMissing` where it doesn't start.
    """

    def __init__(self, start: str, find: Find = lambda _path: None) -> None:
        path = program()
        if path is None:
            raise RuntimeMissing(str(why_no_program()))
        self._find = find
        self._orders: Queue[bytes] = Queue()
        self._answers: Queue[bytes] = Queue()
        self._seen: float | None = None
        self._base = f"/{token_urlsafe(16)}/"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._profile = Path(tempfile.mkdtemp(prefix="latentc-chromium-"))
        self._complaints = self._profile / "stderr"
        self._process: subprocess.Popen[bytes] | None = None
        sandbox = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # it refuses root otherwise
        own = shlex.split(os.environ.get(FLAGS, ""))
        address = f"http://127.0.0.1:{self._server.server_port}{self._base}{start}"
        command = [path, *ALWAYS, *sandbox, *own, f"--user-data-dir={self._profile}", address]
        try:
            with self._complaints.open("wb") as complaints:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints
                )
        except OSError as exc:
            self.close()
            raise RuntimeMissing(
                f"{path} cannot be run ({exc.strerror}). {why_no_program() or 'Reinstall it.'}"
            ) from exc

    def ask(
        self, verb: str, what: Mapping[str, Any] | None = None, arrays: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Have the page do something; returns what it answers, with arrays of float32, int64 or uint8.

        Raises `BrowserFailed` with the page's own words, or if it ended. Not safe to call from several threads.
        """
        self._orders.put(packed({"verb": verb, "what": dict(what or {})}, arrays or {}))
        began = monotonic()
        while True:
            try:
                answer, found = unpacked(self._answers.get(timeout=1.0))
                break
            except Empty:
                self._check(began)
        if "error" in answer:
            raise BrowserFailed(answer["error"])
        return answer, found

    def _check(self, began: float) -> None:
        """Raise `BrowserFailed` if the browser or its page has ended."""
        if self._process is None:
            raise BrowserFailed("the browser is closed")
        if (code := self._process.poll()) is not None:
            raise BrowserFailed(f"the browser ended with code {code}{self._last_words()}")
        if self._seen is None and monotonic() - began > START_SECONDS:
            raise BrowserFailed(f"the browser did not open the page within {START_SECONDS:.0f} s{self._last_words()}")
        if self._seen is not None and monotonic() - max(self._seen, began) > SILENT_SECONDS:
            raise BrowserFailed("the page stopped answering; its memory may have run out")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._complaints.read_text("utf-8", "replace").splitlines()]
        said = [line for line in lines if line and "dbus" not in line]  # a desktop's bus is not needed
        return f": {said[-1][:300]}" if said else ""

    def close(self) -> None:
        """End the browser, and remove its profile. Does nothing if it is closed."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread.is_alive():
            self._orders.put(b"")  # a request that waits for one ends
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _served(self, path: str) -> tuple[bytes | Path | None, str]:
        """The content of a path, and its type."""
        path = path.partition("?")[0]
        own = PAGES / path
        content = own if "/" not in path and own.is_file() else self._find(path)
        named = content if isinstance(content, Path) else Path(path)
        return content, TYPES.get(named.suffix, "application/octet-stream")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        browser = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self._path()
                if path == "alive":
                    browser._seen = monotonic()
                    self._send(204)
                elif path == "order":
                    order = b""
                    with suppress(Empty):
                        order = browser._orders.get(timeout=POLL_SECONDS)
                    self._send(200 if order else 204, order)
                else:
                    content, kind = browser._served(path) if path is not None else (None, "text/plain")
                    self._send(404 if content is None else 200, content or b"", kind)

            def do_POST(self) -> None:
                found = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self._path() == "answer":
                    browser._answers.put(found)
                self._send(204)

            def _path(self) -> str | None:
                """The path below the secret that only the page knows."""
                return self.path.removeprefix(browser._base) if self.path.startswith(browser._base) else None

            def _send(self, status: int, content: bytes | Path = b"", kind: str = "application/octet-stream") -> None:
                length = len(content) if isinstance(content, bytes) else content.stat().st_size
                with suppress(ConnectionError):  # the browser was closed
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    if status != 204:
                        self.send_header("Content-Length", str(length))
                    self.send_header("Cache-Control", "no-store")
                    self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                    self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
                    self.end_headers()
                    if isinstance(content, bytes):
                        self.wfile.write(content)
                    else:
                        with content.open("rb") as file:
                            shutil.copyfileobj(file, self.wfile, 1 << 20)

            def log_message(self, *_args: Any, **_more: Any) -> None:
                """Nothing: it would go to standard error."""

        return Handler


def files_below(prefix: str, folder: Path) -> Find:
    """Serve the files of a folder below a path that ends in a slash; the path itself is its `index.html`."""

    def find(path: str) -> Path | None:
        if not path.startswith(prefix):
            return None
        found = (folder / (path.removeprefix(prefix) or "index.html")).resolve()
        return found if found.is_relative_to(folder.resolve()) and found.is_file() else None

    return find
