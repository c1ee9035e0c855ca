"""Tiny checkpoints and their exports: made once for a whole run, read by all workers, and copied to be written to."""

import json
import os
import shutil
import tempfile
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
OWN_FOLDERS = ("LATENTC_STATE", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that name folders which are written to outside of a test's own."""

FIRST = (
    *("test_flops", "test_bench", "test_suite", "test_half", "test_qnn", "test_export", "test_build", "test_plan"),
    *("test_commands", "test_tokenizer", "test_iree", "test_pictures", "test_torch", "test_lower", "test_random"),
)
"""Files that take longest, begun first: with `--dist loadfile`, no worker then waits for the other's last file."""

made_here = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--quick`: leave out what is marked as slow, and what needs an export of another family than `sd1`."""
    parser.addoption("--quick", action="store_true", help="without slow tests, with the export of one family")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files of `FIRST`; leave out slow tests if that is asked."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker folders and cores of its own: waiting threads spin, and the whole took 1.7 times as long."""
    config.stash[made_here] = [tempfile.mkdtemp(prefix="latentc-tests-") for _ in OWN_FOLDERS]
    os.environ.update(zip(OWN_FOLDERS, config.stash[made_here], strict=True))
    workers, worker = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)), os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers] or cores)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the worker's own folders."""
    for folder in config.stash.get(made_here, []):
        shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path) -> dict[str, list]:
    """What a write changes: by file its size, time and digest; by folder its time."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (
            [state.st_mtime_ns] if path.is_dir() else [state.st_mtime_ns, state.st_size, sha256(path)]
        )
    return found


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """`shared(name, make)`: a folder that one worker fills by `make(folder)`, and that all of this run only read.

    Whatever else is written into it fails the run when the worker ends.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "shared"
    root.mkdir(exist_ok=True)
    used = set()

    def share(name: str, make) -> Path:
        folder, sealed = root / name, root / f"{name}.json"
        with FileLock(root / f"{name}.lock"):
            if not sealed.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a test that failed to make it
                make(folder)
                sealed.write_text(json.dumps(contents(folder)))
        used.add(name)
        return folder

    yield share
    sealed = {name: json.loads((root / f"{name}.json").read_text()) for name in sorted(used)}
    written = [name for name, was in sealed.items() if contents(root / name) != was]
    assert not written, f"tests wrote into what all workers share: {written}"


@pytest.fixture(scope="session")
def checkpoint(shared):
    """`checkpoint(family)`: the folder of a tiny random checkpoint. Don't change it."""
    return lambda family: shared(f"{family}-checkpoint", lambda folder: new_checkpoint(family, "tiny", 1, folder))


@pytest.fixture(scope="session")
def exported(shared, checkpoint, pytestconfig):
    """`exported(family)`: the exported tiny checkpoint, or `scenes`, to be read only. No engine may be built in it."""

    def make(family: str) -> Bundle:
        if family != "sd1" and pytestconfig.getoption("--quick"):
            pytest.skip("an export of another family: `make test` has it")
        source = family if family in SHIPPED else checkpoint(family)
        return open_bundle(shared(f"{family}.bundle", lambda folder: export(str(source), folder)))

    return make


@pytest.fixture(scope="session")
def bundle(exported, tmp_path_factory):
    """`bundle(family)`: this worker's copy. Don't change it; engines may be built in it, and found by later tests."""
    folders = {}

    def make(family: str) -> Bundle:
        if family not in folders:
            source = exported(family).folder
            folders[family] = Path(shutil.copytree(source, tmp_path_factory.mktemp("bundles") / source.name))
        return open_bundle(folders[family])

    return make


@pytest.fixture
def own_bundle(exported, tmp_path):
    """`own_bundle(family)`: a copy without engines, to change at will."""

    def make(family: str = "sd1") -> Bundle:
        folder = tmp_path / "own.bundle"
        shutil.copytree(exported(family).folder, folder)
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
