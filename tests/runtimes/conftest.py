"""A part small enough to be worked out by hand, and the same for the reference runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from latentc.compiler.cache import Artifact, Miss, Parity, artifacts, explain, find, load_engine, seal
from latentc.compiler.key import Key
from latentc.compiler.lower import lowered
from latentc.compiler.targets import Wanted, job_of
from latentc.core.bundle import Bundle
from latentc.core.manifest import Manifest, Part, Source, TensorInfo
from latentc.core.model import Model, TextEncoder
from latentc.core.progress import quiet
from latentc.runtimes import RUNTIMES, Target, runtime
from latentc.runtimes.cuda import RETAINED

PART = "unet"
CASES = [
    *RUNTIMES,
    *("onnxruntime CUDA", "onnxruntime WebGPU", "onnxruntime-web WebGPU", "iree Vulkan", "iree sm_80", "torch CUDA"),
    *("tensorrt sm90", "tensorrt-rtx sm89"),
]
"""Runtimes, each with a device where that isn't the CPU."""

OPSETS = {"WebGPU": 18}
"""For devices that don't compute all of the newest."""

WIDTH, CONTEXT = 8, 16
INPUTS = (
    TensorInfo(name="sample", dtype="float32", shape=("batch", 4, "height", "width")),
    TensorInfo(name="timestep", dtype="float32", shape=(1,)),
    TensorInfo(name="encoder_hidden_states", dtype="float32", shape=("batch", "length", CONTEXT)),
)
OUTPUTS = (
    TensorInfo(name="out_sample", dtype="float32", shape=("batch", 4, "height", "width")),
    TensorInfo(name="context", dtype="float32", shape=("batch", "length", WIDTH)),
)


