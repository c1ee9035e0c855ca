"""Fork detection: libraries that use threads or devices do not survive a fork."""

from __future__ import annotations

import ctypes
import os

from .errors import RuntimeMissing


def check_process(opened: int, what: str) -> None:
    """Raise `RuntimeMissing` if this process is a fork of the one, `opened`, that opened something."""
    if (here := os.getpid()) != opened:
        raise RuntimeMissing(
            f"{what} opened in process {opened}, but this is process {here}, a fork of it, where engines do not work. "
            "Open the pipeline in this process, or start processes with multiprocessing's 'spawn' method."
        )


def never_freed(value: object) -> None:
    """Never free an object, not even when Python exits: freeing it would fail in a fork."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
