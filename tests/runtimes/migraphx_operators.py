"""The operators of latentc's graphs as MIGraphX gets them, held against those that it documents.

`python -m tests.runtimes.migraphx_operators BUNDLE...` prints the table of docs/migraphx.md from exported bundles;
test_migraphx_operators.py compares it with the page.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import onnx_ir as ir

from latentc.compiler.lower import lowered, needed_passes
from latentc.compiler.targets import choices
from latentc.core.bundle import Bundle, open_bundle
from latentc.core.shapes import Setting, shape_of, sizes
from latentc.profiles import load_profile
from latentc.runtimes import Target, runtime

PAGE = Path(__file__).parent.parent.parent / "docs" / "migraphx.md"
SOURCE = "ROCm/AMDMIGraphX, docs/dev/onnx_operators.rst at 0a3b3851 (operators up to opset 19)"
DOCUMENTED = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BiasGelu Cast CastLike
    Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike FastGelu Flatten Floor
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GroupNormalization GRU HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul
    MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Multinomial Neg NonMaxSuppression NonZero Not
    OneHot Or Pad Pow PRelu QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool
    QLinearLeakyRelu QLinearMatMul QLinearMul QLinearSigmoid QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round Scan Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - a list of names, one in a line, would be a page long
)
"""The operators with a tick in that page's matrix."""

LIMITS = {
    "Cast": "`saturate` is not supported",
    "ConstantOfShape": "dynamic shape is not supported",
    "Einsum": "several diagonals of one input, and one before its batches, are not supported",
    "Expand": "dynamic shape is not supported",
    "LayerNormalization": "`stash_type` is not supported",
    "Pad": "`pads` must be constant; `edge` and `wrap` are not supported",
    "Range": "dynamic start, end and delta are not supported",
    "ReduceMean": "variable `axes` are not supported",
    "Reshape": "dynamic shape and `allowzero` are not supported",
    "Resize": "`cubic`, `antialias` and `linear` of inputs that aren't constant are not supported",
    "Slice": "variable inputs are not supported",
    "Split": "dynamic shape is not supported",
    "Squeeze": "variable `axes` are not supported",
    "Tile": "dynamic shape is not supported",
    "Unsqueeze": "variable `axes` are not supported",
}
"""What the page says about operators that latentc's graphs have."""

FIXED = {
    **dict.fromkeys(("Expand", "Pad", "ReduceMean", "Reshape", "Split", "Squeeze", "Tile", "Unsqueeze"), slice(1, 2)),
    "ConstantOfShape": slice(1),
    "Range": slice(3),
    "Resize": slice(1, None),
    "Slice": slice(1, None),
}
"""Inputs that these limits want to be constant."""

EXPANDED = {
    "Attention": "MatMul, Softmax",
    "Gelu": "Erf or Tanh",
    "GroupNormalization": "ReduceMean, Sqrt, Div in f32",
    "RMSNormalization": "ReduceMean, Sqrt, Div in f32",
}
"""Operators of opset 23 that an export has, and what the lowering to opset 18 makes of them."""


def graphs(bundle: Bundle, precision: str, without: Collection[str] = ()) -> Iterator[tuple[str, ir.Model]]:
    """The graphs that MIGraphX gets, by part: at fixed sizes, in f32, or in the types of the profile for f16."""
    adapter, profile = runtime("migraphx"), load_profile("mi300x-mxr")
    for name, part in bundle.manifest.parts.items():
        if name in without:
            continue
        setting = sizes(bundle.manifest.model, part.role, Setting(*bundle.manifest.model.own_size))
        shape = {tensor.name: shape_of(tensor.shape, setting) for tensor in part.inputs}
        chosen = choices(profile, name, part.role, ("f32", "f16"))[0] if precision == "f16" else "f32"
        target = Target("migraphx", "gfx942", chosen, {}, part.inputs, part.outputs, shape)
        passes = needed_passes(adapter, target, part.weights)
        with lowered(bundle.graph(name), name, adapter.facts.newest_opset, shape, passes) as path:
            yield name, ir.load(path)


def operators(model: ir.Model) -> set[str]:
    """The operators of a graph."""
    return {node.op_type for node in model.graph}


def beyond_limits(model: ir.Model) -> list[str]:
    """The nodes of a graph that `LIMITS` excludes, but for `stash_type` and `allowzero`: see the page."""
    found, constant = [], set(model.graph.initializers.values())
    for node in model.graph:
        attributes = {name: one.value for name, one in node.attributes.items()}
        if node.op_type == "Shape" or all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
        varies = [one for one in node.inputs[FIXED.get(node.op_type, slice(0))] if one and one not in constant]
        terms = str(attributes.get("equation", "")).partition("->")[0].split(",")
        if (
            varies
            or "saturate" in attributes
            or any(len({*term.replace(".", "")}) < len(term.replace(".", "")) for term in terms)
            or (node.op_type == "Pad" and attributes.get("mode", "constant") != "constant")
            or (node.op_type == "Resize" and (attributes.get("mode") != "nearest" or attributes.get("antialias")))
        ):
            found.append(f"{node.op_type} {node.name} {attributes} {[one.name for one in varies]}")
    return found


def undocumented(bundle: Bundle) -> set[str]:
    """Operators in f16 of what an adapter changes or adds that MIGraphX does not document."""
    usual = ("text_encoder", "vae_encoder", "vae_decoder")
    return set().union(*(operators(model) for _, model in graphs(bundle, "f16", usual))) - DOCUMENTED


def exported(bundle: Bundle) -> set[str]:
    """The operators of the exported graphs."""
    return {node.op_type for name in bundle.manifest.parts for node in ir.load(bundle.graph(name)).graph}


def table(bundles: Iterable[Bundle]) -> str:
    """Rows of operators with the families that use them, and what MIGraphX documents."""
    users: dict[str, dict[str, None]] = {}
    before: dict[str, dict[str, None]] = {}
    for bundle in bundles:
        family = bundle.manifest.family
        for precision in ("f32", "f16"):
            for _, model in graphs(bundle, precision):
                for name in operators(model):
                    users.setdefault(name, {})[family] = None
        for name in exported(bundle):
            before.setdefault(name, {})[family] = None
    lines = ["| operator | families | MIGraphX |", "|---|---|---|"]
    for name in sorted(users.keys() | (before.keys() & EXPANDED.keys())):
        if name in EXPANDED and name not in users:
            what = f"expanded by latentc: {EXPANDED[name]}"
        else:
            what = "documented" if name in DOCUMENTED else "**not documented**"
            what += f"; {LIMITS[name]}" if name in LIMITS else ""
        lines.append(f"| {name} | {', '.join(sorted(users.get(name) or before[name]))} | {what} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(map(open_bundle, sys.argv[1:])))  # noqa: T201