def write_graph(path: Path, shape=None) -> Path:
    """Convolution, group norm, SiLU, time, cross-attention, convolution: opset 23, free sizes unless `shape`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(7)

    def weight(name, *dims):
        scale = np.prod(dims[1:]) ** -0.5 if len(dims) > 1 else 1.0
        return numpy_helper.from_array((scale * rng.standard_normal(dims)).astype(np.float32), name)

    weights = [
        weight("conv_in", WIDTH, 4, 3, 3),
        weight("norm.scale", WIDTH),
        weight("norm.bias", WIDTH),
        weight("to_q", WIDTH, WIDTH),
        weight("to_k", CONTEXT, WIDTH),
        weight("to_v", CONTEXT, WIDTH),
        weight("conv_out", 4, WIDTH, 3, 3),
        numpy_helper.from_array(np.array([0, 0, 2, WIDTH // 2], np.int64), "heads"),
        numpy_helper.from_array(np.array([0, 0, WIDTH], np.int64), "joined"),
        numpy_helper.from_array(np.array([0, WIDTH, -1], np.int64), "flat"),
        numpy_helper.from_array(np.array([1e-3], np.float32), "per_step"),
    ]

    def heads(name):
        return [
            helper.make_node("Reshape", [name, "heads"], [f"{name}.split"]),
            helper.make_node("Transpose", [f"{name}.split"], [f"{name}.heads"], perm=[0, 2, 1, 3]),
        ]

    nodes = [
        helper.make_node("Conv", ["sample", "conv_in"], ["x0"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["x0", "norm.scale", "norm.bias"], ["x1"], num_groups=2),
        helper.make_node("Sigmoid", ["x1"], ["gate"]),
        helper.make_node("Mul", ["x1", "gate"], ["x2"]),
        helper.make_node("Mul", ["timestep", "per_step"], ["time"]),
        helper.make_node("Add", ["x2", "time"], ["x3"]),
        helper.make_node("Shape", ["x3"], ["x3.shape"]),
        helper.make_node("Reshape", ["x3", "flat"], ["x3.flat"]),
        helper.make_node("Transpose", ["x3.flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "to_q"], ["q"]),
        helper.make_node("MatMul", ["encoder_hidden_states", "to_k"], ["k"]),
        helper.make_node("MatMul", ["encoder_hidden_states", "to_v"], ["context"]),
        *heads("q"),
        *heads("k"),
        *heads("context"),
        helper.make_node("Attention", ["q.heads", "k.heads", "context.heads"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["seen.split"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen.split", "joined"], ["seen.tokens"]),
        helper.make_node("Add", ["tokens", "seen.tokens"], ["y0"]),
        helper.make_node("Transpose", ["y0"], ["y1"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["y1", "x3.shape"], ["y2"]),
        helper.make_node("Conv", ["y2", "conv_out"], ["out_sample"], pads=[1, 1, 1, 1]),
    ]

    def info(tensor, dims):
        return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, dims)

    inputs = [info(tensor, shape[tensor.name] if shape else tensor.shape) for tensor in INPUTS]
    outputs = [info(tensor, [None] * len(tensor.shape) if shape else tensor.shape) for tensor in OUTPUTS]
    sides = shape["sample"][2:] if shape else ("height", "width")
    normal = helper.make_tensor_value_info(
        "x1", TensorProto.FLOAT, [shape["sample"][0] if shape else "batch", WIDTH, *sides]
    )
    graph = helper.make_graph(nodes, "small", inputs, outputs, weights, value_info=[normal])  # ONNX doesn't infer it
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model)
    model = onnx.shape_inference.infer_shapes(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=100)
    return path


def feeds_of(inputs, batch, height, width, length=7, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch, "height": height, "width": width, "length": length}
    feeds = {
        tensor.name: rng.standard_normal([sizes.get(dim, dim) for dim in tensor.shape]).astype(np.float32)
        for tensor in inputs
    }
    return feeds | {"timestep": np.array([321.0], np.float32)}


def bundle_at(folder: Path, inputs, outputs, location="nowhere") -> Bundle:
    """A bundle of one part, as far as a runtime looks at it."""
    part = Part(
        path=f"{PART}/model.onnx",
        role="denoiser",
        opset=23,
        weights="f32",
        parameters=1,
        inputs=inputs,
        outputs=outputs,
        digest="0" * 64,
        psnr_db=100.0,
        proved="0" * 64,
        bf16_db=40.0,
    )
    model = Model(
        text_encoders=(TextEncoder(part="text_encoder", tokenizer="tokenizer"),),
        latent_channels=4,
        downscale=8,
        scaling_factor=0.18215,
        default_size=128,
        wires=(),
    )
    manifest = Manifest(
        latentc="0.1.0",
        family="sd1",
        source=Source(kind="folder", location=location, random=True),
        model=model,
        parts={PART: part},
        files={},
        versions={},
    )
    return Bundle(folder, manifest)


def lower(adapter, device: str, graph: Path, shape=None) -> None:
    """Bring a graph to what the adapter takes for a device, in its place."""
    opset = OPSETS.get(device, adapter.facts.newest_opset)
    lacks = adapter.facts.lacks.get(device, ())
    with lowered(graph, "lowered", opset, shape, () if adapter.facts.infers_shapes else ("fold",), lacks=lacks) as path:
        if path != graph:
            shutil.copy(path, graph)


@dataclass(frozen=True)
class Case:
    """A part and a runtime to hold the contract to."""

    adapter: object
    bundle: Bundle
    target: Target
    artifact: Path
    expected: Callable | None
    """Outputs by name from feeds; None for the runtime that answers zeros."""

    def wanted(self, **changes) -> Wanted:
        """What a bundle would be asked for."""
        target = replace(self.target, **changes)
        key = Key(
            part=PART,
            part_digest="0" * 64,
            runtime=target.runtime,
            adapter=self.adapter.facts.revision,
            versions=self.adapter.versions(),
            device={"name": target.device, **self.adapter.device(target.device)},
            precision=target.precision,
            shape=dict(target.shape) if target.shape else "free",
            options={},
        )
        return Wanted(PART, target, key)

    def build(self, root: Path, graph: Path | None = None, **changes) -> Path:
        """Compile into a bundle's folder, under a header; gives the engine's folder."""
        want = self.wanted(**changes)
        folder = root / "engines" / want.name
        self.compile(folder, graph, **changes)
        seal(folder, want.fields, Parity(psnr_db=100.0, cosine=1.0, reference="none"), 0.0, "test")
        return folder

    def found(self, root: Path, **changes) -> Artifact | Miss:
        """What is in a bundle's folder of it."""
        bundle, want = Bundle(root, self.bundle.manifest), self.wanted(**changes)
        return find(bundle, PART, want.key) or explain(bundle, want.fields, artifacts(bundle))

    def load(self, root: Path | None = None, **changes):
        """Through the header, as the compiler does."""
        root = root or self.root
        artifact = self.found(root, **changes)
        assert isinstance(artifact, Artifact), artifact
        return load_engine(Bundle(root, self.bundle.manifest), artifact, self.adapter, self.wanted(**changes))

    @property
    def root(self) -> Path:
        """The bundle's folder that the artifact is in."""
        return self.artifact.parent.parent

    def compile(self, out: Path, graph: Path | None = None, **changes) -> Target:
        out.mkdir(parents=True)
        target = replace(self.target, **changes)
        self.adapter.compile(job_of(self.bundle, PART, graph or self.bundle.graph(PART), target), out, quiet)
        return target

    def static(self, out: Path, feeds) -> dict:
        """Build for the shapes of these feeds only; gives what changed of the target."""
        shape = {name: array.shape for name, array in feeds.items()}
        graph = None
        if self.adapter.facts.reads_onnx:
            graph = write_graph(out.with_name("static") / "model.onnx", shape)
            lower(self.adapter, self.target.device, graph, shape)
        self.build(out, graph, shape=shape)
        return {"shape": shape}

    def feeds(self, batch=2, height=8, width=6, seed=0):
        return feeds_of(self.target.inputs, batch, height, width, seed=seed)


