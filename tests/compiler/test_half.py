"""Lowering to f16: what is narrowed, what stays wide, and that the proof sees what f16 can't hold."""

import math
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from latentc.cli.why import why as show_why
from latentc.compiler.build import build
from latentc.compiler.cache import Parity, find
from latentc.compiler.half import to_half
from latentc.compiler.lower import lower_opset, lowered, needed_passes
from latentc.compiler.parity import measure_typed
from latentc.compiler.plan import plan
from latentc.compiler.proof import check_floor
from latentc.compiler.targets import wanted
from latentc.core.bundle import open_bundle
from latentc.core.errors import CompileError, ParityError, ProfileError, RuntimeMissing
from latentc.core.recipes import RECIPES
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import Shapes, load_profile
from latentc.runtimes import Target, runtime
from latentc.runtimes.iree import IREE

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
iree = pytest.mark.skipif(runtime("iree").missing("CPU") is not None, reason=str(runtime("iree").missing("CPU")))


def graph_of(nodes, weights=(), opset=23, outputs=("y",), width=4):
    """A graph from `x` [2, width] f32 to `outputs`."""
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    made = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, None]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(shape_inference.infer_shapes(model))


def run(model, x, operators=()):
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return ReferenceEvaluator(proto, new_ops=list(operators)).run(None, {"x": x})


def types(model):
    """What each operator answers in, casts left out."""
    return [(node.op_type, node.outputs[0].dtype.name) for node in model.graph if node.op_type != "Cast"]


X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def test_products_are_narrow_and_softmax_is_wide():
    nodes = [("MatMul", ["x", "w"], ["a"]), ("Softmax", ["a"], ["b"], {"axis": -1}), ("MatMul", ["b", "w"], ["y"])]
    model = graph_of(nodes, [("w", W)])
    wanted = run(model, X)[0]
    half = to_half(model)
    assert types(half) == [("MatMul", "FLOAT16"), ("Softmax", "FLOAT"), ("MatMul", "FLOAT16")]
    assert [(value.name, value.dtype.name) for value in half.graph.outputs] == [("y", "FLOAT")]
    (found,) = run(half, X)
    assert found.dtype == np.float32
    assert 50 < psnr_db(wanted, found) < 100, "f16 was computed, not f32"
    assert [value.dtype.name for value in half.graph.initializers.values()] == ["FLOAT16"], "one weight, used twice"


def test_what_leads_to_a_sine_stays_wide():
    """At 999 times a frequency f16 is off by a quarter, and a sine by as much."""
    nodes = [
        ("Mul", ["x", "w"], ["phase"]),
        ("Sin", ["phase"], ["sine"]),
        ("Cos", ["phase"], ["cosine"]),
        ("Add", ["sine", "cosine"], ["y"]),
    ]
    model = graph_of(nodes, [("w", np.float32([1.0, 0.87, 0.5, 0.1]))])
    x = np.full((2, 4), 999.0, np.float32)
    wanted = run(model, x)[0]
    half = to_half(model)
    assert types(half) == [("Mul", "FLOAT"), ("Sin", "FLOAT"), ("Cos", "FLOAT"), ("Add", "FLOAT16")]
    np.testing.assert_allclose(run(half, x)[0], wanted, atol=2e-3)


def test_weights_that_are_f16_already_are_used_as_they_lie():
    nodes = [("Cast", ["w"], ["wide"], {"to": 1}), ("MatMul", ["x", "wide"], ["y"])]
    half = to_half(graph_of(nodes, [("w", W.astype(np.float16))]))
    assert [node.op_type for node in half.graph] == ["Cast", "MatMul", "Cast"], "of the input, and of the output"
    assert half.graph[1].inputs[1].name == "w"


def test_a_weight_that_f16_can_t_hold_is_refused():
    big = W.copy()
    big[0, 0] = 1e5
    with pytest.raises(CompileError, match=r"The weight w contains 1e\+05, but the largest f16 is 65504"):
        to_half(graph_of([("MatMul", ["x", "w"], ["y"])], [("w", big)]))


