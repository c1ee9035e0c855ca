"""Tiny checkpoints and their bundles, made once for a whole run and shared by its workers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

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
