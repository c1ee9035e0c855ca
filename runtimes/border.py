"""The border to other libraries: their exceptions become ours, in their own words."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from ..core.errors import LatentcError

LONGEST = 400
ORT_CODE = re.compile(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ")


@contextmanager
def border(error: type[LatentcError], what: str, advice: str) -> Generator[None]:
    """Raise `error` in place of whatever another library raises in the block; our own errors pass.

    The message is `what`, the library's lines that say something, and `advice`.
    """
    try:
        yield
    except LatentcError:
        raise
    except Exception as exc:
        raise error(f"{what}: {first_line(exc).rstrip('.')}. {advice}") from exc


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
