"""Operators that a device has no kernel for mean the same in those that it has."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import ShapeInferencePass

from latentc.compiler.cases import reference
from latentc.compiler.half import to_half
from latentc.compiler.kernels import rewrite
from latentc.compiler.lower import lowered, weights_of
from latentc.core.errors import CompileError
from latentc.core.tensors import psnr_db

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


def attention_model(given="", mask="", keys="7", queries="5"):
    """`mask` is its type; with `keys` or `queries` of a name their number is free."""
    type_ = f", {mask} mask" if mask else ""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
        net (float[2, {queries}, 3, 4] q, float[2, 3, {keys}, 4] k, float[2, 3, {keys}, 4] v{type_})
        => (float[2, 3, {queries}, 4] out)
        {{ t = Transpose<perm=[0, 2, 1, 3]>(q)
        a = Attention{given}(t, k, v{", mask" if mask else ""})
        out = Identity(a) }}"""
    )
    return ShapeInferencePass()(model).model


def answer(model, feeds):
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]


def tensors(queries=5, keys=7):
    draw = np.random.default_rng(2).standard_normal
    sides = {"q": (2, queries, 3, 4), "k": (2, 3, keys, 4), "v": (2, 3, keys, 4)}
    return {name: draw(side, np.float32) for name, side in sides.items()}


@pytest.mark.parametrize("scale", ["", "<scale=0.7>"])
def test_attention_is_microsofts_over_rows_of_all_heads(scale):
    """ONNX Runtime's CPU provider has both operators."""
    expected = answer(attention_model(scale), tensors())
    model = rewrite(attention_model(scale), ALL)
    kinds = [node.op_type for node in model.graph]
    assert "Attention" not in kinds
    assert kinds.count("MultiHeadAttention") == 1
    assert np.abs(answer(model, tensors()) - expected).max() < 1e-5


MASKS = [(5, 7), (3, 5, 7), (2, 1, 5, 7), (1, 3, 5, 7), (2, 1, 1, 7), (1, 7)]


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize("sides", MASKS, ids=str)
def test_a_mask_is_a_bias_of_the_scores(sides, kind, free):
    """All that ONNX broadcasts. Both operators of ONNX Runtime take queries and keys in full only. CLIP's mask is bool,
    T5's float.
    """
    rng = np.random.default_rng(3)
    mask = rng.standard_normal(sides, np.float32) * 3 if kind == "float" else rng.random(sides) < 0.6
    if kind == "bool":
        mask.reshape(-1, sides[-1])[:, 0] = True  # a row that sees nothing has no defined answer
    names = {"queries": "s", "keys": "t"} if free else {}
    declared = "abcd"[: len(sides)] if free else sides
    type_ = f"{kind}[{', '.join(map(str, declared))}]"
    feeds, full = {**tensors(), "mask": mask}, np.broadcast_to(mask, (*sides[:-2], 5, 7)).copy()
    plain = attention_model("<scale=0.7>", f"{kind}[{', '.join(map(str, full.shape))}]")
    expected = answer(plain, {**feeds, "mask": full})
    model = rewrite(attention_model("<scale=0.7>", type_, **names), ALL)
    kinds = [node.op_type for node in model.graph]
    assert "Attention" not in kinds
    assert ("Expand" in kinds) == (free or sides[-2:] != (5, 7))
    onnx.checker.check_model(ir.to_proto(model))
    assert np.abs(answer(model, feeds) - expected).max() < 1e-5
    without = answer(attention_model("<scale=0.7>"), tensors())
    assert np.abs(without - expected).max() > 1e-2, "the mask matters"


@pytest.mark.parametrize(
    ("family", "part"), [("sd1", "text_encoder"), pytest.param("sd3", "text_encoder_3", marks=pytest.mark.slow)]
)
def test_a_whole_text_encoder_gives_the_same(bundle, family, part, tmp_path):
    opened = bundle(family)
    found = reference(opened, part, None)
    with lowered(opened.graph(part), "plain", 23, None, (), lacks=["Attention"], scratch=tmp_path) as path:
        kinds = [node.op_type for node in ir.load(path).graph]
        assert "MultiHeadAttention" in kinds
        assert "Attention" not in kinds
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_of(path)))
        session = onnxruntime.InferenceSession(str(path), options)
        for case in found.cases:
            for name, wanted in case.outputs.items():
                assert psnr_db(wanted, session.run([name], case.feeds)[0]) > 100


@pytest.mark.parametrize("mask", ["", "float[7, 7]", "bool[2, 1, 7, 7]"])
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_a_causal_flag_is_microsofts(mask, free):
    names = {"queries": "s", "keys": "s"} if free else {"queries": "7"}
    feeds = tensors(queries=7)
    if mask:
        feeds["mask"] = np.tri(7, 7, 2, bool) if "bool" in mask else np.linspace(-3, 3, 49, dtype=np.float32)
        feeds["mask"] = np.broadcast_to(feeds["mask"].reshape(7, 7), (2, 1, 7, 7) if "bool" in mask else (7, 7)).copy()
    expected = answer(attention_model("<is_causal=1>", mask, **names), feeds)
    model = rewrite(attention_model("<is_causal=1>", mask, **names), ALL)
    assert "Attention" not in [node.op_type for node in model.graph]
    assert np.abs(answer(model, feeds) - expected).max() < 1e-5
    assert np.abs(answer(attention_model("", mask, **names), feeds) - expected).max() > 1e-2, "the flag matters"


@pytest.mark.parametrize(
    "given",
    [("<softcap=5.0>",), ("<is_causal=1>",), ("<is_causal=1>", "", "t", "s"), ("", "float[2, 3, 5, 6]"), ("", "long")],
    ids=str,
)
def test_attention_that_cannot_be_microsofts_stays_in_f32(given):
    """It was measured wrong in f16, so it isn't left to it."""
    if given[-1] == "long":
        model = attention_model("", "float[5, 7]")
        model.graph.inputs[-1].shape = None
    else:
        model = attention_model(*given)
    half = to_half(rewrite(model, ALL))
    attention = next(node for node in half.graph if node.op_type == "Attention")
    assert {value.dtype for value in (*attention.inputs[:3], *attention.outputs)} == {ir.DataType.FLOAT}
    assert next(node for node in half.graph if node.op_type == "Transpose").outputs[0].dtype == ir.DataType.FLOAT16


def test_a_mask_of_f16_hides_by_a_finite_number():
    """As infinity, a row that sees nothing would be NaN."""
    half = to_half(rewrite(attention_model("", "bool[5, 7]"), ALL))
    joined = next(node for node in half.graph if node.op_type == "MultiHeadAttention")
    assert {value.dtype for value in joined.inputs if value is not None} == {ir.DataType.FLOAT16}
    hidden = [value.const_value.numpy() for value in half.graph.initializers.values()]
    assert sorted(float(one) for one in hidden if one.dtype == np.float16) == [-65504.0, 0.0]


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
