"""The graphs that ship without weights are those of the export, and make its bundle without PyTorch."""

import json
import shutil
import subprocess
import sys

import pytest

from latentc.core.bundle import MANIFEST, open_bundle, verify_files
from latentc.core.errors import BundleError
from latentc.core.files import sha256
from latentc.export import shipped
from latentc.export.shipped import ARCHIVE, DEFINITION, PLACES, definition, export_shipped, members, unpack

from . import ship

TORCH = ("torch", "diffusers", "transformers", "safetensors", "onnxscript", "onnx", "onnx_ir", "sympy")


@pytest.mark.slow
def test_they_are_what_the_export_writes(exported):
    """Else: make graphs."""
    current, kept = ship.members(exported("scenes")), members(ARCHIVE)
    assert ship.differing(current, kept) == []
    now, then = json.loads(current[MANIFEST]), json.loads(kept[MANIFEST])
    preview = [pytest.approx(row, abs=1e-4) for row in then["model"]["preview"]]
    assert now["model"]["preview"] == preview
    for figure, tolerance in (("psnr_db", 10), ("bf16_db", 2)):
        wanted = {name: pytest.approx(part[figure], abs=tolerance) for name, part in then["parts"].items()}
        assert {name: part[figure] for name, part in now["parts"].items()} == wanted


def test_they_are_small_and_have_no_weights():
    assert ARCHIVE.stat().st_size < 80_000
    places = json.loads(members(ARCHIVE)[PLACES])
    assert sum(len(weights) for by in places.values() for weights in by.values()) > 500


@pytest.fixture(scope="module")
def made(without_modules, tmp_path_factory):
    """The bundle of a process without PyTorch, and without what only builds need."""
    folder = tmp_path_factory.mktemp("shipped") / "scenes.bundle"
    code = (
        "import sys; from pathlib import Path; from latentc.cli import main; from latentc.export import shipped;"
        "shipped.REFERENCES = Path('absent');"
        f"sys.argv = ['latentc', 'export', 'scenes', '--shipped-graphs', '-o', {str(folder)!r}, '--json']; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=without_modules(*TORCH), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["standing"] == "self-consistent"
    return open_bundle(folder)


@pytest.mark.slow
def test_a_bundle_without_pytorch_has_the_files_of_the_export(made, exported):
    """Equal graphs, weights, tokenizer and configs give equal images."""
    real = exported("scenes")
    other = {name: info for name, info in real.manifest.files.items() if not name.startswith("reference/")}
    own = {name: info for name, info in made.manifest.files.items() if not name.startswith("reference/")}
    assert own == other
    assert all(sha256(made.folder / name) == info.sha256 for name, info in own.items())
    assert {name: part.digest for name, part in made.manifest.parts.items()} == {
        name: part.digest for name, part in real.manifest.parts.items()
    }
    assert {path.name for path in made.folder.glob("reference/*")} == {
        path.name for path in real.folder.glob("reference/*")
    }
    assert all(figure >= 100 for figure in made.manifest.source.graphs.psnr_db.values())


@pytest.mark.slow
def test_with_references_it_is_the_bundle_of_the_export(exported, tmp_path, monkeypatch):
    """As in a wheel: PyTorch's references are there, so it can be proved."""
    real = exported("scenes")
    monkeypatch.setattr(shipped, "REFERENCES", tmp_path / "references.tar.xz")
    shipped.REFERENCES.write_bytes(ship.packed(ship.references(real), 0))
    made = export_shipped(tmp_path / "scenes.bundle")
    assert made.standing.word == "proved"
    assert made.digest == real.digest
    verify_files(made, list(made.manifest.files))


@pytest.mark.parametrize("of", ["code", "graphs"])
def test_references_of_another_version_are_not_used(of, tmp_path, monkeypatch):
    """A checkout keeps them when its code or its graphs change."""
    manifest, said = json.loads(members(ARCHIVE)[MANIFEST]), []
    manifest["parts"]["unet"]["digest"] = "0" * 64
    old = {"code": {MANIFEST: b"{}"}, "graphs": {MANIFEST: json.dumps(manifest).encode()}}[of]
    monkeypatch.setattr(shipped, "REFERENCES", tmp_path / "references.tar.xz")
    shipped.REFERENCES.write_bytes(ship.packed(old | {DEFINITION: (definition() * (of != "code")).encode()}, 0))
    monkeypatch.setattr(shipped, "_self_consistent", lambda fresh, exported, _: exported)
    export_shipped(tmp_path / "scenes.bundle", lambda what, share=None: said.append(what))
    assert said[0] == "references.tar.xz: not used, of another version of the export"


@pytest.mark.slow
def test_nothing_calls_it_proved(made):
    assert made.standing.word == "self-consistent"
    assert all(part.proved is None and part.compared for part in made.manifest.parts.values())
    assert "no PyTorch reference stands behind" in made.standing.statement


def test_another_checkpoint_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "checkpoint"
    shutil.copytree(shipped.SHIPPED["scenes"], copy)
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(shipped, "SHIPPED", {"scenes": copy})
    with pytest.raises(BundleError, match="does not belong to the checkpoint scenes beside it. Install latentc again"):
        unpack(tmp_path / "out")


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_damaged_archive_is_refused(size, tmp_path):
    (tmp_path / "cut.tar.xz").write_bytes(ARCHIVE.read_bytes()[:size])
    with pytest.raises(BundleError, match=r"cut.tar.xz cannot be read .* Install latentc again"):
        unpack(tmp_path / "out", tmp_path / "cut.tar.xz")


@pytest.mark.parametrize("words", [["sd15"], ["scenes", "--size", "64"], ["scenes", "--lora", "a:1"]])
def test_it_takes_no_other_checkpoint_and_no_options(words, command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = command("export", *words, "--shipped-graphs", "-o", tmp_path / "b")
    assert code == 2
    assert "for scenes only, without other options" in " ".join(err.split())
    assert not (tmp_path / "b").exists()
