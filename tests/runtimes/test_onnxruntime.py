"""ONNX Runtime: no flavour over another, no provider in another's place."""

import numpy as np
import pytest

from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.runtimes import onnxruntime as module
from latentc.runtimes.onnxruntime import ONNXRuntime


@pytest.fixture
def case(make_case):
    return make_case("onnxruntime")


def test_several_flavours_in_one_folder_are_named(monkeypatch):
    pytest.importorskip("onnxruntime")
    both = {"onnxruntime": "1.31.1", "onnxruntime-webgpu": "1.27.0"}
    monkeypatch.setattr(module, "_flavours", lambda: both)
    reason = ONNXRuntime().missing("CPU")
    assert reason is not None
    assert "installed: onnxruntime 1.31.1, onnxruntime-webgpu 1.27.0." in reason
    assert "pip uninstall -y onnxruntime onnxruntime-webgpu && pip install" in reason
    assert ONNXRuntime().devices() == ()


def test_flavours_are_found_by_the_folder_they_own(tmp_path, monkeypatch):
    owned = "onnxruntime/__init__.py,sha256=x,1\n"
    for name, record in (
        ("onnxruntime_gpu", owned),
        ("onnxruntime", owned),
        ("onnxruntime_extensions", "onnxruntime_extensions/__init__.py,,\n"),
        ("onnx", "onnx/__init__.py,,\n"),
    ):
        folder = tmp_path / f"{name}-1.2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2.3\n")
        (folder / "RECORD").write_text(record)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert module._flavours.__wrapped__() == {"onnxruntime": "1.2.3", "onnxruntime-gpu": "1.2.3"}


def test_a_folder_that_lost_its_files_is_named(monkeypatch):
    """What `pip uninstall` of one flavour leaves of the other: a package without InferenceSession."""
    import types

    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", types.ModuleType("onnxruntime"))
    reason = ONNXRuntime().missing("CPU")
    assert reason is not None
    assert "can't be loaded" in reason
    assert "pip uninstall -y" in reason


def test_a_provider_that_steps_in_is_refused(case, tmp_path, monkeypatch):
    library = module._library()
    make = library.InferenceSession

    class Fallen:
        def __init__(self, path, options, providers):
            assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
            self.session = make(path, options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name):
            return getattr(self.session, name)

    monkeypatch.setattr(library, "InferenceSession", Fallen)
    monkeypatch.setitem(module.PROVIDERS, "CUDA", "CUDAExecutionProvider")
    monkeypatch.setitem(module.PRECISIONS, "CUDA", ("f32",))
    monkeypatch.setattr(library, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises((RuntimeMissing, CompileError), match="CUDAExecutionProvider was asked for|fallback"):
        case.compile(tmp_path / "out", device="CUDA")


def test_a_precision_that_it_only_casts_to_is_refused(case, tmp_path):
    assert case.adapter.precisions("CPU") == ("f32",)
    with pytest.raises(CompileError, match="doesn't compute in f16 on CPU; it has: f32"):
        case.compile(tmp_path / "out", precision="f16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intra_op_threads": 1}, "Did you mean 'intra_op_num_threads'"),
        ({"graph_optimization_level": "most"}, "one of: all, layout, extended, basic, off"),
        ({"intra_op_num_threads": True}, "a whole number"),
        ({"enable_mem_pattern": 1}, "true or false"),
        ({"session.intra_op.allow_spinning": 0.5}, "true, false, a whole number or a string"),
    ],
)
def test_options_that_it_refuses(case, options, message):
    with pytest.raises(ProfileError, match=message):
        case.adapter.check(options)


@pytest.mark.parametrize("level", ["off", "basic", "extended", "layout", "all"])
def test_what_was_optimized_is_computed_as_it_was(case, tmp_path, level):
    """Loading optimizes nothing: outputs equal those of a session that optimized the graph itself, to the bit."""
    import onnxruntime

    options = {
        "graph_optimization_level": level,
        "intra_op_num_threads": 1,
        "enable_mem_pattern": False,
        "session.intra_op.allow_spinning": False,
    }
    case.adapter.check(options)
    case.compile(tmp_path / "out", options=options)
    engine = case.load(tmp_path / "out", options=options)
    session = onnxruntime.SessionOptions()
    session.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, module.LEVELS[level])
    session.intra_op_num_threads = 1
    direct = onnxruntime.InferenceSession(case.bundle.graph("unet"), session, providers=["CPUExecutionProvider"])
    feeds = case.feeds()
    names = [tensor.name for tensor in case.target.outputs]
    for name, wanted in zip(names, direct.run(names, feeds), strict=True):
        np.testing.assert_array_equal(engine.run(feeds)[name], wanted)
    engine.close()


def test_the_weights_lie_outside_the_graph(case):
    sizes = {path.name: path.stat().st_size for path in case.artifact.iterdir()}
    assert sorted(sizes) == ["engine.data", "engine.json", "engine.onnx"]
    assert sizes["engine.data"] > 0
