"""Export of a checkpoint to a bundle, with PyTorch.

`latentc.export` is both the public function and this package, which Python sets as an attribute of `latentc` when
anything in it is imported. So the package is callable: calling it calls the function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `export.export`."""
        from .export import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
