"""Work in a process of its own, so that a crash or lack of memory is an error and not the end of ours.

A library that compiles or runs a graph from somewhere else may crash, never end, or take all memory. `quarantined`
calls one function in a child process, under limits. Arguments and the result are JSON; nothing is pickled, and the
caller's script isn't imported.

The child's standard output goes where its errors go, so that what a library prints there can't spoil the answer.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any, cast

from . import errors
from .errors import CompileError, LatentcError, RuntimeMissing
from .limits import MEMORY_ADVICE, is_out_of_memory, memory, swap
from .progress import Progress, quiet
from .units import sized

LONGEST_LINE = 64 << 20
WORDS_BYTES = 8192
"""How much of the end of what the child prints is kept."""
LONGEST_WORDS = 400
TICK_SECONDS = 0.2
LEAST_BYTES = 1 << 30
SHARE = 0.9
"""Of the memory that is free, how much the child may take."""

ADVICE = "The graph may not be one that latentc wrote: export the checkpoint again, or try another runtime."


def quarantined(
    function: str,
    arguments: Mapping[str, Any],
    *,
    seconds: float,
    what: str = "",
    advice: str = ADVICE,
    memory_bytes: int | None = None,
    on_progress: Progress = quiet,
) -> dict[str, Any]:
    """Call `latentc.module:function` in a child process, and give what it returns.

    The function is called as `function(**arguments, on_progress=...)` and returns a dict; both are JSON values. `what`
    names the work in errors, as `The first run of unet`. `memory_bytes` limits what the child allocates (None: 90 % of
    what is free; Linux only). The child ends with this call and with this process, and leaves no core file.

    Raises the `LatentcError` that the function raised, with its message; `CompileError`, which ends in `advice`, where
    the child crashed, took longer than `seconds`, needed more memory than that, or failed otherwise.
    """
    what = what or function
    limit = _free_bytes() if memory_bytes is None else memory_bytes
    order = {"function": function, "arguments": dict(arguments), "memory_bytes": limit, "parent": os.getpid()}
    with _Child(json.dumps(order)) as child:
        answer = child.answer(time.monotonic() + seconds, on_progress)
        if answer is None:
            child.kill()
            raise CompileError(f"{what} took longer than {seconds:,.0f} s and was stopped. {advice}")
        if answer:
            return _opened(answer, what, limit, advice)
        code = child.code()
    said = _ending(code, child.words, limit)
    raise CompileError(f"{what} {said}. {MEMORY_ADVICE if is_out_of_memory(said) else advice}")


def _opened(answer: dict[str, Any], what: str, limit: int | None, advice: str) -> dict[str, Any]:
    """The result in an answer, or its error."""
    if "ok" in answer:
        return cast("dict[str, Any]", answer["ok"])
    name, message = str(answer.get("error")), str(answer.get("message"))
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, LatentcError):
        raise kind(message)
    if name == "MemoryError":
        raise CompileError(f"{what} {_no_memory(limit)}. {MEMORY_ADVICE}")
    raise CompileError(f"{what} failed with {name}: {message[:LONGEST_WORDS].rstrip('.')}. {advice}")


def _no_memory(limit: int | None) -> str:
    return "needed more memory than there is" + (f" (its limit was {sized(limit)})" if limit else "")


def _ending(code: int, words: str, limit: int | None) -> str:
    """How a child without an answer ended."""
    if is_out_of_memory(words):
        return _no_memory(limit)
    last = words.strip().splitlines()[-1].strip() if words.strip() else ""
    said = f" ({ascii(last)[1:-1][:LONGEST_WORDS]})" if last else ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if name == "SIGKILL":
            return f"was killed by the system, usually for lack of memory{said}"
        return f"crashed with {name}{said}"
    if code >= 0xC0000000:  # Windows' exceptions
        return f"crashed with code {code:#x}{said}"
    return f"ended with code {code} and without an answer{said}"


def _free_bytes() -> int | None:
    """What the child may allocate; None where the system doesn't say what is free."""
    _, free = memory()
    return None if free is None else max(LEAST_BYTES, int((free + swap()) * SHARE))


def _environment() -> dict[str, str]:
    """Ours, without the current folder on Python's path."""
    environment = dict(os.environ)
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(one for one in path.split(os.pathsep) if one not in ("", "."))
    return environment


