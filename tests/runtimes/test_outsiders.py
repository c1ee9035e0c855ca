"""A runtime of another distribution: one module of facts and three methods, and one line in its entry points."""

import sys

import pytest

from latentc.compiler.build import build
from latentc.core.errors import ProfileError, RuntimeMissing
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import RUNTIMES, known_runtimes, runtime
from latentc.runtimes.base import misfit
from latentc.runtimes.diagnose import diagnose
from latentc.runtimes.null import Null

ADAPTER = """
import numpy as np
import onnx
import onnxruntime

from latentc.runtimes import Facts, HostEngine, Runtime


class Outsider(Runtime):
    facts = Facts(title="Outsider", libraries=("onnxruntime",), revision=7, sums_in_a_row=frozenset({"CPU"}))

    def missing(self, device):
        return None if device == "CPU" else f"Outsider knows no {device}."

    def compile(self, job, out, on_progress):
        model = onnx.load(job.graph, load_external_data=False)
        onnx.load_external_data_for_model(model, str(job.weights))
        onnx.save(model, out / "engine.onnx", save_as_external_data=True, location="engine.data")

    def load(self, artifact, target, files):
        session = onnxruntime.InferenceSession(str(artifact / "engine.onnx"), providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in target.outputs]
        return HostEngine(target, lambda feeds, sizes: dict(zip(names, session.run(names, dict(feeds)), strict=True)))
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
    assert {one.artifact.fields.versions["outsider"] for one in built.engines} == {"1.0"}, "another is another engine"
    with Pipeline.open(opened, profile) as pipeline:
        assert pipeline.describe()["unet"].startswith("outsider ")
        assert pipeline(Request(prompt="a cat", width=64, height=64, steps=1, seed=1)).images.std() > 0
    assert next(state for state in diagnose() if state.name == "outsider").works


def test_one_without_its_three_methods_is_refused_when_it_is_asked_for(install):
    install("from latentc.runtimes import Runtime\nclass Outsider(Runtime): ...", "outsider = outsider:Outsider")
    with pytest.raises(RuntimeMissing, match="cannot be loaded: .*abstract.*compile.*load.*missing"):
        runtime("outsider")


@pytest.mark.parametrize(
    ("kind", "fits", "wrong", "says"),
    [
        (float, (0.5, 1), ("half", True), "a number"),
        (int | float, (1, 0.5), ("half",), "an integer or a number"),
        (bool, (True,), (1, "yes"), "true or false"),
        (("fast", "slow"), ("fast",), ("quick", 1), "one of: fast, slow"),
        (range(1, 5), (1, 4), (0, 5, True, 2.0), "an integer from 1 to 4"),
    ],
)
def test_options_take_what_the_facts_say(kind, fits, wrong, says):
    assert [misfit(value, kind) for value in fits] == [None] * len(fits)
    assert {misfit(value, kind) for value in wrong} == {says}


def test_one_that_cant_be_loaded_is_said_and_breaks_nothing_else(install):
    install("raise ImportError('it lacks a library')", "outsider = outsider:Outsider")
    with pytest.raises(
        RuntimeMissing, match=r"'outsider' of another distribution .* cannot be loaded: it lacks a library"
    ):
        runtime("outsider")
    states = {state.name: state for state in diagnose()}
    assert "cannot be loaded" in states["outsider"].missing
    assert states["null"].works


def test_latentcs_own_are_not_replaced(install):
    install(ADAPTER, "null = outsider:Outsider")
    assert isinstance(runtime("null"), Null)
    assert known_runtimes() == RUNTIMES
    with pytest.raises(ProfileError, match="'nul' is not a known runtime. Did you mean 'null'"):
        runtime("nul")