def test_a_graph_that_doesn_t_state_its_types_is_refused():
    """It would be left in f32, and called f16."""
    model = graph_of([("MatMul", ["x", "w"], ["a"]), ("Relu", ["a"], ["y"])], [("w", W)])
    model.graph[0].outputs[0].type = None
    with pytest.raises(CompileError, match="The graph does not state the output type"):
        to_half(model)


def test_an_input_that_is_an_output_and_two_outputs():
    nodes = [("Add", ["x", "w"], ["y"]), ("Mul", ["y", "y"], ["z"])]
    model = graph_of(nodes, [("w", np.float32([1, 2, 3, 4]))], outputs=("y", "z"))
    wanted = run(model, X)
    half = to_half(model)
    assert [value.name for value in half.graph.outputs] == ["y", "z"]
    for one, other in zip(wanted, run(half, X), strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=2e-3)


def naive(op):
    """A norm that computes everything in the type of its input, and doesn't follow `stash_type`."""
    from onnx.reference.op_run import OpRun

    def computed(self, x, scale, bias=None, epsilon=None, num_groups=None, **_):
        kind = x.dtype.type
        rows = x.reshape(2, num_groups or 1, -1)
        count = kind(rows.shape[-1])
        mean = np.zeros((*rows.shape[:2], 1), kind) if op == "RMSNormalization" else total(rows / count)
        centred = rows - mean
        y = (centred / np.sqrt(total(centred * centred / count) + kind(epsilon or 1e-5))).reshape(x.shape)
        shape = (1, -1, 1, 1) if op == "GroupNormalization" else (-1,)
        return ((y * scale.reshape(shape) + (0 if bias is None else bias.reshape(shape))).astype(kind),)

    def total(rows):
        added = np.zeros((*rows.shape[:2], 1), rows.dtype)
        for column in np.moveaxis(rows, -1, 0):  # numpy's own sum of f16 adds up in f32
            added = added + column[..., None]
        return added

    return type(op, (OpRun,), {"_run": computed, "op_domain": ""})


NORMS = {
    "GroupNormalization": ("8, 4, 8", "8", ", bias", "<num_groups=2>"),
    "LayerNormalization": ("256", "256", ", bias", ""),
    "RMSNormalization": ("256", "256", "", ""),
}


