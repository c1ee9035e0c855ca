"""Locks between processes, on file systems with and without `flock`.

The system releases the `flock` of a process that died. If a file system does not support it (some network and FUSE
mounts), the file itself is the lock: it names its owner, and is taken over if that process no longer exists on this
machine.
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
except ImportError:  # Windows has its own locks
    fcntl = None

UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""Errors by which file systems report an unsupported operation."""

WAIT_SECONDS = 6 * 3600.0
"""Time limit for waiting for a lock, and for compiling one engine: TensorRT needs an hour for a large UNet on a small
device.
"""

POLL_SECONDS = 0.1
SHARED_MODE = 0o666
"""File mode of locks: other users with write access to the folder can wait for them too."""


class LockedError(Exception):
    """Another process holds the lock; the message names its owner."""


@contextmanager
def held(path: Path, wait_seconds: float = 0.0, on_wait: Callable[[], None] | None = None) -> Generator[None]:
    """Hold the lock at this path; its file is removed afterwards.

    If another process holds it, `on_wait` is called once before waiting. Raises `LockedError` after `wait_seconds`, or
    if the lock belongs to another user and cannot be opened; `OSError` if the file cannot be written.
    """
    lock = _acquired(path, wait_seconds, on_wait)
    try:
        yield
    finally:
        # Unlinked while held: a waiting process notices, and creates a new file. A SoftFileLock, and Windows' locks,
        # whose file can't be removed before, remove it themselves.
        try:
            if fcntl is not None and not isinstance(lock, SoftFileLock):
                path.unlink(missing_ok=True)
        finally:
            lock.release()


def is_held(path: Path) -> bool:
    """Whether any process holds the lock at this path, or that cannot be determined. The lock is left unchanged."""
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
            raise LockedError(f"{path} is a lock of {_owner(path)} that this user cannot open") from exc
        raise


def _lock(path: Path) -> BaseFileLock:
    """A lock of the kind that the file system supports."""
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
    """The owner of the file."""
    try:
        return path.owner()
    except (OSError, KeyError, NotImplementedError):  # it was removed, or the user id has no name
        return "another user"
