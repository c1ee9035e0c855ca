"""Code that ONNX Runtime's providers compile: stored with the engine, and not compiled again at load."""

import os
from pathlib import Path

import pytest

from latentc.core.errors import CompileError
from latentc.runtimes import compiled_code, placement
from latentc.runtimes import onnxruntime as module
from latentc.runtimes.base import files_in

from .pretended_device import stand_in


@pytest.fixture
def case(make_case):
    return make_case("onnxruntime")


def test_an_engine_that_was_compiled_again_at_load_is_refused(case, tmp_path, monkeypatch):
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    asked = []
    real = placement.open_session

    def compiling(graph, options, device, settings):
        asked.append(settings)
        (Path(settings["keep"]) / f"{len(asked)}.engine").write_bytes(b"compiled")
        return real(graph, options, device, {})

    monkeypatch.setattr(placement, "open_session", compiling)
    monkeypatch.setattr(module, "open_session", compiling)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    assert asked == [{"keep": str(tmp_path / "out" / "cache")}]
    files = files_in(tmp_path / "out")
    assert "cache/1.engine" in files
    for name in ("2.engine", "3.engine"):  # what was made anew is not taken the next time either
        with pytest.raises(
            CompileError, match=f"did not accept its compiled code of out and recompiled {name}, which is not proved"
        ):
            case.adapter.load(tmp_path / "out", target, files)


def test_an_engine_that_was_compiled_again_over_the_old_one_is_refused(case, tmp_path, monkeypatch):
    """As MIGraphX's provider does with what it can't read: of the same name, and maybe of the same size."""
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    asked = []
    real = placement.open_session

    def compiling(graph, options, device, settings):
        asked.append(settings)
        if len(asked) != 2:
            (Path(settings["keep"]) / "model.mxr").write_bytes(b"compiled")
        return real(graph, options, device, {})

    monkeypatch.setattr(placement, "open_session", compiling)
    monkeypatch.setattr(module, "open_session", compiling)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    files, proved = files_in(tmp_path / "out"), tmp_path / "out" / "cache" / "model.mxr"
    case.adapter.load(tmp_path / "out", target, files).close()
    assert proved.read_bytes() == b"compiled"
    proved.write_bytes(b"proved..")
    with pytest.raises(CompileError, match=r"recompiled model.mxr, which is not proved. Remove .*out"):
        case.adapter.load(tmp_path / "out", target, files)
    assert proved.read_bytes() == b"proved..", "it was compiled elsewhere"


def test_code_that_is_compiled_at_load_is_seen_though_the_bundle_is_read_only(case, tmp_path, monkeypatch):
    """The provider can't store it there, and reports nothing; here it writes only where it may."""
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    given = []
    real, accepted = placement.open_session, [True]

    def compiling(graph, options, device, settings):
        given.append(Path(settings["keep"]))
        new = given[-1] / ("model.mxr" if len(given) == 1 else "another.mxr")
        if (len(given) == 1 or not accepted) and os.access(new.parent, os.W_OK):
            new.write_bytes(b"compiled")
        return real(graph, options, device, {})

    monkeypatch.setattr(placement, "open_session", compiling)
    monkeypatch.setattr(module, "open_session", compiling)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    files, access = files_in(tmp_path / "out"), os.access

    def read_only(path, mode, **more):
        return not (mode & os.W_OK and Path(path).is_relative_to(tmp_path)) and access(path, mode, **more)

    monkeypatch.setattr(os, "access", read_only)
    engine = case.adapter.load(tmp_path / "out", target, files)
    (lent,) = given[-1].iterdir()
    assert lent.resolve() == tmp_path / "out/cache/model.mxr", "what can't be written to isn't copied"
    engine.close()
    assert not given[-1].exists()
    accepted.clear()
    with pytest.raises(CompileError, match="recompiled another.mxr, which is not proved"):
        case.adapter.load(tmp_path / "out", target, files)
    assert not given[-1].exists()


def test_compiled_code_is_copied_where_links_require_a_privilege(tmp_path, monkeypatch):
    """On Windows, a bundle that is read-only."""

    def refused(*_):
        raise OSError("A required privilege is not held by the client")

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.engine").write_bytes(b"compiled")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(Path, "symlink_to", refused)
    with compiled_code.lent(tmp_path, ["engine.onnx", "cache/model.engine"]) as cache:
        assert [(path.name, path.read_bytes()) for path in cache.iterdir()] == [("model.engine", b"compiled")]
    assert not cache.exists()


def test_a_build_that_stores_no_code_fails(case, tmp_path, monkeypatch):
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    real = placement.open_session
    monkeypatch.setattr(placement, "open_session", lambda graph, options, device, _: real(graph, options, device, {}))
    with pytest.raises(CompileError, match="stored no compiled code in its cache.*has the option keep"):
        case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
