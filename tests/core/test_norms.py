"""Group norms whose sums don't lose accuracy, whatever a library sums like."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from latentc.core.norms import stage_norms
from latentc.core.tensors import psnr_db

GROUPS, EPSILON = 2, 1e-3


def norm_of(shape):
    names = ("sample", "scale", "bias")
    made = helper.make_graph(
        [helper.make_node("GroupNormalization", names, ["out"], num_groups=GROUPS, epsilon=EPSILON)],
        "norm",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))
            for name, dims in zip(names, (shape, (4,), (4,)), strict=True)
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, list(shape))],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def exact(sample, scale, bias):
    """In f64, by the definition: Wu and He (2018), arXiv 1803.08494."""
    wide = sample.astype(np.float64).reshape(len(sample), GROUPS, -1)
    normal = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + EPSILON)
    dims = (1, -1, *(1,) * (sample.ndim - 2))
    return normal.reshape(sample.shape) * scale.reshape(dims) + bias.reshape(dims)


@pytest.mark.parametrize("shape", [("n", 4, "h", "w"), ("n", 4, "w"), (2, 4, 6, 5)])
def test_it_is_the_same_norm(shape):
    random = np.random.default_rng(0)
    dims = [{"n": 2, "h": 6, "w": 5}.get(dim, dim) for dim in shape]
    feeds = {"sample": random.standard_normal(dims, np.float32) * 3 + 1}
    feeds |= {name: random.standard_normal(4, np.float32) for name in ("scale", "bias")}
    staged = stage_norms(norm_of(shape))
    assert "GroupNormalization" not in {node.op_type for node in staged.graph}
    assert psnr_db(exact(**feeds), run(staged, feeds).astype(np.float64)) > 130


def test_large_groups_lose_no_accuracy():
    """Four million numbers, as in a decoder at 1024x1024 pixels: ONNX Runtime's own sums lose 30 dB and more."""
    sample = np.random.default_rng(0).standard_normal((1, 4, 1024, 1024), np.float32) * 2 + 5
    feeds = {"sample": sample, "scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    right = exact(**feeds)
    plain, staged = norm_of((1, 4, "h", "w")), stage_norms(norm_of((1, 4, "h", "w")))
    assert psnr_db(right, run(plain, feeds).astype(np.float64)) < 115
    assert psnr_db(right, run(staged, feeds).astype(np.float64)) > 130


def test_an_unknown_rank_is_left():
    model = norm_of(("n", 4, "h", "w"))
    model.graph.inputs[0].shape = None
    assert "GroupNormalization" in {node.op_type for node in stage_norms(model).graph}
