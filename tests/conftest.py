"""Tiny checkpoints and their exports: made once for a whole run, read by all workers, and copied to be written to."""

import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from latentc import cli
from latentc.checkpoints import SHIPPED
from latentc.checkpoints.random import new_checkpoint
from latentc.compiler.build import build
from latentc.core import quarantine
from latentc.core.bundle import Bundle, digest, open_bundle
from latentc.core.files import read_sealed, sha256, write_sealed
from latentc.core.manifest import FileInfo
from latentc.core.records import GraphFigure, graph_key, remember, state_folder
from latentc.core.references import stored_at
from latentc.export import trace as tracer
from latentc.export.adopt import adopt
from latentc.export.export import export
from latentc.export.weights import write
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

from .guides import IP_ADAPTER, write_controlnet, write_ip_adapter
from .quicker import Here, kept, refill
from .wrong_files import JSON, PLACES

FAMILIES = ("sd1", "sd2", "sdxl")
OWN_FOLDERS = ("LATENTC_STATE", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that name folders which are written to outside of a test's own."""

FIRST = (
    *("test_flops", "test_tokenizer", "test_random", "test_others", "test_vocabulary", "test_kinds", "test_render"),
    *("test_schedulers", "test_single_file", "test_qnn", "test_bench", "test_suite"),
    *("test_videos", "test_controlnet", "test_nothing_is_sent", "test_adopt", "test_sd3", "test_refused", "test_half"),
    *("test_pictures", "test_swap", "test_probe", "test_build", "test_faults", "test_inpainting_models", "test_gate"),
    *("test_refiner", "test_controlnet_sd3", "test_loras", "test_export", "test_commands", "test_outputs"),
    *("test_embeddings", "test_ip_adapter", "test_t2i_adapter", "test_edit", "test_sources", "test_like"),
    *("test_families", "test_host", "test_adopted", "test_trt", "test_damage", "test_saving", "test_decoders"),
    *("test_torch", "test_iree", "test_plan", "test_lower"),
)
"""Files that take longest, begun first: with `--dist loadfile`, no worker then waits for the other's last file. While
one worker exports for the first, the other has files that need no export.
"""

LARGE = 100_000_000

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
    """Give each worker folders and cores of its own: waiting threads spin, and the whole took 1.7 times as long.

    Compiled modules are kept for the hundreds of processes that tests start: each would compile latentc again.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
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


def settle() -> None:
    """Exempt what is there from garbage collection, the imported libraries above all: an export collects garbage for
    each part, which took a tenth of all tests' time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def settled():
    """Before each file."""
    settle()


def contents(folder: Path) -> dict[str, list]:
    """What a write changes: by file its size, time and digest; by folder its time."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (
            [state.st_mtime_ns] if path.is_dir() else [state.st_mtime_ns, state.st_size, sha256(path)]
        )
    return found


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """Don't wait for the disk: no test is about what outlives a power failure. Tests of `fsync`'s errors replace it."""
    real, os.fsync = os.fsync, lambda _: None
    yield
    os.fsync = real


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


@pytest.fixture(scope="session", autouse=True)
def traced_once(shared):
    """Trace parts of the same layers once in a run: most of an export's time is a trace, and tiny checkpoints differ
    only by their weights, which the graphs name. Encoders of texts and images hold some in another form, so theirs must
    be the same. Each export still compares its graph with PyTorch. A command in a process of its own traces everything.
    """
    trace = tracer.trace

    def traced(spec, module):
        import onnx_ir
        import torch

        digest = hashlib.sha256(f"{spec.inputs} {spec.outputs} {spec.wide} {spec.patch} {module}".encode())
        state = module.state_dict()
        if sum(tensor.nbytes for tensor in state.values()) > LARGE:  # of full size, and all zeros
            return trace(spec, module)
        settle()
        named = spec.role in ("denoiser", "encoder", "decoder")
        for name, tensor in state.items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            if not named:
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())

        def make(folder):
            folder.mkdir()
            write(trace(spec, module), folder)

        model = onnx_ir.load(kept(shared, f"{spec.name}-{digest.hexdigest()[:16]}", make) / "model.onnx")
        if named:
            refill(model, state)
        return model

    tracer.trace = traced
    yield
    tracer.trace = trace


@pytest.fixture(scope="session", autouse=True)
def no_quarantine():
    """Each of the hundreds of child processes would import what is imported here already. Those of commands that tests
    start are real, and so are those of tests that are marked `apart`.
    """
    real, quarantine._Child = quarantine._Child, Here
    yield real
    quarantine._Child = real


@pytest.fixture(autouse=True)
def apart(request, no_quarantine, monkeypatch):
    """`@pytest.mark.apart`: quarantines have child processes."""
    if request.node.get_closest_marker("apart"):
        monkeypatch.setattr(quarantine, "_Child", no_quarantine)


@pytest.fixture(scope="session")
def exported(shared, checkpoint, pytestconfig):
    """`exported(family)`: the exported tiny checkpoint, or `scenes`, to be read only. No engine may be built in it."""

    def make(family: str) -> Bundle:
        if family != "sd1" and pytestconfig.getoption("--quick"):
            pytest.skip("an export of another family: `make test` has it")
        source = family if family in SHIPPED else checkpoint(family)
        opened = open_bundle(shared(f"{family}.bundle", lambda folder: export(str(source), folder)))
        for name, part in opened.manifest.parts.items():  # as the export itself remembers, on the machine that made it
            key = graph_key(part.digest, opened.manifest.files[stored_at(name)].sha256)
            remember(key, GraphFigure(psnr_db=part.psnr_db, worst="", run_by="the export", exported_here=True))
        return opened

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


@pytest.fixture(scope="session")
def equipped(shared, tmp_path_factory):
    """`equipped(name, export)`: this worker's copy of the bundle of that name that `export(folder)` writes, with
    engines for ONNX Runtime.
    """
    folders = {}

    def make(name, export):
        if name not in folders:
            folders[name] = shutil.copytree(shared(name, export), tmp_path_factory.mktemp("equipped") / name)
            build(open_bundle(folders[name]), load_profile("cpu-onnxruntime"))
        return open_bundle(folders[name])

    return make


@pytest.fixture(scope="session")
def opened(bundle):
    """`opened(family, profile)`: an open pipeline."""
    made = {}

    def make(family, name="cpu-onnxruntime"):
        if (family, name) not in made:
            build(bundle(family), load_profile(name))
            made[family, name] = Pipeline.open(bundle(family), name)
        return made[family, name]

    yield make
    for pipeline in made.values():
        pipeline.close()


@pytest.fixture(scope="session")
def optimum(shared, exported, checkpoint):
    """`optimum(family)`: a folder of ONNX graphs as optimum writes it. Don't change it."""
    from .export import foreign

    def make(family: str) -> Path:
        return shared(f"{family}-optimum", lambda folder: foreign.optimum(exported(family), checkpoint(family), folder))

    return make


@pytest.fixture(scope="session")
def adopted(shared, optimum):
    """`adopted(family)`: the bundle of that folder. Don't change it."""
    return lambda family: open_bundle(shared(f"{family}-adopted", lambda folder: adopt(optimum(family), folder)))


@pytest.fixture(scope="session")
def without_modules(tmp_path_factory):
    """`without_modules(*names)`: the environment of processes in which importing these top-level modules fails."""

    def make(*names):
        folder = tmp_path_factory.mktemp("blocked")
        (folder / "sitecustomize.py").write_text(
            "import sys\nfrom importlib.machinery import PathFinder\n"
            f"NAMES = {sorted(names)}\n"
            "class Hiding(PathFinder):\n"
            "    @classmethod\n"
            "    def find_spec(cls, name, path=None, target=None):\n"
            "        return None if name.partition('.')[0] in NAMES else PathFinder.find_spec(name, path, target)\n"
            "sys.meta_path = [Hiding if one is PathFinder else one for one in sys.meta_path]\n"
        )
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-c", f"import {names[0]}"]
        blocked = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert b"No module named" in blocked.stderr
        return environment

    return make


@pytest.fixture
def own_bundle(exported, tmp_path, monkeypatch):
    """`own_bundle(family)`: a copy without engines, to change at will, on a machine that proved nothing but exports."""

    def make(family: str = "sd1") -> Bundle:
        folder, state = tmp_path / "own.bundle", tmp_path / "state"
        shutil.copytree(exported(family).folder, folder)
        if not state.exists():
            (state / "proofs").mkdir(parents=True)
            for path in (state_folder() / "proofs").glob("graph-*.json"):
                shutil.copyfile(path, state / "proofs" / path.name)
            monkeypatch.setenv("LATENTC_STATE", str(state))
        return open_bundle(folder)

    return make


@pytest.fixture
def in_the_hubs_cache():
    """`in_the_hubs_cache(folder, cache)`: a bundle as huggingface_hub keeps it, blobs by digest and a snapshot of links
    to them; the snapshot.
    """

    def move(folder: Path, cache: Path) -> Path:
        snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
        blobs.mkdir(parents=True)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            blob, link = blobs / sha256(path), snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            path.replace(blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return snapshot

    return move


@pytest.fixture
def edit_manifest():
    """`edit_manifest(bundle, function)`: change the manifest's JSON."""

    def edit(opened: Bundle, change) -> None:
        path = opened.folder / "latentc.json"
        value = read_sealed(path)
        change(value)
        write_sealed(path, value)

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
        manifest = read_sealed(bundle.folder / "latentc.json")
        manifest["files"][f"{part}/model.onnx_data"]["sha256"] = sha256(data)
        files = {name: FileInfo(**info) for name, info in manifest["files"].items() if name.startswith(f"{part}/")}
        manifest["parts"][part]["digest"] = digest(files)
        write_sealed(bundle.folder / "latentc.json", manifest)

    return change_one


LIMIT_SECONDS = 300
"""Far above what any test takes, the first one's checkpoint and bundle included: only a hang takes longer."""


class HangError(BaseException):
    """Not an `Exception`: nothing that is tested may catch it."""


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
def place(tmp_path):
    """`place(path, kind)`: put one of `PLACES` or `JSON` where a file should be, until the test ends (before `tmp_path`
    is removed).
    """
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
    for path, before in reversed(moved):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if before:
            before.rename(path)


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
def latentc(command, monkeypatch):
    """`latentc(*words)`: the same as of a process, which would import everything again; lines are as long as any
    temporary folder's name makes them.
    """
    monkeypatch.setenv("COLUMNS", "500")
    return lambda *words: subprocess.CompletedProcess(words, *command(*words))


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


@pytest.fixture(scope="session")
def controlnet(shared, checkpoint):
    """`controlnet(family, seed)`: the folder of a tiny ControlNet whose residuals aren't zero, or of one that averages
    them over the image. Don't change it.
    """

    def make(family, seed=0, pooled=False):
        name = f"{family}-controlnet-{seed}{'-pooled' * pooled}"
        return shared(name, lambda folder: write_controlnet(checkpoint(family), seed, folder, pooled=pooled))

    return make


@pytest.fixture(scope="session")
def ip_adapter(shared, checkpoint):
    """`ip_adapter(family, kind)`: the file of a tiny IP-Adapter in the published layout, beside its image encoder.

    `kind` is plain or plus. Its tokens have as much effect as those of the text. Don't change it.
    """

    def make(family, kind):
        made = shared(f"{family}-{kind}-ip-adapter", lambda folder: write_ip_adapter(checkpoint(family), kind, folder))
        return made / IP_ADAPTER

    return make
