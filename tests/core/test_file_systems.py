"""File systems that lack something: locks, a folder's fsync, room; and other processes' locks."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from filelock import FileLock

from latentc.compiler import cache
from latentc.compiler.cache import locked
from latentc.compiler.scratch import scratch_folder
from latentc.core import files, locks
from latentc.core.errors import BundleError
from latentc.core.files import fresh_folder, write_text
from latentc.core.locks import LockedError, held
from latentc.core.progress import WAITING


@contextmanager
def small_disk(place, size="4m"):
    """A real file system of this size; skipped where none can be mounted."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


class WindowsLock(FileLock):
    """Its file is removed when it is released, and can't be before."""

    def _release(self):
        super()._release()
        with suppress(OSError):
            Path(self.lock_file).unlink()


def unlink_as_windows(path, missing_ok=False, *, unlink=Path.unlink):
    with suppress(FileNotFoundError), path.open("rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError while it is held
    unlink(path, missing_ok)


@pytest.fixture(
    params=[None, "Windows", errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK],
    ids=lambda one: errno.errorcode.get(one, str(one)),
)
def flock(request, monkeypatch):
    """A file system with `flock`, Windows, and three without it."""
    if request.param == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(locks, "FileLock", WindowsLock)
        monkeypatch.setattr(Path, "unlink", unlink_as_windows)
    elif request.param is not None:

        def lacking(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", lacking)
    return request.param


def test_a_lock_excludes_and_leaves_nothing(flock, tmp_path, no_hang):
    path, waits = tmp_path / "a.lock", []
    with held(path):
        with pytest.raises(LockedError, match="is held by a process of"), held(path):
            pass
        with pytest.raises(LockedError), held(path, 0.2, lambda: waits.append(path.exists())):
            pass
    assert waits == [True]
    assert list(tmp_path.iterdir()) == []
    with held(path):
        pass


def test_a_lock_that_is_waited_for_is_taken(flock, tmp_path, no_hang):
    path, said, done = tmp_path / "a.lock", threading.Event(), []

    def wait():
        with held(path, 60, said.set):
            done.append(True)

    with held(path):
        thread = threading.Thread(target=wait)
        thread.start()
        assert said.wait(60)
        assert not done
    thread.join(60)
    assert done == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owners_lock_is_taken_over(flock, tmp_path, no_hang):
    if flock in (None, "Windows"):
        return  # the system's own
    path = tmp_path / "a.lock"
    code = (
        "import fcntl, os, sys\nfrom pathlib import Path\nfrom latentc.core.locks import held\n"
        f"def lacking(*_): raise OSError({flock}, 'no')\n"
        "fcntl.flock = lacking\nwith held(Path(sys.argv[1])): os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert path.exists()
    with held(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_are_filled_where_there_are_no_locks(flock, tmp_path, no_hang):
    with fresh_folder(tmp_path / "made", BundleError) as fresh:
        (fresh / "a").write_text("a")
        words = "being written by another process"
        with pytest.raises(BundleError, match=words), fresh_folder(tmp_path / "made", BundleError):
            pass
    with scratch_folder(tmp_path) as scratch:
        assert scratch.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_waiting_for_a_build_is_said_at_once_and_has_a_limit(flock, bundle, monkeypatch, no_hang):
    opened, said = bundle("sd1"), []
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.2)
    words = r"unet-0.build.lock is held by a process of .* remove the lock file"
    with (
        locked(opened, "unet-0"),
        pytest.raises(BundleError, match=words),
        locked(opened, "unet-0", lambda what, share: said.append(what)),
    ):
        pass
    assert len(said) == 1
    assert WAITING in said[0]
    assert not (opened.engines / ".unet-0.build.lock").exists()


def test_another_users_lock_is_told_from_a_folder_that_cant_be_written(tmp_path, monkeypatch):
    (tmp_path / "a.lock").touch()

    def denied(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", self.lock_file)

    monkeypatch.setattr(locks.FileLock, "acquire", denied)
    with pytest.raises(LockedError, match=rf"is a lock of {(tmp_path / 'a.lock').owner()}"), held(tmp_path / "a.lock"):
        pass
    with pytest.raises(PermissionError), held(tmp_path / "b.lock"):
        pass


def test_locks_may_be_opened_by_whoever_may_write_there(tmp_path):
    with held(tmp_path / "a.lock"):
        assert (tmp_path / "a.lock").stat().st_mode & 0o777 == locks.SHARED_MODE


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_what_cant_be_synced_is_written_all_the_same(code, tmp_path, monkeypatch):
    def lacking(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", lacking)
    write_text(tmp_path / "a", "text")
    with fresh_folder(tmp_path / "made", BundleError) as fresh:
        (fresh / "b").write_text("b")
    assert (tmp_path / "a").read_text() == "text"
    assert (tmp_path / "made" / "b").read_text() == "b"


def test_windows_flushes_what_is_open_for_writing(tmp_path, monkeypatch):
    """Its `_commit` fails for other files, and folders don't open."""

    def commit(descriptor):
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "fsync", commit)
    (tmp_path / "made").mkdir()
    with fresh_folder(tmp_path / "made", BundleError) as fresh:
        (fresh / "below").mkdir()
        write_text(fresh / "below" / "b", "text")


def test_a_disk_that_fails_is_an_error_still(tmp_path, monkeypatch):
    def failing(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_what_is_free(tmp_path):
    with small_disk(tmp_path / "small") as place:
        made = place / "made"
        words = r"made cannot be written \(No space left on device: 0 B of 4\.2 MB free"
        with pytest.raises(BundleError, match=words), fresh_folder(made, BundleError) as fresh:
            (fresh / "a").write_bytes(bytes(8 << 20))
        words = r"made needs 5\.0 MB, but only 4\.\d MB are free"
        with pytest.raises(BundleError, match=words), fresh_folder(made, BundleError, needed_bytes=5_000_000):
            pass

        def library(folder):
            """One that fills the disk, and says something else."""
            (folder / "a").write_bytes(bytes(4 << 20))
            raise BundleError("Protobuf serialization failed.")

        words = r"made cannot be written: 0 B of 4\.2 MB .* error was: Protobuf"
        with pytest.raises(BundleError, match=words), fresh_folder(made, BundleError) as fresh:
            library(fresh)
        assert list(place.iterdir()) == []


def test_a_bundle_that_cant_be_written_is_refused_before_anything_is_built(own_bundle, tmp_path):
    """Before its graphs are proved, which may take minutes."""
    from latentc.compiler.build import build
    from latentc.profiles import load_profile

    opened, said = own_bundle(), []
    if subprocess.run(["mount", "--bind", opened.folder, opened.folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", opened.folder], check=True)
        with pytest.raises(
            BundleError, match=r"engines cannot be written \(Read-only file system\).*copy it to a writable folder"
        ):
            build(opened, load_profile("cpu-onnxruntime"), lambda what, share: said.append(what))
    finally:
        subprocess.run(["umount", "-l", opened.folder], check=True)
    assert said == []