@pytest.mark.parametrize(("deviation", "mean"), [(600, 0), (1, 400)], ids=["large", "far from zero"])
@pytest.mark.parametrize("op", NORMS)
def test_norms_of_large_values_are_right_where_the_library_sums_in_f16(op, deviation, mean):
    """A square of 600 is out of range of f16, and a sum of many terms of 400 loses what differs between them."""
    sides, channels, bias, attributes = NORMS[op]
    declared = f", float[{channels}] bias" if bias else ""
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    net (float[2, {sides}] x, float[{channels}] scale{declared}) => (float[2, {sides}] y)
    {{ n = {op}{attributes}(x, scale{bias})  y = Relu(n) }}"""

    def model():
        proto = onnx.parser.parse_model(text)
        values = {"scale": np.linspace(0.5, 2, int(channels)), "bias": np.linspace(-1, 1, int(channels))}
        for value in list(proto.graph.input)[1:]:
            array = values[value.name].astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            proto.graph.input.remove(value)
        made = ir.from_proto(proto)
        made.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return made

    x = np.random.default_rng(0).standard_normal([2, *map(int, sides.split(","))]) * deviation + mean
    x = x.astype(np.float16).astype(np.float32)
    wanted = run(model(), x, [naive(op)])[0]
    half = to_half(model(), norms=False)
    assert types(half) == [(op, "FLOAT"), ("Relu", "FLOAT16")]
    found = run(half, x, [naive(op)])[0]
    assert psnr_db(wanted, found) > 55
    if op != "RMSNormalization":  # always f32
        narrow = to_half(model())
        assert types(narrow) == [(op, "FLOAT16"), ("Relu", "FLOAT16")]
        with np.errstate(all="ignore"):
            (lost,) = run(narrow, x, [naive(op)])
        assert not psnr_db(wanted, lost) > 40, "the floor of f16"


def test_norms_are_f16_only_on_devices_that_are_known_to_sum_in_f32():
    def passes(name, device):
        return needed_passes(runtime(name), Target(name, device, "f16", {}, (), ()))

    for device in (*runtime("tensorrt").facts.devices, "sm86+sm89"):
        assert "norms" in passes("tensorrt", device)
        assert "norms" in passes("tensorrt-rtx", device)
    unknown = [one for one in runtime("onnxruntime").facts.devices if "norms" in passes("onnxruntime", one)]
    assert {one.partition("-")[0] for one in unknown} == {"TensorRT", "MIGraphX", "DirectML", "CoreML"}
    assert "norms" in passes("migraphx", "gfx942")
    assert {passes("iree", one) for one in runtime("iree").facts.devices} == {("half", "fold")}
    f32 = Target("tensorrt", "sm90", "f32", {}, (), ())
    assert "norms" not in needed_passes(runtime("tensorrt"), f32)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
@pytest.mark.parametrize("opset", [18, 23])
def test_every_part_is_a_valid_graph_in_f16(bundle, part, opset):
    model = ir.load(bundle("sd1").graph(part))
    if opset == 18:
        lower_opset(model)
    half = to_half(model)
    narrow = [node for node in half.graph if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert narrow
    assert {node.outputs[0].dtype.name for node in narrow} == {"FLOAT16"}
    assert all(node.outputs[0].dtype is not None for node in half.graph), "types are known after lowering too"
    assert {value.dtype.name for value in half.graph.outputs} == {"FLOAT"}


def test_many_new_weights_are_written_to_a_file_of_their_own(bundle, monkeypatch):
    monkeypatch.setattr("latentc.compiler.lower.INLINE_BYTES", 1000)
    graph = bundle("sd1").graph("unet")
    before = sorted(graph.parent.iterdir())
    with lowered(graph, "many", 23, None, ("half",)) as path:
        assert path.with_name(f"{path.name}_data").stat().st_size > 1000
        onnx.checker.check_model(str(path))
    assert sorted(graph.parent.iterdir()) == before


# Built where the device isn't, by IREE.


@pytest.mark.slow
@iree
def test_an_engine_for_a_gpu_is_built_and_proved_without_it(own_bundle):
    opened = own_bundle("sd1")
    profile = load_profile("rx-7900-xtx").model_copy(update={"shapes": Shapes(sizes=("64x64",))})
    made = build(opened, profile)
    assert made.step_psnr_db is None, "the engines themselves can't be run here"
    parities = {one.artifact.part: one.artifact.parity for one in made.engines}
    fast = f"onnxruntime {onnxruntime.__version__} CPU"
    assert {part: parity.graph_run_by for part, parity in parities.items()} == {
        "text_encoder": fast, "vae_decoder": fast, "vae_encoder": fast, "unet": f"iree {IREE().versions()['iree']} CPU",
    }  # fmt: skip
    assert 50 < parities["unet"].psnr_db < 100, "f16 was computed, not f32"
    assert all(one.hit for one in build(opened, profile).engines)
    other = load_profile("mi300x").model_copy(update={"shapes": profile.shapes})
    assert {one.compare_seconds for one in plan(opened, other).engines} == {0}, "the graphs were compared already"
    with pytest.raises(RuntimeMissing, match="This machine has no gfx1100 GPU"):
        Pipeline.open(opened, profile)


@pytest.mark.slow
@iree
def test_a_graph_that_overflows_in_f16_is_seen_to(own_bundle, perturb):
    """Each weight is one that f16 holds; what they make of a latent isn't."""
    opened = own_bundle("sd1")
    perturb(opened, "vae_decoder", "decoder.conv_in.weight", lambda values: values * np.float32(1e5))
    opened = open_bundle(opened.folder)
    changes = {"precision": {"default": ("f16",)}, "shapes": Shapes(sizes=("64x64",))}
    profile = load_profile("mi300x").model_copy(update=changes)
    _, engines = wanted(opened, profile, to_run=False)
    want = next(want for want in engines if want.part == "vae_decoder")
    for _ in range(2):  # found, and remembered
        parity = measure_typed(opened, want.part, want.target)
        assert parity.psnr_db == -np.inf
    with pytest.raises(ParityError, match="vae_decoder in f16 through iree outputs NaN or infinity"):
        check_floor(opened, profile, want, parity)


