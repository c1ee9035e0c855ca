"""FLOP counts, against PyTorch's own counter and the published figures."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from latentc.checkpoints.checkpoint import Checkpoint
from latentc.checkpoints.families import find_family
from latentc.checkpoints.modules import build
from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.parts import as_part, part_spec
from latentc.checkpoints.source import CheckpointSource
from latentc.compiler.flops import count_flops
from latentc.compiler.lower import lowered
from latentc.core.errors import BundleError, ShapeError
from latentc.core.shapes import shape_of

FAMILIES = ("sd1", "sd2", "sdxl", "sd35m")
PUBLISHED = (
    ("sd1", "unet", (64, 64), 803e9),
    ("sdxl", "unet", (128, 128), 6.76e12),
    ("sd1", "vae_decoder", (64, 64), 2.51e12),
    ("sd3", "transformer", (128, 128), 8.9e12),
    ("sd35m", "transformer", (128, 128), 11.2e12),
    ("sd35l", "transformer", (128, 128), 31.1e12),
    ("svd", "unet", (72, 128), 44.8e12),
    ("svd_xt", "unet", (72, 128), 79.9e12),
)
"""Family, part, sides in latents, FLOP of one forward of one picture or video; from Stable Diffusion 3 on counted by
hand."""
LENGTHS = {"transformer": 333}


def shapes_of(inputs, batch, height, width, length=77):
    sizes = {"batch": batch, "height": height, "width": width, "length": length, "frames": 3}
    return {tensor.name: shape_of(tensor.shape, sizes) for tensor in inputs}


def torch_flops(module, spec, shapes, device):
    """FLOP of a call as PyTorch counts it: of the kernels that it dispatches, attention as plain products.

    Its counter knows nothing of the fused attention kernel for CPUs.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    feeds = [torch.ones(shapes[t.name], dtype=getattr(torch, t.dtype), device=device) for t in spec.inputs]
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(*feeds)
    return counter.get_total_flops()


@pytest.mark.parametrize("family", [*FAMILIES, "svd"])
def test_every_part_counts_as_pytorch_counts_it(bundle, checkpoint, family):
    opened, source = bundle(family), open_checkpoint(str(checkpoint(family)))
    for name, part in opened.manifest.parts.items():
        spec = part_spec(source, name)
        module = as_part(source, spec)
        sizes = ((1, 16, 16, 77), (3, 18, 10, 231)) if spec.patch > 1 else ((1, 16, 16, 77), (3, 17, 9, 231))
        for batch, height, width, length in sizes:
            shapes = shapes_of(part.inputs, batch, height, width, length)
            counted = count_flops(opened.graph(name), shapes)
            assert counted == torch_flops(module, spec, shapes, "cpu"), name


def operators(graph):
    return {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}


@pytest.mark.parametrize("shape", [None, "fixed"])
def test_lowering_doesn_t_change_the_count(bundle, shape):
    opened = bundle("sd1")
    shapes = shapes_of(opened.part("unet").inputs, 2, 17, 12)
    whole = count_flops(opened.graph("unet"), shapes)
    with lowered(opened.graph("unet"), f"flops-{shape}", 18, shapes if shape else None) as graph:
        assert "Attention" in operators(opened.graph("unet"))
        assert "Attention" not in operators(graph)
        assert count_flops(graph, shapes) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("family", "part", "sides", "published"), PUBLISHED)
def test_pytorch_counts_the_published_figures(family, part, sides, published):
    """So that agreeing with PyTorch's counter is agreeing with the published figures; on the meta device, at once."""
    spec, module = full_size(family, part)
    shapes = shapes_of(spec.inputs, 1, *sides, LENGTHS.get(part, 77))
    assert torch_flops(module, spec, shapes, "meta") == pytest.approx(published, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "part", "sides", "published"), [one for one in PUBLISHED if one[0] == "sd1"])
def test_full_size_graphs_count_as_published(tmp_path, monkeypatch, family, part, sides, published):
    """Traced at one size: free ones, which the tiny parts are counted with, take three times as long. SDXL's UNet takes
    half a minute, and has no operator that the tiny one doesn't have.
    """
    from torch.export import Dim

    sizes = {"batch": 1, "height": sides[0], "width": sides[1], "length": 77}
    monkeypatch.setattr("latentc.export.trace._sizes", lambda _: (sizes, dict.fromkeys(sizes, Dim.STATIC)))
    graph = tmp_path / "model.onnx"
    spec = full_size_graph(family, part, graph)
    counted = count_flops(graph, shapes_of(spec.inputs, 1, *sides))
    assert counted == pytest.approx(published, rel=0.01)


def full_size(family, part):
    """A part's module at its published size, on the meta device: structure, and no weights."""
    facts = find_family(family)
    configs = {component.name: facts.config(component.name) for component in facts.components}
    checkpoint = Checkpoint(
        facts, CheckpointSource("folder", "none"), configs, facts.config("scheduler"), {}, "diffusers", {}
    )
    spec = part_spec(checkpoint, part)
    module = build(facts.component(spec.component), configs[spec.component])
    return spec, as_part(checkpoint, spec, module.to("meta"))  # AlphaBlender of diffusers leaves a number on the CPU


