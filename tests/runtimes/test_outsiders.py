"""A runtime of another distribution: one module, and one line in its entry points."""

import sys

import pytest

from latentc.compiler.build import build
from latentc.core.errors import ProfileError, RuntimeMissing
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import RUNTIMES, known_runtimes, runtime
from latentc.runtimes.diagnose import diagnose
from latentc.runtimes.null import Null

ADAPTER = """
from latentc.runtimes.onnxruntime import ONNXRuntime


class Outsider:
    \"\"\"ONNX Runtime's CPU provider by another name.\"\"\"

    revision = 7

    def __init__(self):
        self._inner = ONNXRuntime()

    def __getattr__(self, name):
        return getattr(self._inner, name)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(module, line)`: a distribution of one module with one entry point, on the path."""

    def make(content, line):
        (tmp_path / "outsider.py").write_text(content)
        facts = tmp_path / "outsider-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[latentc.runtimes]\n{line}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield make
    sys.modules.pop("outsider", None)


PROFILE = 'title = "another\'s"\nruntime = "outsider"\n'


@pytest.mark.slow
def test_one_module_and_one_line_are_a_runtime(install, own_bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    install(ADAPTER, "outsider = outsider:Outsider")
    (tmp_path / "mine.toml").write_text(PROFILE)
    profile, opened = load_profile(tmp_path / "mine.toml"), own_bundle()
    built = build(opened, profile)
    assert built.step_psnr_db > 90
    assert {one.artifact.fields.adapter for one in built.engines} == {7}
    with Pipeline.open(opened, profile) as pipeline:
        assert pipeline.describe()["unet"].startswith("outsider ")
        assert pipeline(Request(prompt="a cat", width=64, height=64, steps=1, seed=1)).images.std() > 0
    assert next(state for state in diagnose() if state.name == "outsider").works


def test_one_that_cant_be_loaded_is_said_and_breaks_nothing_else(install):
    install("raise ImportError('it lacks a library')", "outsider = outsider:Outsider")
    with pytest.raises(
        RuntimeMissing, match=r"'outsider' of another distribution .* can't be loaded: it lacks a library"
    ):
        runtime("outsider")
    states = {state.name: state for state in diagnose()}
    assert "can't be loaded" in states["outsider"].missing
    assert states["null"].works


def test_latentcs_own_are_not_replaced(install):
    install(ADAPTER, "null = outsider:Outsider")
    assert isinstance(runtime("null"), Null)
    assert known_runtimes() == RUNTIMES
    with pytest.raises(ProfileError, match="no runtime 'nul'. Did you mean 'null'"):
        runtime("nul")
