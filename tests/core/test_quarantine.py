"""Work in a child process: its errors are ours, its death is an error, and it never outlives us."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latentc.core.errors import CancelledError, CompileError, ParityError
from latentc.core.limits import MEMORY_ADVICE
from latentc.core.quarantine import quarantined

pytestmark = pytest.mark.apart
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals of Linux")

WORK = """
import mmap, os, signal, subprocess, sys, time
from latentc.core.errors import ParityError

class Nearer(ParityError):
    pass

def add(a, b, on_progress):
    on_progress("adding", 0.5)
    on_progress("added", None)
    return {"sum": a + b}

def noise(on_progress):
    print('{"ok": {"forged": 1}}')
    os.write(1, b"\\xff\\x00 garbage\\n" * 100_000)
    on_progress("noise", None)
    return {"stdin": sys.stdin.read(), "safe": sys.flags.safe_path, "path": [p for p in sys.path if p in ("", ".")]}

def die(by, on_progress):
    os.write(2, b"the library's last \\x1b[31mwords\\n")
    os.kill(os.getpid(), getattr(signal, by))

def leave(on_progress):
    os._exit(3)

def leave_a_child(on_progress):
    if os.fork() == 0:
        time.sleep(60)
    os._exit(3)

def sleep(pid_file, on_progress):
    child = subprocess.Popen(["sleep", "60"])
    with open(pid_file + ".tmp", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(pid_file + ".tmp", pid_file)
    on_progress("asleep", None)
    while True:
        time.sleep(0.05)

def allocate(on_progress):
    held = []
    while True:
        held.append(bytearray(64 << 20))

def map_privately(path, on_progress):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        return {"mapped": len(mapped)}

def abort(on_progress):
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\\n")
    os.abort()

def refuse(kind, on_progress):
    raise {"parity": ParityError("unet: -5.0 dB"), "nearer": Nearer("near"), "other": KeyError("x")}[kind]

def unspeakable(on_progress):
    return {"set": {1}}
"""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    (tmp_path / "quarantine_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), ""]))


def call(name, seconds=20.0, **arguments):
    settings = {key: arguments.pop(key) for key in ("memory_bytes", "mapped_bytes", "on_progress") if key in arguments}
    return quarantined(f"quarantine_work:{name}", arguments, seconds=seconds, what="The first run of unet", **settings)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids) -> bool:
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_a_result_and_progress_come_back():
    told = []
    assert call("add", a=2, b=3, on_progress=lambda *one: told.append(one)) == {"sum": 5}
    assert told == [("adding", 0.5), ("added", None)]


def test_what_it_prints_is_not_its_answer_and_the_current_folder_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "here")
    assert call("noise") == {"stdin": "", "safe": True, "path": []}


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("parity", ParityError, r"^unet: -5.0 dB$"),
        ("nearer", ParityError, "^near$"),
        ("other", CompileError, "The first run of unet failed with KeyError: 'x'. The graph may"),
    ],
)
def test_its_errors_are_raised_here(kind, error, says):
    with pytest.raises(error, match=says):
        call("refuse", kind=kind)


def test_what_json_cannot_say_is_an_error():
    with pytest.raises(CompileError, match="failed with TypeError: Object of type set"):
        call("unspeakable")


@linux
@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        (
            "die",
            {"by": "SIGSEGV"},
            r"crashed with SIGSEGV \(the library's last \\x1b\[31mwords\)\. The graph may",
        ),
        ("die", {"by": "SIGKILL"}, "was killed by the system, usually for lack of memory"),
        ("abort", {}, "needed more memory than is available"),
        ("leave", {}, "exited with code 3 without an answer"),
        ("leave_a_child", {}, "exited with code 3 without an answer"),
    ],
)
def test_its_death_is_an_error(name, arguments, says):
    with pytest.raises(CompileError, match=f"The first run of unet {says}"):
        call(name, **arguments)


@pytest.mark.slow
@linux
def test_it_leaves_no_core_file_and_takes_no_more_memory_than_it_may():
    with pytest.raises(CompileError, match=r"needed more memory than is available \(its limit was 500 MB\)") as caught:
        call("allocate", memory_bytes=500_000_000)
    assert str(caught.value).endswith(MEMORY_ADVICE), "and not that of what it opened"


@linux
def test_files_that_it_maps_need_no_memory(tmp_path):
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(1_000_000_000)
    with pytest.raises(CompileError, match="Cannot allocate memory"):
        call("map_privately", path=str(path), memory_bytes=500_000_000)
    found = call("map_privately", path=str(path), memory_bytes=500_000_000, mapped_bytes=path.stat().st_size)
    assert found == {"mapped": 1_000_000_000}


@pytest.mark.slow
@linux
@pytest.mark.parametrize("how", ["time", "cancelled"])
def test_it_ends_with_what_it_started(tmp_path, how):
    pids = tmp_path / "pids"

    def on_progress(name, share):
        if how == "cancelled":
            raise CancelledError("stop")

    says = "^stop$" if how == "cancelled" else "took longer than 2 s and was stopped"
    with pytest.raises((CancelledError, CompileError), match=says):
        call("sleep", seconds=1.5, pid_file=str(pids), on_progress=on_progress)
    assert gone(map(int, pids.read_text().split()))


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from latentc.core.quarantine import quarantined
quarantined("quarantine_work:sleep", {"pid_file": sys.argv[1]}, seconds=60)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_does_not_outlive_its_parent(tmp_path, number):
    pids = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(pids)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not pids.exists() and time.monotonic() < end:
        time.sleep(0.02)
    child = int(pids.read_text().split()[0])
    parent.send_signal(number)
    assert parent.wait(10)
    assert gone([child])


def test_several_at_once_from_threads():
    found = []
    threads = [threading.Thread(target=lambda n=n: found.append(call("add", a=n, b=n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one["sum"] for one in found) == [0, 2, 4, 6]