def full_size_graph(family, part, path):
    """Trace a part at its published size into a graph that refers to weights which aren't there."""
    import onnx_ir as ir
    import torch

    from latentc.export.trace import trace

    spec, module = full_size(family, part)
    zeros = {name: torch.zeros(()).expand(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(zeros, assign=True)  # one number, seen from everywhere: no memory
    model = trace(spec, module.requires_grad_(False))
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor.size > 128:
            value.const_value = ir.ExternalTensor(
                "model.onnx_data", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name, base_dir=path.parent
            )
    ir.save(model, path)
    return spec


def graph_of(path, op, shapes, out_rank, attributes=None, opset=23, outputs=1, domain=""):
    """A graph of one operator."""
    names = [f"in{index}" for index in range(len(shapes))]
    node = helper.make_node(op, names, [f"out{i}" for i in range(outputs)], domain=domain, **(attributes or {}))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}.{axis}" for axis in range(len(shape))])
        for name, shape in zip(names, shapes, strict=True)
    ]
    result = helper.make_tensor_value_info("out0", TensorProto.FLOAT, [f"o{axis}" for axis in range(out_rank)])
    graph = helper.make_graph([node], "one", inputs, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, path)
    return path, dict(zip(names, shapes, strict=True))


@pytest.mark.parametrize(
    ("op", "shapes", "rank", "attributes", "expected"),
    [
        ("MatMul", [(5, 7), (7, 3)], 2, {}, 2 * 5 * 7 * 3),
        ("MatMul", [(4, 1, 5, 7), (6, 7, 3)], 4, {}, 2 * 24 * 5 * 7 * 3),
        ("MatMul", [(7,), (7,)], 0, {}, 2 * 7),
        ("Gemm", [(7, 5), (3, 7), (3,)], 2, {"transA": 1, "transB": 1}, 2 * 5 * 7 * 3),
        ("Conv", [(2, 6, 9, 9), (4, 6, 3, 3)], 4, {"strides": [2, 2]}, 2 * (2 * 4 * 4 * 4) * 6 * 9),
        ("Conv", [(2, 6, 9, 9), (6, 1, 3, 3)], 4, {"group": 6, "pads": [1] * 4}, 2 * (2 * 6 * 81) * 9),
        ("ConvTranspose", [(1, 6, 5, 5), (6, 4, 2, 2)], 4, {"strides": [2, 2]}, 2 * (6 * 25) * 4 * 4),
        ("Einsum", [(2, 5, 7), (2, 7, 3)], 3, {"equation": "bij, bjk -> bik"}, 2 * 2 * 5 * 7 * 3),
        ("Einsum", [(5, 7)], 2, {"equation": "ij->ji"}, 0),
        ("Attention", [(2, 8, 10, 16), (2, 8, 12, 16), (2, 8, 12, 4)], 4, {}, 2 * 2 * 8 * 10 * 12 * (16 + 4)),
        # three axes: heads and width in one; half as many heads of keys and values
        (
            "Attention",
            [(2, 10, 128), (2, 12, 64), (2, 12, 16)],
            3,
            {"q_num_heads": 8, "kv_num_heads": 4},
            2 * 2 * 8 * 10 * 12 * (16 + 4),
        ),
    ],
)
def test_operators_by_hand(tmp_path, op, shapes, rank, attributes, expected):
    graph, feeds = graph_of(tmp_path / "one.onnx", op, shapes, rank, attributes)
    assert count_flops(graph, feeds) == expected


def test_a_batch_twice_as_large_is_twice_the_work(bundle):
    opened = bundle("sd1")
    inputs = opened.part("unet").inputs
    one, two = (count_flops(opened.graph("unet"), shapes_of(inputs, batch, 16, 16)) for batch in (1, 2))
    per_call = 2 * (32 * 128 + 128 * 128)  # the timestep's own two layers see one row whatever the batch
    assert abs(2 * one - two) <= per_call


def test_what_can_t_be_counted_is_refused(tmp_path, bundle):
    graph, feeds = graph_of(tmp_path / "rewritten.onnx", "FusedConv", [(1, 4, 8, 8)], 4, domain="com.microsoft")
    with pytest.raises(BundleError, match=r"com\.microsoft\.FusedConv"):
        count_flops(graph, feeds)
    graph, feeds = graph_of(tmp_path / "lstm.onnx", "LSTM", [(3, 1, 4), (1, 20, 4), (1, 20, 5)], 4, {"hidden_size": 5})
    with pytest.raises(BundleError, match="LSTM"):
        count_flops(graph, feeds)
    graph, feeds = graph_of(tmp_path / "three.onnx", "Einsum", [(2, 2)] * 3, 2, {"equation": "ij,jk,kl->il"})
    with pytest.raises(BundleError, match="Einsum"):
        count_flops(graph, feeds)
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(BundleError, match="ONNX graph"):
        count_flops(tmp_path / "noise.onnx", {})

    opened = bundle("sd1")
    right = shapes_of(opened.part("unet").inputs, 2, 16, 16)
    for wrong, said in (
        ({"timestep": (1,)}, "Missing: .*encoder_hidden_states"),
        (right | {"more": (1,)}, "unknown: .*more"),
        (right | {"sample": (2, 5, 16, 16)}, "sample.* cannot have"),
        (right | {"sample": (2, 4, 16)}, "sample.* cannot have"),
    ):
        with pytest.raises(ShapeError, match=said):
            count_flops(opened.graph("unet"), wrong)


def test_a_size_that_isn_t_known_is_refused(tmp_path):
    """A shape that hangs on the values of an input: no count, rather than one that leaves the operator out."""
    nodes = [
        helper.make_node("NonZero", ["a"], ["found"]),
        helper.make_node("Cast", ["found"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["rows", "b"], ["out"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("a", TensorProto.FLOAT, [4]), value("b", TensorProto.FLOAT, [4, 4])]
    graph = helper.make_graph(nodes, "free", inputs, [value("out", TensorProto.FLOAT, ["n", 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "free.onnx")
    with pytest.raises(ShapeError, match=r"MatMul .* does not follow"):
        count_flops(tmp_path / "free.onnx", {"a": (4,), "b": (4, 4)})
