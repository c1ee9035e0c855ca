"""What `import latentc` gives: names, types, paths and objects alike."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import latentc
from latentc.checkpoints import open_checkpoint
from latentc.core.bundle import open_bundle
from latentc.core.errors import LatentcError, RuntimeMissing
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.profiles.profile import FOLDER
from latentc.runtimes import diagnose

from .sizes import LEFT_OUT
from .test_house import FLOORS

ROOT = Path(__file__).parent.parent
OUTSIDE = ("benchmarks/results/", "scenes/train/")
"""Files of the packages that only a checkout has."""


def test_dir_shows_only_what_is_public():
    code = (
        "import latentc; first = dir(latentc); latentc.Pipeline, latentc.save, latentc.export; "
        "assert dir(latentc) == first == sorted(latentc.__all__), dir(latentc); print(*first)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        *("Bundle", "LatentcError", "Pipeline", "Profile", "Request", "Result", "__version__", "build", "export"),
        *("fuse", "load_profile", "open_bundle", "save"),
    ]
    assert all(hasattr(latentc, name) for name in latentc.__all__)


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_packages_and_nothing_else(tmp_path):
    """As pip builds it, without the network. No tests, no training, no result files, no instructions for a checkout."""
    pytest.importorskip("setuptools")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("latentc-*.whl")
    with zipfile.ZipFile(wheel) as file:
        entries = {name for name in file.namelist() if ".dist-info/" not in name}
        metadata = next(file.read(name).decode() for name in file.namelist() if name.endswith("/METADATA"))
    rooms = [path for path in source.iterdir() if path.is_dir() and path.name in FLOORS]
    every = [*source.glob("*.py"), source / "py.typed", *(one for room in rooms for one in room.rglob("*"))]
    paths = {path.relative_to(source).as_posix() for path in every if path.is_file()}
    expected = {path for path in paths if not path.startswith(OUTSIDE)}
    assert {
        "serving/web/index.html",
        "profiles/cpu-onnxruntime.toml",
        "scenes/judge.onnx.xz",
        "package/web/index.html",
    } < expected
    assert len({name.casefold() for name in entries}) == len(entries)
    assert entries == {f"latentc/{path}" for path in expected}
    assert "Provides-Extra: onnxruntime\n" in metadata


@pytest.fixture(scope="module")
def built(bundle):
    opened = bundle("sd1")
    latentc.build(str(opened.folder), "null")
    return opened


def test_names_paths_and_objects_are_taken_alike(built, tmp_path):
    folder, null, mine = built.folder, load_profile("null"), tmp_path / "mine.toml"
    shutil.copyfile(FOLDER / "null.toml", mine)
    for bundle, profile in ((built, null), (folder, "null"), (str(folder), mine)):
        assert open_bundle(bundle) == built
        assert all(one.hit for one in latentc.build(bundle, profile, like=bundle).engines)
        latentc.Pipeline.open(bundle, profile).close()
    assert load_profile(mine) == load_profile(str(mine))
    assert load_profile(null) is null


def test_a_checkpoint_may_be_a_path_or_open_already(checkpoint):
    opened = open_checkpoint(checkpoint("sd1"))
    assert open_checkpoint(str(checkpoint("sd1"))).weights.keys() == opened.weights.keys()
    assert open_checkpoint(opened) is opened


@pytest.mark.slow
def test_an_export_takes_what_open_checkpoint_gave(checkpoint, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    import latentc.export.check  # a room of the function's name, which becomes an attribute of the package

    opened = open_checkpoint(checkpoint("sd1"))
    for source in (opened, checkpoint("sd1"), str(checkpoint("sd1"))):
        with pytest.raises(LatentcError, match="already exists"):  # so the checkpoint was taken
            latentc.export(source, tmp_path / "there")


def test_a_result_saves_itself(built, tmp_path):
    with latentc.Pipeline.open(built, "null") as pipeline:
        result = pipeline(latentc.Request(prompt="a cat", steps=1, seed=3, count=2))
    paths = result.save(str(tmp_path / "new" / "out.webp"))
    assert [path.name for path in paths] == ["out.webp", "out-1.webp"]
    assert latentc.save(result, tmp_path / "out.png") == (tmp_path / "out.png", tmp_path / "out-1.png")
    shown = read(tmp_path / "out-1.png")
    assert shown.drawing.family == built.manifest.family
    assert shown.request == read(paths[1]).request == result.request.model_copy(update={"seed": 4, "count": 1})
    assert result.origin.versions["numpy"] == np.__version__


def test_without_a_profile_doctors_advice_is_taken(built, monkeypatch):
    monkeypatch.setattr(diagnose, "advise", lambda _: load_profile("null"))
    with latentc.Pipeline.open(built) as pipeline:
        assert pipeline.profile.name == "null"
    assert latentc.build(built).profile == "null"
    monkeypatch.setattr(diagnose, "advise", lambda _: None)
    with pytest.raises(RuntimeMissing, match="`latentc doctor` shows"):
        latentc.Pipeline.open(built)