def by_onnx(path: Path):
    """The graph by ONNX's own reference, which shares no code with any runtime."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))

    def run(feeds):
        return dict(zip((tensor.name for tensor in OUTPUTS), evaluator.run(None, feeds), strict=True))

    return run


def by_diffusers(folder: Path):
    """The UNet as its own library loads and calls it."""
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(folder / "unet").eval()

    def run(feeds):
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
            return {"out_sample": model(**tensors).sample.numpy()}

    return run


def usable(name: str, device: str):
    adapter = runtime(name)
    if reason := adapter.missing(device):
        pytest.skip(reason)
    return adapter


@pytest.fixture(autouse=True)
def no_gpu_in_use():
    """Contexts of a stand-in for the driver don't outlive a test."""
    yield
    RETAINED.clear()


@pytest.fixture(scope="session")
def make_case(tmp_path_factory, checkpoint):
    """`make_case("runtime")` or `make_case("runtime device")`: the part compiled for it. Don't change it."""
    made: dict[str, Case] = {}

    def make(case: str) -> Case:
        if case in made:
            return made[case]
        name, device = (*case.split(), "CPU")[:2]
        adapter = usable(name, device)
        folder = tmp_path_factory.mktemp(name)
        if name == "torch":
            from latentc.checkpoints.open import open_checkpoint
            from latentc.checkpoints.parts import part_spec

            source = checkpoint("sd1")
            spec = part_spec(open_checkpoint(str(source)), PART)
            inputs, outputs, location = spec.inputs, spec.outputs, str(source)
            expected = by_diffusers(source)
        else:
            pytest.importorskip("onnx")
            inputs, outputs, location = INPUTS, OUTPUTS, "nowhere"
            graph = write_graph(folder / PART / "model.onnx")
            expected = by_onnx(graph) if name != "null" else None
            lower(adapter, device, graph)
        target = Target(name, device, "f32", {}, inputs, outputs)
        one = Case(adapter, bundle_at(folder, inputs, outputs, location), target, folder, expected)
        made[case] = replace(one, artifact=one.build(folder / "built"))
        return made[case]

    return make


@pytest.fixture(params=CASES)
def case(request, make_case) -> Case:
    return make_case(request.param)


@pytest.fixture(scope="session")
def make_engine(make_case):
    """`make_engine(runtime)`: its engine. Don't close it."""
    loaded: dict[str, object] = {}

    def make(name: str):
        if name not in loaded:
            loaded[name] = make_case(name).load()
        return loaded[name]

    yield make
    for engine in loaded.values():
        engine.close()


@pytest.fixture
def engine(case, make_engine):
    device = case.target.device
    return make_engine(case.target.runtime if device == "CPU" else f"{case.target.runtime} {device}")
