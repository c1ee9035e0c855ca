"""Paths and line ends as on Windows and macOS, as far as Linux can show: bundles are moved between systems."""

import ast
from pathlib import Path, PureWindowsPath

import pytest

import latentc
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError
from latentc.profiles import load_profile
from latentc.profiles.profile import FOLDER

from ..test_house import FLOORS

ROOT = Path(latentc.__file__).parent.resolve()
SOURCES = [path for room in FLOORS for path in sorted((ROOT / room).rglob("*.py")) if "train" not in path.parts]
SHOWN = {"cli/show.py", "checkpoints/graphs.py"}
"""They print paths in the system's own form, and write none."""


def calls():
    """Each call in the sources, with its place."""
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield place, node


def writes_text(call):
    """Whether it opens or writes a file of UTF-8 text."""
    words = {word.arg: word.value for word in call.keywords}
    if getattr(words.get("encoding"), "value", None) != "utf-8" or "devnull" in ast.unparse(call):
        return False
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    modes = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return name == "write_text" or (name == "open" and any(mode[:1] in ("w", "a", "x") for mode in modes))


def test_names_in_files_have_slashes():
    """`str` of a relative path has backslashes on Windows: the same bundle would have another digest there."""
    wrong = [
        f"{place}:{call.lineno}"
        for place, call in calls()
        if place not in SHOWN
        and isinstance(call.func, ast.Name)
        and call.func.id == "str"
        and any(isinstance(one, ast.Call) and getattr(one.func, "attr", "") == "relative_to" for one in call.args)
    ]
    assert wrong == [], "use as_posix()"


def test_texts_are_written_with_the_same_line_ends_everywhere():
    found = [(f"{place}:{call.lineno}", call) for place, call in calls() if writes_text(call)]
    assert len(found) > 10
    assert [place for place, call in found if "newline" not in {word.arg for word in call.keywords}] == []


def test_every_file_of_the_sources_can_be_checked_out_everywhere():
    """No two names that differ by case only, none that Windows reserves or can't have; and line ends are kept."""
    folders = [ROOT / name for name in (*FLOORS, "tests", "docs")]
    kept = [*(path for path in ROOT.iterdir() if path.is_file()), *(path for one in folders for path in one.rglob("*"))]
    names = [path.relative_to(ROOT).as_posix() for path in kept if "__pycache__" not in path.parts]
    assert len({name.casefold() for name in names}) == len(names)
    reserved = {"con", "nul", "aux", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
    for name in names:
        assert not {part.partition(".")[0].casefold() for part in name.split("/")} & reserved, name
        assert not set(name) & set('<>:"|?*\\'), name
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text()


def test_a_bundle_has_names_for_every_system(exported):
    names = exported("sd1").manifest.files
    assert len({name.casefold() for name in names}) == len(names)
    assert all(PureWindowsPath(name).as_posix() == name for name in names)


@pytest.mark.parametrize("name", ["unet\\model.onnx", "..\\outside", "C:\\outside", "a\\..\\..\\b"])
def test_backslashes_in_names_of_a_bundle_are_refused(own_bundle, edit_manifest, name):
    """On Windows they would separate folders."""
    opened = own_bundle()

    def rename(manifest):
        manifest["files"][name] = manifest["files"].pop("scheduler/scheduler_config.json")

    edit_manifest(opened, rename)
    with pytest.raises(BundleError, match="is not a valid file name .* backslash"):
        open_bundle(opened.folder)


def test_a_profile_with_windows_line_ends(tmp_path):
    text = (FOLDER / "cpu-onnxruntime.toml").read_bytes()
    (tmp_path / "mine.toml").write_bytes(text.replace(b"\n", b"\r\n"))
    mine, own = load_profile(tmp_path / "mine.toml"), load_profile("cpu-onnxruntime")
    assert mine.model_dump(exclude={"name", "source"}) == own.model_dump(exclude={"name", "source"})
