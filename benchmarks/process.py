"""A process at the other end of the line, as the harness sees it."""

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
"""How long a process may take to end when it is hung up on."""


class Process:
    """A process that answers orders. It ends with the `with` block, whatever happens in it.

    `environment` is added to what it inherits.
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
            raise LatentcError(f"{python} can't be run ({exc.strerror}). Is its environment there?") from exc
        self._answers: Queue[str] = Queue()
        Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the system."""
        return self._popen.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone: no order reaches it any more."""
        return self._popen.poll() is not None

    def ask(self, verb: str, what: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises `LatentcError` with the process's own reason, or saying how it ended or that it took too long.
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
                f"{self._module} didn't answer to {verb!r} in {timeout_seconds:.0f} s, and was stopped. Give it "
                "longer (--limit), or less to do."
            ) from None
        if not line:
            raise LatentcError(
                f"The process of {self._module} {self._end()} while it was asked to {verb}.{self._last_words()}"
            )
        answer = cast("dict[str, Any]", json.loads(line))
        if "error" in answer:
            raise LatentcError(str(answer["error"]))
        return answer["ok"]

    def close(self) -> None:
        """Hang up, and wait until it has ended; what is left of it then is killed."""
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # it ended before
            self._popen.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(GRACE_SECONDS)
        self._kill()
        self._complaints.close()

    def _kill(self) -> None:
        """End it and whatever it started."""
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
            return "stopped talking"
        if code == -9:
            return "was killed (signal 9: as a rule because memory ran out)"
        return f"ended with signal {-code}" if code < 0 else f"ended with code {code}"

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints if line.strip()]
        return f" Its last words: {lines[-1][:400]}" if lines else ""
