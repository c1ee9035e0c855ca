"""Locks between processes, on file systems with `flock` and without it.

The system frees a dead owner's `flock`. Where a file system has none (some network and FUSE mounts), the file itself is
the lock: it names its owner, and one whose process is gone on this machine is taken over.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows has locks of its own
    fcntl = None

UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""How file systems say that they don't have something."""

WAIT_SECONDS = 6 * 3600.0
"""How long a lock is waited for, and how long compiling one engine may take: TensorRT needs an hour for a large UNet on
a small device.
"""

POLL_SECONDS = 0.1
SHARED_MODE = 0o666
"""Other users who may write to the folder may wait for its locks too."""


class LockedError(Exception):
    """Another process holds the lock; the message says whose it is."""


@contextmanager
def held(path: Path, wait_seconds: float = 0.0, on_wait: Callable[[], None] | None = None) -> Generator[None]:
    """Hold the lock of this name; its file is gone after.

    Where another process has it, `on_wait` is called once, and it is waited for. Raises `LockedError` after
    `wait_seconds`, and for another user's that can't be opened; `OSError` where no file can be written.
    """
    lock = _acquired(path, wait_seconds, on_wait)
    try:
        yield
    finally:
        if not isinstance(lock, SoftFileLock):  # that removes its own
            path.unlink(missing_ok=True)  # held: who waits for it sees that, and makes another
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process, or this one, holds the lock of this name, or nobody can say; it stays as it is."""
    if not path.exists():
        return False
    try:
        lock = _lock(path)
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _acquired(path: Path, wait_seconds: float, on_wait: Callable[[], None] | None) -> BaseFileLock:
    try:
        return _wait(_lock(path), wait_seconds, on_wait)
    except PermissionError as exc:
        if path.exists():
            raise LockedError(f"{path} is {_owner(path)}'s lock, which this user can't open") from exc
        raise


def _lock(path: Path) -> BaseFileLock:
    """A lock of the kind that the file system has."""
    if fcntl is not None:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            try:
                fcntl.flock(probe.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno in UNSUPPORTED:
                    return SoftFileLock(path, mode=SHARED_MODE)
    return FileLock(path, mode=SHARED_MODE)


def _wait(lock: BaseFileLock, wait_seconds: float, on_wait: Callable[[], None] | None) -> BaseFileLock:
    try:
        lock.acquire(blocking=False)
        return lock
    except Timeout:
        if on_wait is not None:
            on_wait()
    path = Path(lock.lock_file)
    try:
        if wait_seconds > 0:
            lock.acquire(timeout=wait_seconds, poll_interval=POLL_SECONDS)
            return lock
    except Timeout:
        pass
    raise LockedError(f"{path} is held by a process of {_owner(path)}")


def _owner(path: Path) -> str:
    """The user whose file it is."""
    try:
        return path.owner()
    except (OSError, KeyError, NotImplementedError):  # it is gone, or nobody knows the number
        return "another user"
