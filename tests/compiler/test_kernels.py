"""Operators that a device has no kernel for mean the same in those that it has."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import ShapeInferencePass

from latentc.compiler.kernels import rewrite
from latentc.compiler.lower import lowered
from latentc.core.errors import CompileError

ALL = ("ArgMax", "Attention", "GroupNormalization")


class GroupNorm(OpRun):
    """Microsoft's operator, by ContribOperators.md: channels come last, `activation` 1 is SiLU."""

    op_domain = "com.microsoft"

    def _run(self, x, gamma, beta, activation=None, channels_last=None, epsilon=None, groups=None):
        assert channels_last == 1
        rows, height, width, channels = x.shape
        each = x.reshape(rows, height * width, groups, channels // groups).astype(np.float64)
        mean, variance = each.mean((1, 3), keepdims=True), each.var((1, 3), keepdims=True)
        y = ((each - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
        return ((y / (1 + np.exp(-y)) if activation else y).astype(x.dtype),)


def norm_model(behind, groups=4):
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
        net (float[2, 8, 3, 5] x, float[8] scale, float[8] bias) => (float[2, 8, 3, 5] out)
        {{ n = GroupNormalization<num_groups={groups}, epsilon=0.001>(x, scale, bias)
        {behind} }}"""
    )


@pytest.mark.parametrize(
    ("behind", "activation", "left"),
    [
        ("out = Identity(n)", 0, {"Identity"}),
        ("s = Sigmoid(n)  out = Mul(n, s)", 1, set()),
        ("s = Sigmoid(n)  out = Mul(s, n)", 1, set()),
        ("s = Sigmoid(n)  m = Mul(n, s)  out = Add(m, n)", 0, {"Sigmoid", "Mul", "Add"}),
        ("s = Sigmoid(n)  m = Mul(n, s)  out = Add(m, s)", 0, {"Sigmoid", "Mul", "Add"}),
        ("s = Sigmoid(n)  t = Sigmoid(s)  out = Mul(n, t)", 0, {"Sigmoid", "Mul"}),
        ("s = Sigmoid(n)  out = Mul(s, s)", 0, {"Sigmoid", "Mul"}),
    ],
)
def test_a_group_norm_is_microsofts_with_silu_only_where_nothing_else_reads_it(behind, activation, left):
    feeds = {
        "x": np.random.default_rng(1).standard_normal((2, 8, 3, 5), np.float32) * 3 + 1,
        "scale": np.linspace(0.5, 2, 8, dtype=np.float32),
        "bias": np.linspace(-1, 1, 8, dtype=np.float32),
    }
    whole = onnxruntime.InferenceSession(ir.to_proto(norm_model(behind)).SerializeToString())
    expected = whole.run(None, feeds)[0]
    model = rewrite(norm_model(behind), ALL)
    kinds = {node.op_type for node in model.graph}
    assert kinds == {"Transpose", "GroupNorm"} | left
    norm = next(node for node in model.graph if node.op_type == "GroupNorm")
    assert norm.domain == "com.microsoft"
    assert norm.attributes["activation"].value == activation
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    found = ReferenceEvaluator(proto, new_ops=[GroupNorm]).run(None, feeds)[0]
    assert np.abs(found - expected).max() < 1e-5


def test_a_norm_that_is_the_graphs_own_output_keeps_its_name():
    model = rewrite(
        ir.from_onnx_text(
            """<ir_version: 10, opset_import: ["": 23]>
            net (float[1, 8, 2, 2] x, float[8] scale, float[8] bias) => (float[1, 8, 2, 2] out)
            { out = GroupNormalization<num_groups=2>(x, scale, bias) }"""
        ),
        ALL,
    )
    assert [value.name for value in model.graph.outputs] == ["out"]


def net(shape):
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
        net (float[{shape}] x, float[8] scale, float[8] bias) => (float[{shape}] out)
        {{ out = GroupNormalization<num_groups=2>(x, scale, bias) }}"""
    )


def test_a_norm_of_a_sequence_is_one_of_a_picture_that_is_one_pixel_wide():
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 8, 6), np.float32), "scale": np.ones(8, np.float32)}
    feeds["bias"] = np.zeros(8, np.float32)
    expected = onnxruntime.InferenceSession(ir.to_proto(net("2, 8, 6")).SerializeToString()).run(None, feeds)[0]
    proto = ir.to_proto(rewrite(net("2, 8, 6"), ALL))
    assert not any(node.op_type == "GroupNormalization" for node in proto.graph.node)
    found = ReferenceEvaluator(proto, new_ops=[GroupNorm]).run(None, feeds)[0]
    assert np.abs(found - expected).max() < 1e-5