class _Child:
    """The child process: it ends with the `with` block, and with what it started."""

    def __init__(self, order: str) -> None:
        if not sys.executable:
            raise RuntimeMissing("Python doesn't say where its program is, so no process can be started. Run python3.")
        command = [sys.executable, "-P", "-m", __spec__.name if __spec__ else __name__]
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,  # so that what it starts ends with it
            )
        except OSError as exc:
            raise CompileError(f"{sys.executable} can't be started ({exc.strerror}). Free memory, or wait.") from exc
        self._lines: Queue[bytes] = Queue()
        self._words: deque[bytes] = deque()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()
        try:
            with suppress(BrokenPipeError):  # it died already, which `answer` says
                self._stdin.write(order.encode() + b"\n")
                self._stdin.flush()  # and stays open: its end means to the child that we are gone
        except BaseException:
            self.kill()
            raise

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    def answer(self, deadline: float, on_progress: Progress) -> dict[str, Any] | None:
        """The child's answer; {} where it ended without one, None where it takes too long."""
        ended = False
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=min(left, TICK_SECONDS))
            except Empty:
                if ended:  # and what it started holds the pipe open
                    return {}
                ended = self._popen.poll() is not None
                continue
            if not line:
                return {}
            try:
                found: object = json.loads(line)
            except ValueError:  # not by the child's Python
                continue
            told = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
            if "progress" in told:
                name, share = told["progress"]
                on_progress(str(name), None if share is None else float(share))
            elif "ok" in told or "error" in told:
                return told
        return None

    def code(self) -> int:
        """How it ended."""
        try:
            code = self._popen.wait(TICK_SECONDS * 10)
        except subprocess.TimeoutExpired:  # it closed its end and goes on
            self.kill()
            code = self._popen.wait()
        self._threads[1].join(TICK_SECONDS * 5)  # what it printed last
        return code

    @property
    def words(self) -> str:
        """The end of what it printed."""
        return b"".join(tuple(self._words)).decode("utf-8", "replace")

    def kill(self) -> None:
        """End it and what it started."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.kill()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._popen.wait()
        for thread in self._threads:
            thread.join(TICK_SECONDS * 10)
        with suppress(OSError):
            self._stdin.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines, suppress(OSError, ValueError):
            while (line := lines.readline(LONGEST_LINE)).endswith(b"\n"):
                self._lines.put(line)
        self._lines.put(b"")

    def _listen(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as errors_, suppress(OSError, ValueError):
            held = 0
            while piece := os.read(errors_.fileno(), 4096):
                self._words.append(piece)
                held += len(piece)
                while held - len(self._words[0]) >= WORDS_BYTES:
                    held -= len(self._words.popleft())


def _limit(memory_bytes: int | None, parent: int) -> None:
    """In the child: no core file, no more memory than that, first to go where memory ends, and none without parent."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory_bytes is not None:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            least = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_DATA, (least, least))


def _watch(stdin: IO[bytes]) -> None:
    """End with the parent: its end of the pipe closes."""
    with suppress(OSError, ValueError):
        while stdin.read(1):
            pass
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _main() -> None:
    """The child's side: one order on standard input, lines of JSON on what was standard output."""
    stdin = os.fdopen(os.dup(0), "rb")
    wire = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    os.dup2(2, 1)
    order: dict[str, Any] = json.loads(stdin.readline())
    _limit(order["memory_bytes"], order["parent"])
    threading.Thread(target=_watch, args=(stdin,), daemon=True).start()
    lock = threading.Lock()

    def tell(value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        with lock:
            wire.write(line)
            wire.flush()

    def on_progress(name: str, share: float | None = None) -> None:
        tell({"progress": [name, share]})

    try:
        module, _, name = str(order["function"]).partition(":")
        answer = {"ok": getattr(importlib.import_module(module), name)(**order["arguments"], on_progress=on_progress)}
        json.dumps(answer)
    except MemoryError:
        answer = {"error": "MemoryError", "message": ""}
    except Exception as exc:
        answer = {"error": _name(exc), "message": str(exc)}
    tell(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what a library does at its end is of no interest


def _name(exc: Exception) -> str:
    """The name of an exception; of ours, that of the nearest class in `errors`."""
    known = (kind.__name__ for kind in type(exc).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return next(known, type(exc).__name__)


if __name__ == "__main__":
    _main()
