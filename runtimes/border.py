"""The border to other libraries: their exceptions become ours, in their own words."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import CompileError, LatentcError
from ..core.limits import MEMORY_ADVICE, is_out_of_memory

LONGEST = 400
REBUILD = "Build it again: latentc build BUNDLE --profile PROFILE."
ORT_CODE = re.compile(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ")


def rebuild(artifact: Path) -> str:
    """What to do about one that is as it was built, and doesn't load: there, a build would find it."""
    return f"Remove {artifact}. {REBUILD}"


@contextmanager
def border(error: type[LatentcError], what: str, advice: str) -> Generator[None]:
    """Raise `error` in place of whatever another library raises in the block; our own errors pass.

    The message is `what`, the library's lines that say something, and `advice`; where memory ran out, it says so, and
    what to do about that.
    """
    try:
        yield
    except LatentcError:
        raise
    except Exception as exc:
        raise error(sentence(what, first_line(exc), advice, no_memory=is_out_of_memory(exc))) from exc


def sentence(what: str, said: str, advice: str, *, no_memory: bool = False) -> str:
    """What failed, the library's words, and what to do: `advice`, unless memory ran out."""
    if no_memory or is_out_of_memory(said):
        return f"{what}: memory ran out ({said.rstrip('.')}). {MEMORY_ADVICE}"
    return f"{what}: {said.rstrip('.')}. {advice}"


def call_program(what: str, *command: object) -> str:
    """Run a compiler's program; gives what it says, or raises `CompileError` with the first thing it complains of."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        if done.returncode == -signal.SIGKILL:
            raise CompileError(f"{what}: it was killed, usually because memory ran out. Build where there is more.")
        lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        said = next((line for line in lines if "error:" in line), lines[-1] if lines else f"code {done.returncode}")
        raise CompileError(sentence(what, said[:LONGEST], "Try another precision, or another runtime."))
    return done.stdout + done.stderr


def first_line(exc: BaseException) -> str:
    """What an exception says is wrong, in one line.

    Left out is where in the source it was raised. OpenVINO puts `Exception from file.cpp:1:` and `Check 'x' failed at
    file.cpp:1:` above its words, ONNX Runtime `[ONNXRuntimeError] : 1 : FAIL : ` before them, once for every function
    that they came through.
    """
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    words = [line for line in lines if not line.startswith(("Exception from ", "Check '", "Summary:"))]
    said = words or lines or [type(exc).__name__]
    return " ".join(dict.fromkeys(ORT_CODE.sub("", line) for line in said))[:LONGEST]
