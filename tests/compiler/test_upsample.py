"""Nearest upsampling and a 3x3 convolution are what one transposed convolution computes, where they are merged."""

import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch

from latentc.compiler.lower import lowered
from latentc.compiler.upsample import fold_upsampling, transposed
from latentc.core.tensors import psnr_db
from latentc.export.sessions import CpuSession

RNG = np.random.default_rng(3)
CONV = "kernel_shape=[3, 3], pads=[1, 1, 1, 1]"
RESIZE = 'mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"'


def test_the_weights_are_those_of_the_pair():
    weight = RNG.standard_normal((5, 3, 3, 3)).astype(np.float32)
    sample = torch.tensor(RNG.standard_normal((2, 3, 6, 7)).astype(np.float32))
    bias = torch.tensor(RNG.standard_normal(5).astype(np.float32))
    enlarged = torch.nn.functional.interpolate(sample, scale_factor=2, mode="nearest")
    expected = torch.nn.functional.conv2d(enlarged, torch.tensor(weight), bias, padding=1)
    merged = torch.nn.functional.conv_transpose2d(sample, torch.tensor(transposed(weight)), bias, stride=2, padding=1)
    assert torch.allclose(merged, expected, atol=1e-5)


def pair(resize=RESIZE, conv=CONV, scales="{1, 1, 2, 2}", more="", out="z", kernel=3, dtype="float"):
    """A graph as text: an upsampling and a convolution."""
    count = 6 * kernel**2
    weight = ", ".join(f"{value:.3f}" for value in RNG.standard_normal(count))
    return f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[1, 2, H, W] x) => (float[A, B, C, D] {out})
        <float[3, 2, {kernel}, {kernel}] stored = {{{weight}}}, float[3] shift = {{1.5, -2, 3}},
         float[4] s = {scales}> {{
            w = Cast <to={1 if dtype == "float" else 10}> (stored)
            b = Cast <to={1 if dtype == "float" else 10}> (shift)
            given = Cast <to={1 if dtype == "float" else 10}> (x)
            y = Resize <{resize}> (given, , s)
            z = Conv <{conv}> (y, w, b)
            {more}
        }}"""


def written(text, folder):
    path = folder / "model.onnx"
    ir.save(ir.from_onnx_text(text), path)
    return path


def operators(model):
    return [node.op_type for node in model.graph]


def test_a_pair_is_merged_and_computes_the_same(tmp_path):
    path = written(pair(), tmp_path)
    x = RNG.standard_normal((1, 2, 5, 6)).astype(np.float32)
    with CpuSession(path) as session:
        expected = session.answer({"x": x})["z"]
    model = fold_upsampling(ir.load(path), path, None)
    assert operators(model) == ["Cast", "Cast", "ConvTranspose"], "the cast of the weight went with it"
    assert {*model.graph.initializers} == {"shift", "w.upsampled"}, "the others have no reader left"
    ir.save(model, tmp_path / "merged.onnx")
    with CpuSession(tmp_path / "merged.onnx") as session:
        assert psnr_db(expected, session.answer({"x": x})["z"]) > 120


@pytest.mark.parametrize(
    "case",
    [
        {"resize": 'mode="linear", coordinate_transformation_mode="asymmetric"'},
        {"resize": RESIZE.replace("floor", "ceil")},
        {"resize": RESIZE.replace("asymmetric", "align_corners")},
        {"resize": 'mode="nearest"'},
        {"scales": "{1, 1, 2, 3}"},
        {"scales": "{1, 1, 4, 4}"},
        {"conv": "kernel_shape=[3, 3], pads=[0, 0, 0, 0]"},
        {"conv": "kernel_shape=[3, 3]"},
        {"conv": "kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]"},
        {"conv": "kernel_shape=[3, 3], pads=[1, 1, 1, 1], dilations=[2, 2]"},
        {"conv": 'kernel_shape=[3, 3], auto_pad="SAME_UPPER"'},
        {"conv": "kernel_shape=[5, 5], pads=[1, 1, 1, 1]", "kernel": 5},
        {"more": "u = Relu(y)", "out": "u"},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_any_other_pair_stays(tmp_path, case):
    path = written(pair(**case), tmp_path)
    before = operators(ir.load(path))
    assert operators(fold_upsampling(ir.load(path), path, {"x": (1, 2, 4, 4)})) == before


def shapes(side, length=77):
    return {"sample": (2, 4, *side), "timestep": (1,), "encoder_hidden_states": (2, length, 32)}


@pytest.mark.parametrize(
    ("part", "shape", "merged", "kept"),
    [
        ("vae_decoder", None, 3, 0),
        ("unet", None, 0, 1),
        ("unet", shapes((16, 8)), 1, 0),
        ("unet", shapes((15, 9)), 0, 1),
    ],
)
def test_parts_compute_the_same(bundle, tmp_path, part, shape, merged, kept):
    graph = bundle("sd1").graph(part)
    sizes = shape or {**shapes((10, 6)), "latent_sample": (1, 4, 10, 6)}
    feeds = {name: RNG.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    feeds |= {"timestep": np.array([501], np.float32)}
    with lowered(graph, "key", 23, shape, ("upsample",), scratch=tmp_path) as path:
        found = operators(ir.load(path))
        assert (found.count("ConvTranspose"), found.count("Resize")) == (merged, kept)
        plain = shutil.copytree(path.parent, tmp_path / "plain")  # ONNX Runtime refuses links
    with CpuSession(graph) as session, CpuSession(plain / path.name) as lower:
        feeds = {name: feeds[name] for name in sizes if (name == "latent_sample") == (part == "vae_decoder")}
        (expected,), (answer,) = session.answer(feeds).values(), lower.answer(feeds).values()
    assert psnr_db(expected, answer) > 120
