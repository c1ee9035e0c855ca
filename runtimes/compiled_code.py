"""The code that providers of ONNX Runtime compile for a device and keep in an artifact's folder `cache`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import CompileError
from .border import border
from .providers import Provider

CACHE = "cache"


def check_stored(folder: Path, provider: Provider) -> None:
    """Raise `CompileError` where a provider stored no code: each load would recompile, without proof."""
    if provider.caches and not any(folder.iterdir()):
        raise CompileError(
            f"{provider.name} stored no compiled code in its cache, so each load would recompile, which is not proved. "
            f"Check that {folder.parent.parent} has space left, and that this version has the option "
            f"{provider.caches[-1][0]}."
        )


@contextmanager
def lent(artifact: Path, files: Iterable[str]) -> Generator[Path]:
    """A folder with an artifact's compiled code, in which a provider may write, for as long as its session lives.

    The code itself is never written to, and code that the provider makes is seen even where the artifact is read-only.
    """
    with tempfile.TemporaryDirectory(prefix="latentc-", ignore_cleanup_errors=True) as scratch:
        advice = "Free space there, or set TMPDIR to another folder."
        with border(CompileError, f"The compiled code of {artifact.name} cannot be copied to {scratch}", advice):
            for name in files:
                if name.startswith(f"{CACHE}/"):
                    copy = Path(scratch) / Path(name).relative_to(CACHE)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    if not os.access(artifact / name, os.W_OK):
                        with suppress(OSError):  # on Windows, links require a privilege
                            copy.symlink_to((artifact / name).resolve())
                    if not copy.is_symlink():
                        shutil.copyfile(artifact / name, copy)
        yield Path(scratch)


def marks(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of each file, which change when it is written."""
    files = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {path: (seen.st_size, seen.st_mtime_ns) for path, seen in files.items()}
