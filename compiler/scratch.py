"""Scratch folders: one per call, removed at its end; those of killed processes are removed by a later call."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..core.errors import CompileError
from ..core.files import link
from ..core.locks import LockedError, held
from ..core.reading import is_regular

PREFIX = ".latentc-scratch-"
LOCK = ".lock"


@contextmanager
def scratch_folder(parent: Path | None) -> Generator[Path]:
    """Yield a new empty folder in `parent`, or in the system's temporary folder where `parent` can't be used.

    Raises `CompileError` where neither can.
    """
    folder, lock = _made(parent)
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _made(parent: Path | None) -> tuple[Path, ExitStack]:
    system = Path(tempfile.gettempdir())
    if parent is not None and parent.is_dir():
        with suppress(OSError, NotImplementedError):
            return _locked_folder(parent)
    try:
        return _locked_folder(system)
    except (OSError, NotImplementedError) as exc:
        raise CompileError(
            f"No scratch folder with links and locks can be created in {parent or system} or {system} ({exc}). Set "
            "TMPDIR to a writable folder on a file system that supports both."
        ) from exc


def _locked_folder(parent: Path) -> tuple[Path, ExitStack]:
    """A new folder and the lock in it, which shows that its owner still runs."""
    _remove_leftovers(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = ExitStack()
        try:
            (folder / "file").touch()
            link(folder / "link", folder / "file")
            (folder / "link").unlink()
            (folder / "file").unlink()
            lock.callback(shutil.rmtree, folder, ignore_errors=True)  # Windows keeps the file of a lock that is held
            lock.enter_context(held(folder / LOCK))
            if (folder / LOCK).exists():
                return folder, lock
            lock.close()  # another process took it for a leftover before it was locked
        except LockedError:
            continue
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _remove_leftovers(parent: Path) -> None:
    """Remove folders whose lock is free: the system releases the locks of a process that ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        if folder.is_symlink() or not is_regular(folder / LOCK):  # not ours, not locked yet, or another user's
            continue
        with suppress(OSError, NotImplementedError, LockedError):
            with held(folder / LOCK):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)  # what Windows kept: the file of the held lock
