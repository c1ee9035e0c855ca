"""The process that something was opened in: libraries of threads and devices don't survive a fork."""

from __future__ import annotations

import ctypes
import os

from .errors import RuntimeMissing


def check_process(opened: int, what: str) -> None:
    """Raise `RuntimeMissing` in a fork of the process that opened something."""
    if (here := os.getpid()) != opened:
        raise RuntimeMissing(
            f"{what} opened in process {opened}, and this is process {here}, a fork of it, where engines don't work. "
            "Open the pipeline in this process, or start processes by multiprocessing's 'spawn' method."
        )


def never_freed(value: object) -> None:
    """Keep an object until the process is gone, past the end of Python: what would free it isn't there in a fork."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
