"""The harness's end of the protocol in `line.py`: start a process, send orders, read answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, cast

from ..core.errors import LatentcError
from .line import command

GRACE_SECONDS = 10.0
"""How long a process may take to end after its input is closed."""


class Process:
    """A process that answers orders. It ends with the `with` block.

    `environment` is added to the variables that it inherits.
    """

    def __init__(self, python: Path, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._complaints = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._popen = subprocess.Popen(
                command(python, module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # so that what it starts ends with it
                encoding="utf-8",
            )
        except OSError as exc:
            self._complaints.close()
            raise LatentcError(f"{python} cannot be run ({exc.strerror}). Check that its environment exists.") from exc
        self._answers: Queue[str] = Queue()
        Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._popen.poll() is not None

    def ask(self, verb: str, what: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Send an order and wait for the answer.

        Raises `LatentcError` with the error of the process, or if it ended or took too long.
        """
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps({"verb": verb, "what": what}) + "\n")
            self._popen.stdin.flush()
            line = self._answers.get(timeout=timeout_seconds)
        except BrokenPipeError:
            line = ""
        except Empty:
            self._kill()
            raise LatentcError(
                f"{self._module} did not answer {verb!r} within {timeout_seconds:.0f} s and was stopped. Increase the "
                "limit (--limit), or reduce the work."
            ) from None
        if not line:
            raise LatentcError(f"The process of {self._module} {self._end()} during {verb!r}.{self._last_words()}")
        answer = cast("dict[str, Any]", json.loads(line))
        if "error" in answer:
            raise LatentcError(str(answer["error"]))
        return answer["ok"]

    def close(self) -> None:
        """Close its input, wait until it has ended, and kill what is left."""
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # it ended before
            self._popen.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(GRACE_SECONDS)
        self._kill()
        self._complaints.close()

    def _kill(self) -> None:
        """Kill the process and its children."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):  # all ended
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.kill()
        self._popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")  # the end

    def _end(self) -> str:
        try:
            code = self._popen.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        if code == -9:
            return "was killed (signal 9: usually because memory ran out)"
        return f"ended with signal {-code}" if code < 0 else f"ended with code {code}"

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints if line.strip()]
        return f" Its last output: {lines[-1][:400]}" if lines else ""
