"""Engines that are taken or refitted from another bundle (`build --like`)."""

import shutil

import pytest

from latentc.cli import show
from latentc.compiler.build import build
from latentc.compiler.cache import artifacts, verify
from latentc.compiler.engines import load
from latentc.compiler.parity import measure
from latentc.core.errors import BundleError, CompileError, ParityError
from latentc.runtimes.onnxruntime import ONNXRuntime

from .builds import NULL, ONNXRUNTIME, OTHERWISE, as_exported_here, copied, new_unet, of, static


@pytest.mark.slow
def test_engines_of_parts_that_are_the_same_are_taken(own_bundle, edit_manifest):
    opened = own_bundle()
    tuned = new_unet(copied(opened, "tuned"), edit_manifest)
    made = build(opened, ONNXRUNTIME)
    found = build(tuned, ONNXRUNTIME, like=opened)
    assert [one.how for one in found.engines] == ["taken", "compiled", "taken", "taken"]
    for ours, theirs in zip(found.engines, made.engines, strict=True):
        verify(tuned, ours.artifact)
        assert (ours.artifact == theirs.artifact) == (ours.how == "taken")
        if ours.how == "taken":
            path = f"{ours.artifact.name}/engine.data"
            assert (tuned.engines / path).samefile(opened.engines / path), "on disk once"
    assert [one.how for one in build(tuned, ONNXRUNTIME, like=opened).engines] == ["there"] * 4
    shutil.rmtree(opened.folder)
    load(tuned, ONNXRUNTIME, ["unet"]).close()


@pytest.mark.slow
def test_a_damaged_engine_is_not_taken(own_bundle):
    opened = own_bundle()
    empty = copied(opened, "empty")
    built = build(opened, ONNXRUNTIME).engines[0].artifact
    path = opened.engines / built.name / "engine.data"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match="is damaged"):
        build(empty, ONNXRUNTIME, like=opened)
    assert artifacts(empty) == []


@pytest.mark.slow
def test_what_is_taken_is_held_to_the_floor(own_bundle):
    opened = own_bundle()
    empty = copied(opened, "empty")
    build(opened, ONNXRUNTIME)
    with pytest.raises(ParityError, match="requires 500 dB"):
        build(empty, of(ONNXRUNTIME, parity_db={"f32": 500.0}), like=opened)
    assert artifacts(empty) == []


@pytest.mark.slow
def test_what_is_not_compiled_from_the_graph_is_not_taken(own_bundle):
    opened = own_bundle()
    other = copied(opened, "other")
    build(opened, NULL)
    assert {one.how for one in build(other, NULL, like=opened).engines} == {"compiled"}


def refitting(monkeypatch, refit):
    """ONNX Runtime refits what has the shipped options. A class of its own: Python remembers which ones refit."""
    able = {"refits": lambda _, options: options == ONNXRUNTIME.options, "refit": refit}
    monkeypatch.setattr("latentc.compiler.targets.runtime", lambda _: type("Refitting", (ONNXRuntime,), able)())


@pytest.mark.slow
def test_where_only_weights_differ_the_engine_is_refitted(own_bundle, edit_manifest, monkeypatch, capsys):
    opened = own_bundle()
    tuned = as_exported_here(new_unet(copied(opened, "tuned"), edit_manifest))
    unet = next(one.artifact for one in build(opened, ONNXRUNTIME).engines if one.artifact.part == "unet")
    asked = []

    def refit(self, job, other, out):
        asked.append((job.part, other))
        self.compile(job, out, lambda *_: None)

    refitting(monkeypatch, refit)
    found = build(tuned, ONNXRUNTIME, like=opened)
    assert [one.how for one in found.engines] == ["taken", "refitted", "taken", "taken"]
    assert asked == [("unet", opened.engines / unet.name)]
    assert [one.artifact.refitted_from for one in found.engines] == [None, unet.key, None, None]
    show.builds([found], as_json=False)
    assert ", refitted" in capsys.readouterr().out
    load(tuned, ONNXRUNTIME).close()
    for other in (static(ONNXRUNTIME, "64x64"), of(ONNXRUNTIME, options=OTHERWISE)):
        assert "refitted" not in {one.how for one in build(tuned, other, like=opened).engines}
    assert len(asked) == 1, "one of another shape or with other options isn't refitted"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refused", "wrong", "damaged"])
def test_what_cannot_be_refitted_is_compiled_and_that_is_said(own_bundle, edit_manifest, monkeypatch, capsys, fault):
    opened = own_bundle()
    tuned = as_exported_here(new_unet(copied(opened, "tuned"), edit_manifest))
    donor = next(one.artifact for one in build(opened, ONNXRUNTIME).engines if one.artifact.part == "unet")
    if fault == "damaged":
        path = opened.engines / donor.name / "engine.data"
        path.write_bytes(bytes(path.stat().st_size))

    def refit(self, job, other, out):
        if fault == "refused":
            raise CompileError("The graph of unet differs.")
        self.compile(job, out, lambda *_: None)
        monkeypatch.setattr("latentc.compiler.proof.measure", wrong)

    def wrong(*asked):
        monkeypatch.setattr("latentc.compiler.proof.measure", measure)
        return measure(*asked).model_copy(update={"psnr_db": 12.0})

    refitting(monkeypatch, refit)
    found = build(tuned, ONNXRUNTIME, like=opened)
    unet = next(one for one in found.engines if one.artifact.part == "unet")
    assert unet.how == "compiled"
    assert {"refused": "differs", "wrong": "to 12.0 dB", "damaged": "is damaged"}[fault] in unet.note
    assert unet.artifact.refitted_from is None
    assert unet.artifact.parity.psnr_db > 60
    show.builds([found], as_json=False)
    assert "unet: The engine was compiled, because refitting failed: " in capsys.readouterr().out
    load(tuned, ONNXRUNTIME).close()