def test_a_norm_of_another_rank_is_left_as_it_is():
    assert [node.op_type for node in rewrite(net("1, 8, 6, 2, 2"), ALL).graph] == ["GroupNormalization"]


def attention_model(scale="", mask="", behind="out = Identity(a)"):
    given, type_ = (", mask", ", float[5, 7] mask") if mask else ("", "")
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
        net (float[2, 5, 3, 4] q, float[2, 3, 7, 4] k, float[2, 3, 7, 4] v{type_}) => (float[2, 3, 5, 4] out)
        {{ t = Transpose<perm=[0, 2, 1, 3]>(q)
        a = Attention{scale}(t, k, v{given})
        {behind} }}"""
    )


@pytest.mark.parametrize("scale", ["", "<scale=0.7>"])
def test_attention_is_microsofts_over_rows_of_all_heads(scale):
    """ONNX Runtime's CPU provider has both operators."""
    draw = np.random.default_rng(2).standard_normal
    feeds = {
        "q": draw((2, 5, 3, 4), np.float32),
        "k": draw((2, 3, 7, 4), np.float32),
        "v": draw((2, 3, 7, 4), np.float32),
    }
    plain = ShapeInferencePass()(attention_model(scale)).model
    expected = onnxruntime.InferenceSession(ir.to_proto(plain).SerializeToString()).run(None, feeds)[0]
    proto = ir.to_proto(rewrite(plain, ALL))
    kinds = [node.op_type for node in proto.graph.node]
    assert "Attention" not in kinds
    assert kinds.count("MultiHeadAttention") == 1
    found = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]
    assert np.abs(found - expected).max() < 1e-5


def test_attention_with_a_mask_is_left_as_it_is():
    model = ShapeInferencePass()(attention_model(mask="yes")).model
    assert "Attention" in [node.op_type for node in rewrite(model, ALL).graph]


@pytest.mark.parametrize("kind", ["int32", "int64", "float"])
def test_argmax_of_integers_is_taken_of_floats(kind):
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
        net ({kind}[2, 5] ids) => (int64[2] out) {{ out = ArgMax<axis=-1, keepdims=0>(ids) }}"""
    )
    ids = np.array([[1, 49407, 49406, 49407, 0], [3, 2, 1, 3, 3]])
    proto = ir.to_proto(rewrite(model, ALL))
    assert [node.op_type for node in proto.graph.node] == (["ArgMax"] if kind == "float" else ["Cast", "ArgMax"])
    given = {"ids": ids.astype({"float": np.float32}.get(kind, kind))}
    assert ReferenceEvaluator(proto).run(None, given)[0].tolist() == [1, 0]


def test_an_operator_that_nothing_stands_in_for_is_named():
    with pytest.raises(CompileError, match=r"lists Softmax under `Facts.lacks`.* Replaceable operators: ArgMax"):
        rewrite(net("1, 8, 6"), ["Softmax", "ArgMax"])


@pytest.mark.parametrize("half", [False, True])
def test_a_whole_part_is_written_so_in_both_types(bundle, half, tmp_path):
    """Scale and shift stay in f32, which is what the kernel sums in; only what the device lacks changes."""
    graph = bundle("sd1").graph("vae_decoder")
    shape = {"latent_sample": (1, 4, 8, 8)}
    with lowered(graph, "key", 23, shape, ("half",) if half else (), lacks=ALL, scratch=tmp_path) as path:
        model = ir.load(path)
    norms = [node for node in model.graph if node.op_type == "GroupNorm"]
    every = [node for node in ir.load(graph).graph if node.op_type == "GroupNormalization"]
    assert len(norms) == len(every) > 0
    assert not any(node.op_type in ("Attention", "GroupNormalization") for node in model.graph)
    assert any(node.attributes["activation"].value for node in norms)
    for node in norms:
        assert [value.dtype for value in node.inputs][1:] == [ir.DataType.FLOAT] * 2
        assert node.inputs[0].dtype == (ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    with lowered(graph, "key", 23, shape, ("half",) if half else (), scratch=tmp_path) as path:
        assert not any(node.op_type == "GroupNorm" for node in ir.load(path).graph)