def elsewhere(monkeypatch, tmp_path):
    """From now on this is a machine that proved nothing."""
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "elsewhere"))


@pytest.mark.slow
def test_an_engine_built_elsewhere_is_compared_before_it_draws(own_bundle, monkeypatch, tmp_path, capsys):
    opened, profile = own_bundle("sd1"), load_profile("cpu-onnxruntime")
    first = build(opened, profile).engines[0].artifact
    elsewhere(monkeypatch, tmp_path)
    show_why(opened, [profile], as_json=False)
    assert capsys.readouterr().out.count("not yet proved on this machine") == 4
    again = build(opened, profile)
    assert all(one.hit for one in again.engines)
    assert again.engines[0].artifact.parity == first.parity
    Pipeline.open(opened, profile).close()


@pytest.mark.slow
def test_an_engine_built_elsewhere_that_misses_the_floor_says_so(own_bundle, monkeypatch, tmp_path):
    """It isn't asked to be built again."""
    opened, profile = own_bundle("sd1"), load_profile("cpu-onnxruntime")
    first = build(opened, profile).engines[0].artifact
    elsewhere(monkeypatch, tmp_path)
    strict = profile.model_copy(update={"parity_db": {**profile.parity_db, "f32": 250.0}})
    with pytest.raises(ParityError, match="requires 250 dB"):
        build(opened, strict)
    assert find(opened, first.part, first.key) is not None
    with pytest.raises(ParityError, match="requires 250 dB"):
        Pipeline.open(opened, strict)


@iree
def test_what_a_runtime_needs_of_a_profile_is_said(bundle):
    profile = load_profile("cpu-iree")
    with pytest.raises(ProfileError, match="Write opset = 18"):
        build(bundle("sd1"), profile.model_copy(update={"opset": 23}))


def test_without_a_referee_nothing_is_built_for_an_absent_device(bundle, monkeypatch):
    monkeypatch.setattr("latentc.compiler.parity.GRAPH_REFEREES", {"tensorrt-rtx": ("f16",)})  # runs on no CPU
    target = Target("iree", "gfx942", "f16", {}, (), ())
    with pytest.raises(RuntimeMissing, match="This machine has no gfx942, so unet must be proved on the CPU"):
        measure_typed(bundle("sd1"), "unet", target)


def test_advice_on_an_overflow_can_be_followed():
    """SDXL's VAE on Qualcomm's NPU, which has no wider type."""
    parity = Parity(psnr_db=math.nan, cosine=math.nan, reference="PyTorch, at export", graph_run_by="iree")

    def said(name):
        profile = load_profile(name)
        target = SimpleNamespace(precision="f16", device=profile.device, recipe=RECIPES["f16"])
        with pytest.raises(ParityError) as refused:
            check_floor(None, profile, SimpleNamespace(part="vae_decoder", target=target), parity)
        return str(refused.value)

    assert "QNN computes in f16 only: export again with" in said("snapdragon-x-elite")
    assert said("mi300x").endswith("Give vae_decoder a wider type under [precision].")
