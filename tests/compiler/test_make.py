"""Where an engine is made: a graph that came from elsewhere is compiled in a process of its own."""

import os
from types import SimpleNamespace

import pytest

from latentc.compiler import make
from latentc.compiler.build import build
from latentc.compiler.cache import artifacts
from latentc.core.errors import CompileError, ParityError
from latentc.core.files import read_sealed
from latentc.core.recipes import RECIPES
from latentc.core.records import state_folder
from latentc.profiles import load_profile

OPENVINO = load_profile("cpu-openvino")
pytestmark = pytest.mark.apart


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """In every process that starts from here on, OpenVINO's import ends it."""
    import openvino  # noqa: F401  the one that this process has

    library = tmp_path / "libraries" / "openvino"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("import os\nos.abort()\n")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(library.parent), before))))


@pytest.fixture
def elsewhere(own_bundle):
    """A bundle of which this machine has proved nothing."""
    opened = own_bundle()
    for path in (state_folder() / "proofs").glob("graph-*.json"):
        path.unlink()
    return opened


@pytest.mark.parametrize(("precision", "mapped"), [("f32", 300), ("int8", 300 + 40)])
def test_calibrating_may_map_the_weights_of_all_parts(precision, mapped):
    """The calls that are recorded for it come from engines of all parts; variants share a file."""
    parts = {"unet": {"unet/data": 300}, "unet@shallow": {"unet/data": 300}, "vae_decoder": {"vae_decoder/data": 40}}
    files = {part: {path: SimpleNamespace(bytes=count) for path, count in own.items()} for part, own in parts.items()}
    bundle = SimpleNamespace(manifest=SimpleNamespace(parts=parts), files=files.get)
    want = SimpleNamespace(part="unet", target=SimpleNamespace(recipe=RECIPES[precision]))
    assert make._mapped_bytes(bundle, want) == mapped


@pytest.mark.slow
def test_a_library_that_dies_over_a_foreign_graph_does_not_take_us_along(elsewhere, dying):
    with pytest.raises(CompileError, match=r"Compiling text_encoder for profile cpu-openvino crashed with SIGABRT"):
        build(elsewhere, OPENVINO)
    assert not artifacts(elsewhere)
    assert not list(elsewhere.engines.glob(".*.tmp"))


@pytest.mark.slow
def test_our_own_graphs_are_compiled_here(own_bundle, dying):
    opened = own_bundle()
    assert len(build(opened, OPENVINO).engines) == len(opened.manifest.parts)


@pytest.mark.slow
def test_a_foreign_graph_gets_the_same_engines(elsewhere, monkeypatch):
    said = []
    built = build(elsewhere, load_profile("cpu-onnxruntime"), lambda what, _=None: said.append(what))
    assert {one.how for one in built.engines} == {"compiled"}
    assert all(one.artifact.parity.psnr_db > 90 and one.artifact.seconds > 0 for one in built.engines)
    assert "unet: compile" in said
    records = [read_sealed(path) for path in (state_folder() / "proofs").glob("graph-*.json")]
    assert records
    assert not any(record["exported_here"] for record in records), "being proved here makes it no graph of ours"


@pytest.mark.slow
def test_a_foreign_engine_below_the_floor_is_refused_by_the_same_words(elsewhere):
    profile = OPENVINO.model_copy(update={"parity_db": {**OPENVINO.parity_db, "f32": 190.0, "bf16": 190.0}})
    with pytest.raises(ParityError, match="text_encoder in .* through openvino agrees with the reference to"):
        build(elsewhere, profile)
    assert make.is_exported_here(elsewhere, "unet") is False
