"""Opset 18 says the same as opset 23."""

import numpy as np
import onnx_ir as ir
import pytest

from latentc.compiler.build import build
from latentc.compiler.lower import fix_shapes, lower_opset, lowered
from latentc.core.errors import CompileError
from latentc.profiles import load_profile


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_lowered_bundle_is_the_same_picture(bundle, family, tmp_path):
    opened = bundle(family)
    profile = load_profile("cpu-onnxruntime").model_copy(update={"opset": 18})
    built = build(opened, profile)
    assert all(one.artifact.parity.psnr_db > 90 for one in built.engines)
    assert all(one.artifact.fields["opset"] == 18 for one in built.engines)


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


def test_the_lowered_graph_is_gone_after_use(bundle):
    opened = bundle("sd1")
    graph = opened.graph("unet")
    before = sorted(graph.parent.iterdir())
    shape = {"sample": (2, 4, 8, 8), "timestep": (1,), "encoder_hidden_states": (2, 77, 32)}
    with lowered(graph, "key", 18, shape) as path:
        assert path != graph
        assert [value.shape.numpy() for value in ir.load(path).graph.inputs] == [*shape.values()]
    assert sorted(graph.parent.iterdir()) == before
    with lowered(graph, "key", 23, None) as path:
        assert path == graph


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


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 3.0}])
def test_what_opset_18_cannot_say_is_refused(attributes):
    with pytest.raises(CompileError, match="Use opset = 23"):
        lower_opset(attention(**attributes))
