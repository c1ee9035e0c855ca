"""Drives the adapter to TensorRT over the library's own bindings, without the library.

    python drive_tensorrt.py BINDINGS LIBRARIES
    python drive_tensorrt.py rtx

BINDINGS is the folder that has `tensorrt_bindings`, LIBRARIES one of empty stand-ins for what they are linked with;
`rtx` is TensorRT for RTX, as it is installed. The
bindings then import, and say of every class what it has, and of every function what it takes and gives. Objects here
stand for theirs: one that is asked for what its class hasn't got, or called with what the signature doesn't take,
fails. Prints what was used, as JSON.
"""

import ctypes
import json
import os
import re
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import helper

from latentc.core.errors import CompileError
from latentc.core.manifest import TensorInfo
from latentc.core.progress import quiet
from latentc.runtimes import Job, Target, cuda, trt, trt_cache, trt_plan
from latentc.runtimes.base import files_in
from latentc.runtimes.host import Bound

SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((?P<takes>.*)\) -> (?P<gives>.+)$|^\((?P<plain>.*)\) -> (?P<plain_gives>.+)$")
ANSWERS = {
    "Builder.build_serialized_network": b"plan",
    "ITimingCache.serialize": b"timed",
    "IRuntimeCache.serialize": b"code",
    "ICudaEngine.serialize_with_config": b"other plan",
    "INetworkDefinition.num_layers": 1,
    "EngineInspector.get_engine_information": '{"Layers": [{"Name": "conv", "TacticName": "a\tb"}]}\n',
    "ICudaEngine.streamable_weights_size": 1 << 30,
    "ICudaEngine.weight_streaming_budget_v2": 100 << 20,
    "IExecutionContext.update_device_memory_size_for_shapes": 4096,
}
"""What some of them answer; the others True, 0 or an object of their class."""

used: set[str] = set()
flags: list[str] = []
"""Of enumerations, what functions were given, in turn."""


class Stand:
    """Stands for an object of a class of theirs."""

    def __init__(self, kind):
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name):
        member = _member(self._kind, name)
        what = f"{self._kind.__name__}.{name}"
        if isinstance(member, property):
            return _answer(what, _signatures(member.fget.__doc__)[0][1])
        return lambda *args, **kwargs: _call(what, member.__doc__, [self, *args], kwargs)

    def __setattr__(self, name, value):
        if name == "__class__":
            assert issubclass(value, self._kind), f"{self._kind.__name__} can't become {value.__name__}"
            object.__setattr__(self, "_kind", value)
            return
        member = _member(self._kind, name)
        assert isinstance(member, property), f"{self._kind.__name__}.{name} can't be set"
        assert member.fset, f"{self._kind.__name__}.{name} can't be set"
        _call(f"{self._kind.__name__}.{name}", member.fset.__doc__, [self, value], {})


