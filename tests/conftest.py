"""Tiny checkpoints and their bundles, made once for a whole run and shared by its workers."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from latentc import cli
from latentc.checkpoints import SHIPPED
from latentc.checkpoints.random import new_checkpoint
from latentc.core.bundle import Bundle, FileInfo, digest, open_bundle
from latentc.core.files import sha256
from latentc.export.export import export

FAMILIES = ("sd1", "sd2", "sdxl")


def pytest_configure() -> None:
    """Give each worker cores of its own: waiting threads spin, and the whole took 1.7 times as long."""
    workers, worker = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)), os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers] or cores)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Path:
    """A folder that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(shared):
    """`checkpoint(family)`: the folder of a tiny random checkpoint. Don't change it."""

    def make(family: str) -> Path:
        folder = shared / f"{family}-checkpoint"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                new_checkpoint(family, "tiny", 1, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(shared, checkpoint):
    """`bundle(family)`: the exported tiny checkpoint, or `scenes`. Don't change it; engines may be built in it."""

    def make(family: str) -> Bundle:
        folder = shared / f"{family}.bundle"
        source = family if family in SHIPPED else checkpoint(family)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                export(str(source), folder)
        return open_bundle(folder)

    return make


@pytest.fixture
def own_bundle(bundle, tmp_path):
    """`own_bundle(family)`: a copy without engines, to change at will."""

    def make(family: str = "sd1") -> Bundle:
        folder = tmp_path / "own.bundle"
        shutil.copytree(bundle(family).folder, folder, ignore=shutil.ignore_patterns("engines"))
        return open_bundle(folder)

    return make


@pytest.fixture
def edit_manifest():
    """`edit_manifest(bundle, function)`: change the manifest's JSON."""

    def edit(opened: Bundle, change) -> None:
        path = opened.folder / "latentc.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


@pytest.fixture
def perturb():
    """`perturb(bundle, part, name, change)`: change one f32 weight of a part, and make the manifest agree."""

    def change_one(bundle: Bundle, part: str, name: str, change) -> None:
        import onnx

        graph = onnx.load(bundle.graph(part), load_external_data=False)
        tensor = next(each for each in graph.graph.initializer if each.name.endswith(name))
        place = {entry.key: entry.value for entry in tensor.external_data}
        begin, end = int(place["offset"]), int(place["offset"]) + int(place["length"])
        data = bundle.folder / part / "model.onnx_data"
        content = bytearray(data.read_bytes())
        values = np.frombuffer(bytes(content[begin:end]), np.float32)
        content[begin:end] = change(values).astype(np.float32).tobytes()
        data.write_bytes(content)
        manifest = json.loads((bundle.folder / "latentc.json").read_text())
        manifest["files"][f"{part}/model.onnx_data"]["sha256"] = sha256(data)
        files = {name: FileInfo(**info) for name, info in manifest["files"].items() if name.startswith(f"{part}/")}
        manifest["parts"][part]["digest"] = digest(files)
        (bundle.folder / "latentc.json").write_text(json.dumps(manifest))

    return change_one


LIMIT_SECONDS = 300
"""Far above what any test takes, the first one's checkpoint and bundle included: only a hang takes longer."""

DEEP = 1_000_000


class HangError(BaseException):
    """Not an `Exception`: nothing that is tested may catch it."""


def _fifo(path):
    os.mkfifo(path)


def _loop(path):
    path.symlink_to(path)


def _sparse(path):
    with path.open("wb") as file:
        file.truncate(2 << 30)


PLACES = {
    "fifo": _fifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": _loop,
    "sparse": _sparse,
}
"""What may be where a file should be."""

JSON = {
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP,
    "twice": b'{"a": 1, "a": 2}',
    "surrogate": b'{"a": "\\ud800"}',
    "no UTF-8": b'{"a": "\xff"}',
    "a list": b"[1, 2]",
    "a text": b'"text"',
    "a number": b"5",
    "null": b"null",
    "NaN": b'{"a": NaN}',
    "too large a number": b'{"a": 1e999}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "nothing": b"",
    "cut": b'{"a": ',
}
"""JSON that no command takes for an object."""


@pytest.fixture
def no_hang():
    """Fail a test that waits, rather than the whole run."""

    def hung(*_):
        raise HangError

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place():
    """`place(path, kind)`: put one of `PLACES` or `JSON` where a file should be, until the test ends."""
    moved = []

    def put(path, kind):
        path.parent.mkdir(exist_ok=True)
        kept = path.with_name(f"{path.name}.kept") if path.exists() else None
        if kept:
            path.rename(kept)
        moved.append((path, kept))
        if kind in PLACES:
            PLACES[kind](path)
        else:
            path.write_bytes(JSON[kind])

    yield put
    for path, kept in reversed(moved):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if kept:
            kept.rename(path)


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*words)`: run latentc in this process; gives exit code, standard output and standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["latentc", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as exc:
            code = exc.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def refused(command):
    """`refused(*words)`: run latentc, which must end with one line and code 1; gives the line."""

    def run(*words):
        code, _, err = command(*words)
        assert code == 1, err
        assert err.startswith("latentc: ")
        assert err.count("\n") == 1
        assert len(err) < 2000
        assert "\x1b" not in err
        return err

    return run
