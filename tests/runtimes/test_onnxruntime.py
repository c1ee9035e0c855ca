"""ONNX Runtime on the CPU: its precisions and options, and what it writes and loads."""

import gc
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest

from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.core.progress import quiet
from latentc.runtimes import Job
from latentc.runtimes import onnxruntime as module
from latentc.runtimes.base import files_in


@pytest.fixture
def case(make_case):
    return make_case("onnxruntime")


def test_another_providers_option_is_refused_on_the_cpu(case, tmp_path):
    with pytest.raises(ProfileError, match="CPUExecutionProvider has no option 'prefer_nhwc'"):
        case.compile(tmp_path / "out", options={"prefer_nhwc": True})


def test_a_precision_that_it_only_casts_to_is_refused(case, tmp_path):
    assert case.adapter.precisions("CPU") == ("f32",)
    with pytest.raises(CompileError, match="does not compute in f16 on CPU; it supports: f32"):
        case.compile(tmp_path / "out", precision="f16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intra_op_threads": 1}, "Did you mean 'intra_op_num_threads'"),
        ({"graph_optimization_level": "most"}, "one of: all, layout, extended, basic, off"),
        ({"intra_op_num_threads": True}, "an integer"),
        ({"enable_mem_pattern": 1}, "true or false"),
        ({"enable_cuda_graf": True}, "Did you mean 'enable_cuda_graph'"),
        ({"preferredLayout": "NCWH"}, "one of: NCHW, NHWC"),
        ({"gpu_mem_limit": True}, "an integer"),
        ({"gpu_mem_limit": -1}, "an integer from 0"),
        ({"trt_builder_optimization_level": 99}, "an integer from 0 to 5"),
        ({"trt_auxiliary_streams": -2}, "an integer from -1 to"),
        ({"trt_max_workspace_size": 1 << 63}, "an integer from 0 to 9,223,372,036,854,775,807"),
        ({"sdpa_kernel": 1024}, "an integer from 0 to 1,023"),
        ({"soc_model": 0}, "an integer from 1 to"),
        ({"enableGraphCapture": True}, "no option 'enableGraphCapture'"),  # it answers wrongly with host inputs
        ({"migraphx_arena_extend_strategy": 1}, "one of: kNextPowerOfTwo, kSameAsRequested"),
        ({"allow_nodes_on_cpu": 1}, "true or false"),
        ({"session.intra_op.allow_spinning": 0}, "true or false"),
        ({"session.dynamic_block_base": "four"}, "an integer from 0"),
    ],
)
def test_options_that_it_refuses(case, options, message):
    with pytest.raises(ProfileError, match=message):
        case.adapter.check(options)


def test_a_closed_engine_frees_its_session(case, tmp_path, monkeypatch):
    """A generator that waits for the decoder still has the denoiser's engine, and what it bound."""
    sessions, opened = [], module.open_session

    def remembered(*given):
        session = opened(*given)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(module, "open_session", remembered)
    target = case.compile(tmp_path / "out")
    sessions.clear()
    engine = case.adapter.load(tmp_path / "out", target, files_in(tmp_path / "out"))
    feeds = case.feeds(1, 8, 8)
    bound = engine.bind({name: feeds.pop(name) for name in tuple(feeds)[:1]})
    bound(feeds)
    with engine.chain(case.feeds(1, 8, 8), {}):
        engine.close()
    gc.collect()
    assert [one() for one in sessions] == [None]
    with pytest.raises(RuntimeMissing, match="closed"):
        bound(feeds)


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
    case.build(tmp_path / "out", options=options)
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


@pytest.mark.parametrize("level", ["off", "all"])
def test_a_graph_that_it_cannot_load_is_refused_when_it_is_compiled(case, tmp_path, level):
    """Also one that is written without being optimized."""
    import onnx

    model = onnx.load(case.bundle.graph("unet"), load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "NoSuchOperator"
    graph = tmp_path / "model.onnx"
    graph.write_bytes(model.SerializeToString())
    weights = case.bundle.graph("unet").parent
    shutil.copy(weights / "model.onnx_data", tmp_path)
    target = replace(case.target, options={"graph_optimization_level": level})
    (tmp_path / "out").mkdir()
    with pytest.raises(CompileError, match="ONNX Runtime refuses unet on CPU: .*NoSuchOperator"):
        case.adapter.compile(Job("unet", graph, tmp_path, target), tmp_path / "out", quiet)


def test_the_weights_lie_outside_the_graph(case):
    sizes = {path.name: path.stat().st_size for path in case.artifact.iterdir()}
    assert sorted(sizes) == ["engine.data", "engine.onnx", "key.json"]
    assert sizes["engine.data"] > 0


def test_a_graph_that_names_other_files_or_loops_is_never_opened(make_case, tmp_path, monkeypatch):
    import onnx

    case = make_case("onnxruntime")
    artifact = tmp_path / "artifact"
    shutil.copytree(case.artifact, artifact)
    whole = onnx.load(artifact / "engine.onnx", load_external_data=False)
    elsewhere, loop = onnx.ModelProto(), onnx.ModelProto()
    for model in (elsewhere, loop):
        model.CopyFrom(whole)
    stored = next(tensor for tensor in elsewhere.graph.initializer if tensor.external_data)
    next(entry for entry in stored.external_data if entry.key == "location").value = "../secret"
    body = onnx.helper.make_graph([], "body", [], [])
    loop.graph.node.append(onnx.helper.make_node("Loop", ["count", ""], ["y"], body=body))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was opened"))
    for hostile, says in ((elsewhere, r"'\.\./secret'; expected: .*'engine.data'"), (loop, r"control flow \(Loop\)")):
        (artifact / "engine.onnx").write_bytes(hostile.SerializeToString())
        with pytest.raises(CompileError, match=rf"{says}.*Remove .*\. Build again"):
            case.adapter.load(artifact, case.target, files_in(artifact))
