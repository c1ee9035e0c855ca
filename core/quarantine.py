"""Run a function in a child process, so that a crash or lack of memory becomes an error.

A library that compiles or runs an untrusted graph may crash, hang, or use all memory. `quarantined` calls one function
in a child process, under limits. Arguments and the result are JSON; nothing is pickled, and the caller's script is not
imported.

The child's standard output is redirected to its standard error, so that a library's output cannot corrupt the answer.
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
"""How much of the child's output is kept, from its end."""
LONGEST_WORDS = 400
TICK_SECONDS = 0.2
LEAST_BYTES = 1 << 30
SHARE = 0.9
"""Share of the free memory that the child may use."""

ADVICE = "The graph may be damaged or not written by latentc: export the checkpoint again, or try another runtime."


def quarantined(
    function: str,
    arguments: Mapping[str, Any],
    *,
    seconds: float,
    what: str = "",
    advice: str = ADVICE,
    memory_bytes: int | None = None,
    mapped_bytes: int = 0,
    on_progress: Progress = quiet,
) -> dict[str, Any]:
    """Call `latentc.module:function` in a child process, and return its result.

    The function is called as `function(**arguments, on_progress=...)` and returns a dict; both are JSON values. `what`
    names the work in errors, such as `The first run of unet`. `memory_bytes` limits the child's allocations (None: 90 %
    of the free memory; Linux only). `mapped_bytes` are added for files that it maps: libraries map weights privately,
    which Linux counts as allocations, although it can take their pages back. The child never outlives this call or this
    process, and leaves no core file.

    Raises the `LatentcError` that the function raised, with its message; or `CompileError`, ending in `advice`, if the
    child crashed, took longer than `seconds`, exceeded the memory limit, or failed otherwise.
    """
    what = what or function
    limit = _free_bytes() if memory_bytes is None else memory_bytes
    limit = None if limit is None else limit + mapped_bytes
    order = {"function": function, "arguments": dict(arguments), "memory_bytes": limit, "parent": os.getpid()}
    with _Child(json.dumps(order)) as child:
        answer = child.answer(time.monotonic() + seconds, on_progress)
        if answer is None:
            child.kill()
            raise CompileError(f"{what} took longer than {seconds:,.0f} s and was stopped. {advice}")
        if answer:
            return _opened(answer, what, limit, advice)
        code = child.code()
    how = ending(code, child.words, limit)
    raise CompileError(f"{what} {how}. {MEMORY_ADVICE if is_out_of_memory(how) else advice}")


def _opened(answer: dict[str, Any], what: str, limit: int | None, advice: str) -> dict[str, Any]:
    """Return the result in an answer, or raise its error."""
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
    return "needed more memory than is available" + (f" (its limit was {sized(limit)})" if limit else "")


def ending(code: int, words: str, limit: int | None = None) -> str:
    """Describe how a process ended that gave no answer, by its exit code and what it wrote to standard error."""
    if is_out_of_memory(words):
        return _no_memory(limit)
    last = words.strip().splitlines()[-1].strip() if words.strip() else ""
    output = f" ({ascii(last)[1:-1][:LONGEST_WORDS]})" if last else ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if name == "SIGKILL":
            return f"was killed by the system, usually for lack of memory{output}"
        return f"crashed with {name}{output}"
    if code >= 0xC0000000:  # an exception code of Windows
        return f"crashed with code {code:#x}{output}"
    return f"exited with code {code} without an answer{output}"


def _free_bytes() -> int | None:
    """Bytes that the child may allocate; None if the system does not report its free memory."""
    _, free = memory()
    return None if free is None else max(LEAST_BYTES, int((free + swap()) * SHARE))


def _environment() -> dict[str, str]:
    """This process's environment, without the current folder in PYTHONPATH."""
    environment = dict(os.environ)
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(one for one in path.split(os.pathsep) if one not in ("", "."))
    return environment


class _Child:
    """The child process. It is killed at the end of the `with` block, with all processes it started."""

    def __init__(self, order: str) -> None:
        if not sys.executable:
            raise RuntimeMissing(
                "sys.executable is empty, so no child process can be started. Run the python3 program directly."
            )
        command = [sys.executable, "-P", "-m", __spec__.name if __spec__ else __name__]
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,  # so that processes it starts are killed with it
            )
        except OSError as exc:
            raise CompileError(
                f"{sys.executable} cannot be started ({exc.strerror}). Free some memory and try again."
            ) from exc
        self._lines: Queue[bytes] = Queue()
        self._words: deque[bytes] = deque()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()
        try:
            with suppress(BrokenPipeError):  # it died already, which `answer` reports
                self._stdin.write(order.encode() + b"\n")
                self._stdin.flush()  # kept open: closing it tells the child that this process ended
        except BaseException:
            self.kill()
            raise

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    def answer(self, deadline: float, on_progress: Progress) -> dict[str, Any] | None:
        """The child's answer; {} if it ended without one, None if the deadline passed."""
        ended = False
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=min(left, TICK_SECONDS))
            except Empty:
                if ended:  # but a process that it started keeps the pipe open
                    return {}
                ended = self._popen.poll() is not None
                continue
            if not line:
                return {}
            try:
                found: object = json.loads(line)
            except ValueError:  # not written by the child's Python code
                continue
            message = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
            if "progress" in message:
                name, share = message["progress"]
                on_progress(str(name), None if share is None else float(share))
            elif "ok" in message or "error" in message:
                return message
        return None

    def code(self) -> int:
        """The child's exit code."""
        try:
            code = self._popen.wait(TICK_SECONDS * 10)
        except subprocess.TimeoutExpired:  # it closed the pipe, but is still running
            self.kill()
            code = self._popen.wait()
        self._threads[1].join(TICK_SECONDS * 5)  # read its last output
        return code

    @property
    def words(self) -> str:
        """The end of the child's output."""
        return b"".join(tuple(self._words)).decode("utf-8", "replace")

    def kill(self) -> None:
        """Kill the child and all processes it started."""
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
    """In the child: disable core files, limit memory, be the OOM killer's first choice, and die with the parent."""
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
    """Exit when the parent's end of the pipe closes."""
    with suppress(OSError, ValueError):
        while stdin.read(1):
            pass
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _main() -> None:
    """The child's side: read one order from standard input, write lines of JSON to the original standard output."""
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

    def send(value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        with lock:
            wire.write(line)
            wire.flush()

    def on_progress(name: str, share: float | None = None) -> None:
        send({"progress": [name, share]})

    try:
        module, _, name = str(order["function"]).partition(":")
        answer = {"ok": getattr(importlib.import_module(module), name)(**order["arguments"], on_progress=on_progress)}
        json.dumps(answer)
    except MemoryError:
        answer = {"error": "MemoryError", "message": ""}
    except Exception as exc:
        answer = {"error": _name(exc), "message": str(exc)}
    send(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # skip the exit handlers of libraries


def _name(exc: Exception) -> str:
    """The name of an exception's class, or of its closest base class in `errors`."""
    known = (kind.__name__ for kind in type(exc).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return next(known, type(exc).__name__)


if __name__ == "__main__":
    _main()
