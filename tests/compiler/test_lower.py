"""Opset 18 says the same as opset 23."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx.parser import parse_model
from onnx.reference import ReferenceEvaluator

from latentc.compiler.build import build
from latentc.compiler.lower import fix_shapes, lower_opset, lowered
from latentc.compiler.scratch import PREFIX, scratch_folder
from latentc.core.errors import CompileError
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_lowered_bundle_is_the_same_picture(bundle, family, tmp_path):
    opened = bundle(family)
    profile = load_profile("cpu-onnxruntime").model_copy(update={"opset": 18})
    built = build(opened, profile)
    assert all(one.artifact.parity.psnr_db > 90 for one in built.engines)
    assert all(one.artifact.fields.opset == 18 for one in built.engines)


def test_no_operator_of_later_sets_is_left(bundle):
    for part in bundle("sd1").manifest.parts:
        model = lower_opset(ir.load(bundle("sd1").graph(part)))
        assert model.opset_imports[""] == 18
        assert not {"Attention", "GroupNormalization", "Gelu"} & {node.op_type for node in model.graph}


def test_nodes_without_a_name_are_told_apart():
    """ONNX lets names be left out; ONNX Runtime refuses two that are the same."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 23]>
        two (float[2, 4] x) => (float[2, 4] z) { y = Gelu(x)  z = Gelu(y) }"""
    )
    names = [node.name for node in lower_opset(model).graph]
    assert len(names) > 8
    assert len(set(names)) == len(names)


SHAPE = {"sample": (2, 4, 8, 8), "timestep": (1,), "encoder_hidden_states": (2, 77, 32)}


def state(folder):
    """What any write into a folder changes: names, sizes and times."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_nlink) for path in paths}


def test_the_part_is_not_written_to_and_the_lowered_graph_is_gone_after_use(bundle, tmp_path):
    graph = bundle("sd1").graph("unet")
    before = state(graph.parent)
    with lowered(graph, "key", 18, SHAPE, scratch=tmp_path) as path:
        assert path.parent.parent == tmp_path
        assert [value.shape.numpy() for value in ir.load(path).graph.inputs] == [*SHAPE.values()]
        assert sum(one.lstat().st_size for one in path.parent.iterdir() if one != path) < 1000, "weights are linked"
        assert state(graph.parent) == before
    assert not any(tmp_path.iterdir())
    with lowered(graph, "key", 23, None, scratch=tmp_path) as path:
        assert path == graph
    assert state(graph.parent) == before


def test_two_lowerings_of_one_name_share_nothing(bundle, tmp_path):
    graph = bundle("sd1").graph("unet")
    with lowered(graph, "key", 18, SHAPE, scratch=tmp_path) as one:
        with lowered(graph, "key", 18, None, scratch=tmp_path) as other:
            assert one.name == other.name
            assert [len(ir.load(path).graph.inputs[0].shape.free_symbols()) for path in (one, other)] == [0, 3]
        assert one.exists()
        assert not other.exists()


@pytest.mark.parametrize("scratch", ["/proc", "/nowhere", None])
def test_where_the_scratch_folder_cannot_be_made_the_systems_is_taken(bundle, tmp_path, monkeypatch, scratch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with lowered(bundle("sd1").graph("unet"), "key", 18, None, scratch=scratch and Path(scratch)) as path:
        assert path.parent.parent == tmp_path
    assert not any(tmp_path.iterdir())


def test_no_scratch_folder_at_all(bundle, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with (
        pytest.raises(CompileError, match="Set TMPDIR"),
        lowered(bundle("sd1").graph("unet"), "key", 18, None, scratch=Path("/nowhere")),
    ):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from latentc.compiler.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "graph.onnx").write_text("half a graph")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    with scratch_folder(tmp_path) as alive:
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert len(list(tmp_path.iterdir())) == 2
        with scratch_folder(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([alive, other])


@pytest.mark.slow
def test_two_processes_build_one_bundle_at_once(own_bundle):
    """One engine at opset 18 and fixed sizes through each of two runtimes, and nothing else in the bundle changes."""
    opened = own_bundle("sd1")
    parts = {part: state(opened.graph(part).parent) for part in opened.manifest.parts}
    names = ("cpu-onnxruntime", "cpu-openvino-f32")
    running = [subprocess.Popen([sys.executable, "-c", BUILD, str(opened.folder), *names[::step]]) for step in (1, -1)]
    assert [process.wait() for process in running] == [0, 0]
    for name in names:
        again = build(opened, lowered_profile(name))
        assert [one.how for one in again.engines] == ["there"] * len(parts)
    assert {part: state(opened.graph(part).parent) for part in parts} == parts
    assert not list(opened.folder.rglob(f"{PREFIX}*"))


def lowered_profile(name):
    return load_profile(name).model_copy(update={"opset": 18, "shapes": Shapes(sizes=("64x64",))})


BUILD = """
import sys
from latentc.compiler.build import build
from latentc.core.bundle import open_bundle
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
for name in sys.argv[2:]:
    profile = load_profile(name).model_copy(update={"opset": 18, "shapes": Shapes(sizes=("64x64",))})
    build(open_bundle(sys.argv[1]), profile)
"""


def attention(**attributes):
    query = ir.Value(name="q", shape=ir.Shape([1, 2, 5, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Attention", [query, query, query], attributes, name="attention")
    node.outputs[0].name = "out"
    graph = ir.Graph([query], node.outputs, nodes=[node], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def test_attention_without_a_scale_takes_the_heads_width():
    import onnxruntime as ort

    model = lower_opset(fix_shapes(attention(), {"q": (1, 2, 5, 4)}))
    query = np.random.default_rng(0).standard_normal((1, 2, 5, 4), dtype=np.float32)
    scores = np.exp(query @ query.swapaxes(2, 3) / 2)
    expected = scores / scores.sum(-1, keepdims=True) @ query
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"q": query})[0] - expected).max() < 1e-6


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "node", ["GroupNormalization<num_groups=2, epsilon=0.1>(x, scale, bias)", "RMSNormalization<epsilon=0.1>(x, scale)"]
)
def test_norms_are_the_same_in_small_operators_and_in_one(node, whole):
    import onnxruntime as ort

    numbers = "{0.5, 1, 1.5, 2}"
    text = f"""<ir_version: 10, opset_import: ["": 23]> norm (float[2, 4, 3, 4] x) => (float[2, 4, 3, 4] y)
        <float[4] scale = {numbers}, float[4] bias = {numbers}> {{ y = {node} }}"""
    x = np.random.default_rng(0).normal(0.2, 0.1, (2, 4, 3, 4)).astype(np.float32)
    (expected,) = ReferenceEvaluator(parse_model(text)).run(None, {"x": x})
    lowered_norm = lower_opset(ir.from_onnx_text(text), whole=whole)
    assert ("ReduceMean" in {node.op_type for node in lowered_norm.graph}) is not whole
    session = ort.InferenceSession(ir.to_proto(lowered_norm).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"x": x})[0] - expected).max() < 1e-5


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 3.0}])
def test_what_opset_18_cannot_say_is_refused(attributes):
    with pytest.raises(CompileError, match="Use opset = 23"):
        lower_opset(attention(**attributes))