class Module:
    """Stands for the library: its classes make stands, its enumerations and what one derives from are its own."""

    def __getattr__(self, name):
        found = getattr(bindings, name)
        if name in ("Builder", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime"):
            used.add(name)
            return lambda *args: _call(name, found.__init__.__doc__, [Stand(found), *args], {}, Stand(found))
        used.add(name)
        return found


def _member(kind, name):
    member = getattr(kind, name, None)
    assert member is not None, f"{kind.__name__} has no {name}"
    return member


def _call(what, doc, args, kwargs, made=None):
    signatures = _signatures(doc)
    for takes, gives in signatures:
        if _fit(takes, args, kwargs):
            flags.extend(f"{what} {flag.name}" for flag in args if hasattr(type(flag), "__members__"))
            return made or _answer(what, gives)
    raise AssertionError(f"{what} doesn't take {args[1:]} {kwargs}; it takes {[takes for takes, _ in signatures]}")


def _answer(what, gives):
    used.add(what)
    if what in ANSWERS:
        return ANSWERS[what]
    if (kind := _class(gives)) is not None:
        return kind.__members__["ATTENTION_INPUT"] if gives.endswith("LayerType") else Stand(kind)
    return {"bool": True, "int": 0, "str": "no such node", "None": None}[gives]


def _signatures(doc):
    """Of each overload: what it takes, as (name, type, whether it may be left out), and what it gives."""
    found = []
    for line in doc.splitlines():
        match = SIGNATURE.match(line.strip())
        if match and match["takes"] != "*args, **kwargs":
            takes, gives = match["takes"] or match["plain"] or "", match["gives"] or match["plain_gives"]
            found.append(([_parameter(one) for one in re.split(r", (?=\w+: )", takes)], gives.strip()))
    assert found, f"no signature in {doc!r}"
    return found


def _parameter(text):
    name, _, rest = text.partition(": ")
    kind, _, default = rest.partition(" = ")
    return name, kind, bool(default)


def _fit(takes, args, kwargs):
    names = [name for name, _, _ in takes]
    if len(args) > len(takes) or not kwargs.keys() <= set(names[len(args) :]):
        return False
    given = dict(zip(names, args, strict=False)) | kwargs
    return all(may_go if name not in given else _is(kind, given[name]) for name, kind, may_go in takes)


def _class(kind):
    """Theirs, by its name in a signature; None for what is Python's."""
    name = re.split(r"[.:]", kind)[-1]
    if kind.startswith("nvonnxparser::"):  # by its name in C++
        return getattr(bindings, name.removeprefix("I"))
    ours = ("tensorrt_bindings.", "tensorrt_rtx_bindings.", "nvinfer1::")
    return getattr(bindings, name) if kind.startswith(ours) else None


def _is(kind, value):
    if kind.endswith(".Dims"):
        return isinstance(value, tuple) and all(isinstance(side, int) for side in value)
    if (wanted := _class(kind)) is not None:
        return issubclass(value._kind, wanted) if isinstance(value, Stand) else isinstance(value, wanted)
    plain = {"str": str, "bool": bool, "tuple": tuple, "typing.SupportsInt": int, "typing_extensions.Buffer": bytes}
    return isinstance(value, plain[kind])


class Driver:
    """Memory that is nowhere, a stream that does nothing, graphs that hold what the stream was given."""

    stream, ordinal = 7, 0

    def __init__(self):
        self.said, self.blocks = [], 0

    def allocate(self, count):
        self.blocks += 1
        return 4096 * self.blocks

    def capture(self, work):
        work()
        return 5

    def current(self):
        return nullcontext()

    def elapsed(self, first, last):
        return 0.25

    def __getattr__(self, name):
        assert hasattr(cuda.Driver, name), f"the driver has no {name}"
        return lambda *_: self.said.append(name)


def graph_of(value, *, side=4):
    """An ONNX graph with one weight, a number that is none, and a size."""
    tensors = [helper.make_tensor("weight", 1, [side], [value] * side), helper.make_tensor("sides", 7, [1], [side])]
    sample = helper.make_tensor_value_info("sample", 1, ["n"])
    nodes = [
        helper.make_node("Add", ["sample", "weight"], ["sum"]),
        helper.make_node("Reshape", ["sum", "sides"], ["out"]),
    ]
    out = helper.make_tensor_value_info("out", 1, [side])
    return helper.make_model(helper.make_graph(nodes, "one", [sample], [out], tensors)).SerializeToString()


def drive(folder):
    adapter, driver = trt.tensorrt(), Driver()
    trt.capabilities, trt.driver_version = lambda: ["sm90"], lambda: (13, 0)
    cuda.driver_version = trt.driver_version
    trt.gpu_name = lambda _: "NVIDIA H200"
    trt.open_driver = trt_plan.open_driver = lambda _: driver
    sample = TensorInfo(name="sample", dtype="float32", shape=("batch", 4, "height", "width"))
    out = sample.model_copy(update={"name": "out_sample"})
    options = {
        "builder_optimization_level": 4,
        "workspace_mb": 512,
        "weight_streaming_budget_mb": 100,
        "cuda_graph": True,
        "refit": True,
        "detailed_layers": True,
    }
    shape = {"sample": (2, 4, 8, 8)}
    (folder / "graph.onnx").write_bytes(graph_of(1.0))
    adapter.check(options)
    assert adapter.missing("sm90") is None
    variants = (("free", "f16", None, {}), ("tf32", "tf32", None, {}), ("fixed", "f16", shape, options))
    for name, precision, static, chosen in variants:
        target = Target("tensorrt", "sm90", precision, chosen, (sample,), (out,), static)
        made = folder / name
        made.mkdir()
        flags.clear()
        adapter.compile(Job("unet", folder / "graph.onnx", folder, target, shared=folder), made, quiet)
        assert ("IBuilderConfig.clear_flag TF32" in flags) == (precision != "tf32")
        for flag in ("REFIT", "WEIGHT_STREAMING"):
            assert (f"IBuilderConfig.set_flag {flag}" in flags) == bool(chosen), flags
        engine = adapter.load(made, target, files_in(made))
        feed = np.zeros(shape["sample"], np.float32).view(Bound)
        for _ in range(3):
            engine.run({"sample": feed})
        engine.close()
        assert ("IBuilderConfig.profiling_verbosity DETAILED" in flags) == bool(chosen), flags
    assert driver.said.count("launch") == 2, "the fixed engine captured its first call"
    assert driver.said.count("copy_in") == 3, "what was bound was copied in once for each engine"
    job = Job("unet", folder / "graph.onnx", folder, target)
    layers = {"Layers": [{"Name": "conv", "TacticName": "a\tb"}]}
    assert adapter.inspect(made, job) == {"layers": layers, "replayed": True}
    assert "EngineInspector.get_engine_information JSON" in flags
    assert adapter.refits(options)
    assert not adapter.refits({})
    (folder / "graph.onnx").write_bytes(graph_of(2.0))
    job = Job("unet", folder / "graph.onnx", folder, target, shared=folder)
    (folder / "refitted").mkdir()
    adapter.refit(job, made, folder / "refitted")
    assert ("ISerializationConfig.set_flag INCLUDE_REFIT" in flags) == hasattr(
        bindings.SerializationFlag, "INCLUDE_REFIT"
    )
    assert (folder / "refitted" / trt.PLAN).read_bytes() == b"other plan"
    adapter.load(folder / "refitted", target, files_in(folder / "refitted")).close()
    ANSWERS["OnnxParserRefitter.refit_from_file"], ANSWERS["OnnxParserRefitter.num_errors"] = False, 1
    refused(lambda: adapter.refit(job, made, folder), "refuses the weights: no such node")
    (folder / "graph.onnx").write_bytes(graph_of(2.0, side=2))
    refused(lambda: adapter.refit(job, made, folder), "differs from that of .* in more than its weights")
    ANSWERS["OnnxParser.parse_from_file"] = False
    refused(lambda: adapter.compile(job, folder, quiet), "cannot read unet: no such node")
    (cache,) = (folder / ".timing").iterdir()
    assert cache.read_bytes() == b"timed"
    assert "sm90-NVIDIA-H200" in cache.name


def drive_rtx(folder):
    """Load and capture with TensorRT for RTX; that it builds is tested with the library itself."""
    adapter, driver = trt.tensorrt_rtx(), Driver()
    trt.capabilities = lambda: ["sm89"]
    trt.driver_version = cuda.driver_version = trt_cache.driver_version = lambda: (13, 0)
    os.environ["LATENTC_STATE"] = str(folder / "state")
    trt_cache.gpu_name = lambda _: "NVIDIA L4"
    trt_plan.open_driver = lambda _: driver
    sample = TensorInfo(name="sample", dtype="float32", shape=(2, 4, 8, 8))
    out = sample.model_copy(update={"name": "out_sample"})
    (folder / "unet").mkdir()
    (folder / "unet" / trt.PLAN).write_bytes(b"plan")
    shape = {"sample": (2, 4, 8, 8)}
    target = Target("tensorrt-rtx", "sm86+sm89", "f16", {"cuda_graph": True}, (sample,), (out,), shape)
    for _ in range(2):
        engine = adapter.load(folder / "unet", target, files_in(folder / "unet"))
        for _ in range(2):
            engine.run({"sample": np.zeros(shape["sample"], np.float32)})
        engine.close()
    assert driver.said.count("launch") == 2
    job = Job("unet", folder / "graph.onnx", folder, replace(target, options={}))
    assert adapter.inspect(folder / "unet", job)["replayed"] is False
    (cache,) = (folder / "state" / "compiled").iterdir()
    assert cache.read_bytes() == b"code"


def refused(call, says):
    try:
        call()
    except CompileError as refusal:
        assert re.search(says, str(refusal)), refusal  # noqa: PT017  no pytest here
    else:
        raise AssertionError(f"it was taken: {says}")


if __name__ == "__main__" and sys.argv[1] == "rtx":
    import tensorrt_rtx_bindings as bindings

    sys.modules["tensorrt_rtx_bindings"] = Module()
    with tempfile.TemporaryDirectory() as made:
        drive_rtx(Path(made))
    print(json.dumps({"version": bindings.__version__, "used": sorted(used)}))
elif __name__ == "__main__":
    for library in sorted(Path(sys.argv[2]).iterdir()):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, sys.argv[1])
    import tensorrt_bindings as bindings

    sys.modules["tensorrt"] = Module()
    with tempfile.TemporaryDirectory() as made:
        drive(Path(made))
    print(json.dumps({"version": bindings.__version__, "used": sorted(used)}))
