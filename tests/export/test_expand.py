"""Graphs that ONNX Runtime's optimizer fused for a GPU, as Olive calls it, compute the same in standard operators."""

import warnings

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from latentc.export.expand import EXPANSIONS, expand


def run(model, feeds, path):
    ir.save(model, path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


def test_what_olive_fuses_computes_what_pytorch_does(tmp_path):
    """PyTorch's own export of a UNet of diffusers, with every operator that the optimizer fuses in one."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    unet.set_attn_processor(AttnProcessor())
    path, names = tmp_path / "model.onnx", ["sample", "timestep", "encoder_hidden_states"]
    example = (torch.randn(2, 4, 8, 8), torch.tensor([5.0]), torch.randn(2, 7, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about its older exporter, whose graphs the optimizer knows
        torch.onnx.export(
            unet, example, str(path), dynamo=False, opset_version=14, input_names=names, output_names=["out_sample"],
            dynamic_axes={"sample": {0: "B", 2: "H", 3: "W"}, "encoder_hidden_states": {0: "B", 1: "L"}},
        )  # fmt: skip
        chosen = FusionOptions("unet")
        made = optimize_model(str(path), "unet", optimization_options=chosen, use_gpu=True, opt_level=0)
    made.save_model_to_file(str(path))
    model = ir.load(path)
    assert set(expand(model)) == {*EXPANSIONS, "MultiHeadAttention"}
    sample, timestep, text = torch.randn(3, 4, 16, 8), torch.tensor([5.0]), torch.randn(3, 9, 32)
    feeds = dict(zip(names, (one.numpy() for one in (sample, timestep, text)), strict=True))
    (found,) = run(model, feeds, path)
    with torch.no_grad():
        wanted = unet(sample, timestep, text).sample.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def norm(sample, scale, bias, groups, epsilon, activation):
    """GroupNorm as ContribOperators.md says, of channels-last samples."""
    rows, height, width, channels = sample.shape
    grouped = sample.astype(np.float64).reshape(rows, height * width, groups, channels // groups)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    made = ((grouped - mean) / np.sqrt(var + epsilon)).reshape(sample.shape) * scale + bias
    return made / (1 + np.exp(-made)) if activation else made


@pytest.mark.parametrize("last", [1, 0])
@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize(
    ("skip", "bias", "said"),
    [
        (None, False, True), ((2, 4, 6, 8), True, True), ((2, 1, 1, 8), False, True), ((2, 8), True, True),
        ((2, 4, 6, 8), False, False), ((2, 1, 1, 8), True, False), ((2, 8), False, False),
    ],
)  # fmt: skip
def test_norms_are_what_the_documentation_says(tmp_path, skip, bias, said, activation, last):
    """Also for a skip whose shape the graph does not say."""
    rng = np.random.default_rng(4)
    arrays = {"x": (2, 4, 6, 8), "scale": (8,), "bias": (8,)}
    arrays |= {} if skip is None else {"skip": skip, **({"more": (8,)} if bias else {})}
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    wanted_sum = feeds["x"].astype(np.float64)
    if skip is not None:
        wanted_sum = wanted_sum + feeds["skip"].reshape(2, *(skip[1:3] if len(skip) == 4 else (1, 1)), 8)
        wanted_sum = wanted_sum + feeds.get("more", np.float32(0))
    wanted = [norm(wanted_sum, feeds["scale"], feeds["bias"], 4, 1e-3, activation), wanted_sum]
    if not last:
        wanted = [one.transpose(0, 3, 1, 2) for one in wanted]
        feeds = {name: one.transpose(0, 3, 1, 2).copy() if one.ndim == 4 else one for name, one in feeds.items()}
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=name, shape=ir.Shape(one.shape), type=kind) for name, one in feeds.items()]
    nodes, takes = [], [*inputs]
    if not said:
        nodes = [ir.node("Identity", [inputs[3]])]
        nodes[0].outputs[0].name, takes[3] = "same", nodes[0].outputs[0]
    chosen = {"activation": activation, "groups": 4, "epsilon": 1e-3, **({} if last else {"channels_last": 0})}
    op, count = ("GroupNorm", 1) if skip is None else ("SkipGroupNorm", 2)
    node = ir.node(op, takes, chosen, domain="com.microsoft", num_outputs=count)
    for index, value in enumerate(node.outputs):
        value.name, value.type = f"y{index}", kind
    graph = ir.Graph(inputs, node.outputs, nodes=[*nodes, node], opset_imports={"": 18, "com.microsoft": 1}, name="g")
    model = ir.Model(graph, ir_version=8)
    assert expand(model) == (op,)
    for one, right in zip(run(model, feeds, tmp_path / "x.onnx"), wanted, strict=False):
        np.testing.assert_allclose(one, right, atol=1e-5)
