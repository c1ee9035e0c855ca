"""Checkpoint to bundle. PyTorch lives here.

`latentc.export` is this room, which Python makes an attribute of the package when anything in it is imported, and the
public function: calling the one is calling the other.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `export.export` does."""
        from .export import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
