"""Conversion of other libraries' exceptions to latentc's, with the libraries' own messages."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from ..core.errors import CompileError, LatentcError
from ..core.limits import MEMORY_ADVICE, is_out_of_memory

LONGEST = 400
KILLED = -9
"""By SIGKILL, which Python doesn't name on Windows."""
REBUILD = "Build again: latentc build BUNDLE --profile PROFILE."
ENOUGH = "Check that enough memory is free for this size."
"""Advice where a call fails."""
NO_REASON = "no reason given"
EMPTY: Mapping[str, str] = MappingProxyType({})
COLOR = re.compile(r"\x1b\[[\d;]*m")
ORT_CODE = re.compile(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ")


def rebuild(artifact: Path) -> str:
    """Advice for an artifact that is undamaged but doesn't load: unless it is removed, a build would reuse it."""
    return f"Remove {artifact}. {REBUILD}"


@contextmanager
def border(error: type[LatentcError], what: str, advice: str, known: Mapping[str, str] = EMPTY) -> Generator[None]:
    """Raise `error` in place of any exception of another library in the block; latentc's own errors pass through.

    The message is `what`, the relevant lines of the library's message, and `advice`; where memory ran out, the advice
    on that instead, and where the library's message has words of `known`, the advice that they are keys of.
    """
    try:
        yield
    except LatentcError:
        raise
    except Exception as exc:
        if words := next((words for words in known if words in str(exc)), None):
            raise error(f"{what}: {first_line(exc).rstrip('.')}. {known[words]}") from exc
        raise error(sentence(what, first_line(exc), advice, no_memory=is_out_of_memory(exc))) from exc


def sentence(what: str, said: str, advice: str, *, no_memory: bool = False) -> str:
    """A message of what failed, the library's message, and what to do: `advice`, unless memory ran out."""
    if no_memory or is_out_of_memory(said):
        return f"{what}: memory ran out ({said.rstrip('.')}). {MEMORY_ADVICE}"
    return f"{what}: {said.rstrip('.')}. {advice}"


def call_program(what: str, *command: object, variables: Mapping[str, str] = EMPTY, result: Path | None = None) -> str:
    """Run a program of a compiler and return its output; raises `CompileError` with its first error message.

    `variables` are added to the environment. Where the program should write `result` and didn't, it failed, whatever
    its exit status.
    """
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode or (result is not None and not result.is_file()):
        if done.returncode == KILLED:
            raise CompileError(
                f"{what}: the process was killed, usually because memory ran out. Build on a machine with more memory."
            )
        lines = [line.strip() for line in COLOR.sub("", f"{done.stdout}\n{done.stderr}").splitlines() if line.strip()]
        nothing = f"code {done.returncode}" if done.returncode else "it wrote no file and no message"
        said = next((line for line in lines if "error:" in line.lower()), lines[-1] if lines else nothing)
        raise CompileError(sentence(what, said[:LONGEST], "Try another precision, or another runtime."))
    return done.stdout + done.stderr


def first_line(exc: BaseException) -> str:
    """The message of an exception in one line, without the place in the source where it was raised.

    OpenVINO puts `Exception from file.cpp:1:` and `Check 'x' failed at file.cpp:1:` above its message, ONNX Runtime
    puts `[ONNXRuntimeError] : 1 : FAIL : ` in front of it, once for every function on the call stack.
    """
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    words = [line for line in lines if not line.startswith(("Exception from ", "Check '", "Summary:"))]
    said = words or lines or [type(exc).__name__]
    return " ".join(dict.fromkeys(ORT_CODE.sub("", line) for line in said))[:LONGEST]
