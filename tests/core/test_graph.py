"""Graphs are read and refused before a library opens them."""

import os
import random
import time

import numpy as np
import pytest

from latentc.core.bundle import checked_graph, digest, open_bundle
from latentc.core.errors import BundleError
from latentc.core.files import read_sealed, sha256, write_sealed
from latentc.core.graph import inspect_graph
from latentc.core.graph_rules import check_engine_graph, check_graph
from latentc.core.manifest import FileInfo, TensorInfo

onnx = pytest.importorskip("onnx")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

INPUTS = (TensorInfo(name="sample", dtype="float32", shape=("batch", 4, "height", "width")),)
OUTPUTS = (TensorInfo(name="out", dtype="float32", shape=("batch", 4, "height", "width")),)
DATA = "model.onnx_data"
BYTES = 1000


def value(name, dims=("batch", 4, "height", "width"), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def external(name="weight", dims=(4, 4, 1, 1), **place):
    """A tensor of 64 bytes beside the graph, but for what `place` says."""
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, text in ({"location": DATA, "offset": "128", "length": "64"} | place).items():
        if text is not None:
            tensor.external_data.add(key=key, value=text)
    return tensor


def model_of(*nodes, initializers=None, functions=(), opset=23, **graph):
    nodes = [
        helper.make_node("Conv", ["sample", "weight"], ["x"], kernel_shape=[1, 1]),
        *nodes,
        helper.make_node("Add", ["x", "bias"], ["out"]),
    ]
    weights = [external(), numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "bias"), *(initializers or ())]
    body = helper.make_graph(
        nodes, "g", graph.pop("inputs", [value("sample")]), graph.pop("outputs", [value("out")]), weights, **graph
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, functions=functions)


def body(*nodes):
    return helper.make_graph(list(nodes), "body", [], [value("y")])


def identity(name="a"):
    return helper.make_node("Identity", ["sample"], [name])


@pytest.fixture
def refused(tmp_path):
    """`refused(model)`: what the check says to a model, or to bytes; None where it is accepted."""
    (tmp_path / DATA).write_bytes(bytes(BYTES))
    path = tmp_path / "model.onnx"

    def check(model, files=None):
        path.unlink(missing_ok=True)  # writing over a file waits for the disk
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        said = None
        try:
            check_graph(path, {DATA: BYTES} if files is None else files, opset=23, inputs=INPUTS, outputs=OUTPUTS)
        except BundleError as exc:
            said = str(exc)
        assert said is None or said.startswith(str(tmp_path)), "the file is named"
        assert said is None or "Export the checkpoint again" in said, "what to do is said"
        return said

    return check


def test_a_plain_graph_is_accepted_and_described(refused, tmp_path):
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.arange(3), "c"))
    assert refused(model_of(identity(), constant)) is None
    facts = inspect_graph(tmp_path / "model.onnx")
    assert facts.operators == {("", "Conv"): 1, ("", "Identity"): 1, ("", "Constant"): 1, ("", "Add"): 1}
    assert facts.nodes == 4
    assert facts.tensors == 3
    assert facts.opsets == (("", 23),)
    assert [(one.tensor, one.location, one.offset, one.length, one.expected) for one in facts.external] == [
        ("weight", DATA, 128, 64, 64)
    ]
    assert facts.inputs[0].shape == INPUTS[0].shape


@pytest.mark.parametrize("family", ["sd1"])
def test_every_graph_of_the_export_is_accepted(bundle, family):
    opened = bundle(family)
    for part in opened.manifest.parts:
        assert checked_graph(opened, part) == opened.folder / part / "model.onnx"


@pytest.mark.parametrize(
    "place",
    [
        {"location": "../model.onnx_data"},
        {"location": "/etc/passwd"},
        {"location": "other.bin"},
        {"location": "sub/model.onnx_data"},
        {"location": "..\\model.onnx_data"},
        {"location": "C:model.onnx_data"},
        {"location": "model.onnx_data\0.bin"},
        {"location": "\x1b[31m"},
        {"location": "*/_ORT_MEM_ADDR_/*"},
        {"location": ""},
        {"location": "."},
        {"location": "model.onnx"},
        {"location": None},
        {"offset": "1000"},
        {"offset": "937"},
        {"offset": "-1"},
        {"offset": "0x10"},
        {"offset": " 1"},
        {"offset": str(2**64)},
        {"length": "63"},
        {"length": "65"},
        {"length": None},
        {"length": "٦٤"},
        {"basepath": "/etc"},
        {"dims": (2**62, 4)},
        {"dims": (-4, -16)},
        {"dims": (1,) * 65},
    ],
)
def test_external_data_elsewhere_or_of_another_length_is_refused(refused, place):
    hostile = external("hostile", **place)
    attribute = helper.make_node("Constant", [], ["c"])
    attribute.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=hostile))
    sparse = onnx.SparseTensorProto(values=hostile, dims=[4])
    for model in (
        model_of(initializers=[hostile]),
        model_of(attribute),
        model_of(sparse_initializer=[sparse]),
        model_of(helper.make_node("If", ["sample"], ["y"], then_branch=body(attribute), else_branch=body(attribute))),
    ):
        said = refused(model)
        assert said
        assert said.isprintable()


def test_external_data_that_is_accepted_may_miss_an_offset_only(refused):
    assert refused(model_of(initializers=[external("other", offset=None)])) is None


@pytest.mark.parametrize("how", ["symlink", "folder", "missing", "short", "fifo"])
def test_external_data_that_is_no_plain_file_is_refused(refused, tmp_path, how):
    data, other = tmp_path / DATA, tmp_path / "other"
    data.rename(other)
    {
        "symlink": lambda: data.symlink_to(other),
        "folder": data.mkdir,
        "missing": lambda: None,
        "short": lambda: data.write_bytes(bytes(BYTES - 1)),
        "fifo": lambda: os.mkfifo(data),
    }[how]()
    assert refused(model_of())


@pytest.mark.parametrize("how", ["symlink", "folder", "missing", "empty", "fifo", "device", "2 GB"])
def test_a_graph_that_is_no_plain_file_is_refused(tmp_path, how):
    path, other = tmp_path / "model.onnx", tmp_path / "other"
    other.write_bytes(model_of().SerializeToString())
    {
        "symlink": lambda: path.symlink_to(other),
        "folder": path.mkdir,
        "missing": lambda: None,
        "empty": lambda: path.write_bytes(b""),
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "2 GB": lambda: (path.touch(), os.truncate(path, 2**31)),
    }[how]()
    with pytest.raises(BundleError):
        inspect_graph(path)


def function(name, *calls):
    nodes = [helper.make_node(call, ["a"], ["b"], domain="f") for call in calls] or [
        helper.make_node("Identity", ["a"], ["b"])
    ]
    return helper.make_function("f", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 23)])


@pytest.mark.parametrize(
    ("functions", "depth", "recursive"),
    [
        ([function(f"f{n}", f"f{n + 1}") for n in range(2999)] + [function("f2999")], 3000, False),
        ([function(f"f{n}", f"f{(n + 1) % 3000}") for n in range(3000)], 3000, True),
        ([function("f0", "f0")], 1, True),
        ([function(f"f{n}", *[f"f{n + 1}"] * 2) for n in range(60)] + [function("f60")], 61, False),
    ],
)
def test_functions_are_counted_and_refused(refused, tmp_path, functions, depth, recursive):
    call = helper.make_node("f0", ["sample"], ["y"], domain="f")
    model = model_of(functions=functions)
    assert f"functions ({len(functions):,}); expected: none" in refused(model)
    model.graph.node.append(call)
    assert refused(model)
    facts = inspect_graph(tmp_path / "model.onnx")
    assert (facts.functions, facts.function_depth, facts.recursive) == (len(functions), depth, recursive)


def test_control_flow_is_found_wherever_it_is(refused, tmp_path):
    count = numpy_helper.from_array(np.array(2**62), "count")
    loop = helper.make_node("Loop", ["count", ""], ["y"], body=body(identity("y")))
    assert "control flow (Loop)" in refused(model_of(loop, initializers=[count]))
    scan = helper.make_node("Scan", ["sample"], ["y"], body=body(identity("y")), num_scan_inputs=1)
    hidden = helper.make_node("Custom", ["sample"], ["y"], g=body(helper.make_node("Custom", [], ["y"], g=body(scan))))
    assert "control flow (Scan)" in refused(model_of(hidden))
    facts = inspect_graph(tmp_path / "model.onnx")
    assert facts.control == {"Scan": 1}
    assert (facts.subgraphs, facts.subgraph_depth) == (3, 3)
    assert "subgraphs (1)" in refused(model_of(helper.make_node("Custom", [], ["y"], g=body(identity("y")))))
    several = helper.make_node("Custom", [], ["y"], gs=[body(identity("y")), body(loop)])
    assert "control flow (Loop)" in refused(model_of(several))
    assert "control flow (SequenceMap)" in refused(model_of(helper.make_node("SequenceMap", ["sample"], ["y"])))


def message(number, content):
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


def test_graphs_nested_without_end_are_refused(refused):
    inside = b""
    for _ in range(20_000):
        inside = message(1, message(5, message(6, inside)))
        if len(inside) > 200_000:
            break
    assert "nested more than" in refused(message(7, inside))


def test_types_nested_without_end_are_refused(refused):
    inside = message(1, b"\x08\x01")
    for _ in range(10_000):
        inside = message(4, message(1, inside))
    info = message(13, message(1, b"v") + message(2, inside))
    grown = model_of()
    graph = grown.graph.SerializeToString()
    grown.ClearField("graph")
    assert "values of the type sequence" in refused(grown.SerializeToString() + message(7, graph + info))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m.graph.node[0], "domain", "com.foreign"), "operator domain 'com.foreign'"),
        (lambda m: m.opset_import.add(domain="com.foreign", version=1), "operator domain 'com.foreign'"),
        (lambda m: setattr(m.opset_import[0], "version", 22), "opset 22"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=23), "opset 23, 23"),
        (lambda m: m.ClearField("opset_import"), "opset none"),
        (lambda m: setattr(m.graph.input[0], "name", "x"), "has the inputs 'x'; expected: 'sample'"),
        (lambda m: m.graph.input.append(value("y")), "has the inputs 'sample', 'y'"),
        (lambda m: m.graph.input.append(value("sample")), "has the inputs 'sample', 'sample'"),
        (lambda m: setattr(m.graph.output[0], "name", "x"), "has the outputs 'x'; expected: 'out'"),
        (lambda m: m.ClearField("graph"), "it contains no graph"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7), "sample of type int64"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1), "sample of shape"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "no stated shape"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 5), "sample of shape"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_param", "c"), "out of shape"),
        (lambda m: m.graph.value_info.append(value("v", [2**62])), "a dimension of 'v'"),
        (lambda m: m.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(external()), "sparse tensors"),
        (lambda m: m.training_info.add().algorithm.CopyFrom(m.graph), "training graphs"),
        (lambda m: setattr(m.graph.node[0], "op_type", "RandomNormalLike"), "random numbers"),
        (lambda m: setattr(m.graph.node[0], "op_type", "SequenceConstruct"), "sequences"),
        (lambda m: m.graph.node[0].attribute[0].ints.append(2**62), "the attribute 'Conv."),
        (lambda m: setattr(m.graph.initializer[1], "raw_data", b"123"), "needs 16 bytes, but has 3"),
        (lambda m: setattr(m.graph.initializer[1], "data_type", 99), "has the unknown type 99"),
        (lambda m: m.graph.initializer[1].dims.append(2**62), "bytes, but has 16"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(64)), "both in the graph and in another file"),
        (lambda m: setattr(m.graph.initializer[0], "data_location", 0), "both in the graph and in another file"),
        (lambda m: m.graph.initializer[0].external_data.add(key="location", value=DATA), "'location' twice"),
        (lambda m: m.graph.initializer.append(onnx.TensorProto(name="s", data_type=8, dims=[1])), "numbers, but has 0"),
        (lambda m: m.graph.initializer.append(helper.make_tensor("s", 8, [1], [b"s"])), "tensors of strings"),
        (lambda m: m.graph.initializer[1].segment.SetInParent(), "split into segments"),
        (lambda m: m.graph.node.extend([identity()] * 50_000), "50,002 operators"),
        (lambda m: m.graph.initializer.extend([external()] * 40), "reads 2,624 bytes"),
    ],
)
def test_what_our_export_never_writes_is_refused(refused, change, says):
    model = model_of()
    change(model)
    assert says in (refused(model) or "accepted")


@pytest.mark.parametrize(
    "ask",
    [
        lambda huge: [helper.make_node("ConstantOfShape", ["huge"], ["y"])],
        lambda huge: [helper.make_node("Expand", ["sample", "huge"], ["y"])],
        lambda huge: [helper.make_node("Tile", ["sample", "huge"], ["y"])],
        lambda huge: [
            helper.make_node("Constant", [], ["h"], value_ints=[2**20, 2**20]),
            helper.make_node("ConstantOfShape", ["h"], ["y"]),
        ],
        lambda huge: [
            helper.make_node("Constant", [], ["h"], value=numpy_helper.from_array(np.array([1e10], np.float32))),
            helper.make_node("Resize", ["sample", "", "h"], ["y"]),
        ],
        lambda huge: [
            helper.make_node("Constant", [], ["zero"], value_int=0),
            helper.make_node("Constant", [], ["one"], value_int=1),
            helper.make_node("Constant", [], ["many"], value_int=2**62),
            helper.make_node("Range", ["zero", "many", "one"], ["y"]),
        ],
        lambda huge: [
            helper.make_node("Constant", [], ["nan"], value_float=float("inf")),
            helper.make_node("Pad", ["sample", "nan"], ["y"]),
        ],
    ],
)
def test_constants_that_ask_for_absurd_sizes_are_refused(refused, ask):
    huge = numpy_helper.from_array(np.array([2**16, 2**16, 2**16]), "huge")
    said = refused(model_of(*ask(huge), initializers=[huge]))
    assert said
    assert "the output size of" in said or "the attribute" in said


def test_typed_data_is_counted(refused):
    for kind, values in ((1, [1.0] * 6), (7, [1] * 6), (11, [1.0] * 6), (6, [-1] * 6), (10, [1.0] * 6), (9, [1] * 6)):
        tensor = helper.make_tensor("t", kind, [2, 3], values)
        assert refused(model_of(initializers=[tensor])) is None, kind
        tensor.dims[0] = 3
        assert "needs 9 numbers, but has 6" in refused(model_of(initializers=[tensor]))


@pytest.mark.slow
def test_a_million_unknown_fields_are_refused_at_once(refused):
    whole = model_of().SerializeToString()
    start = time.monotonic()
    assert "fields that ONNX does not define" in refused(whole + b"\xf8\x7f\x01" * 10**6)
    assert "fields that ONNX does not define" in refused(whole + b"\xfd\x7f1234" * 10**6)
    assert "fields" in refused(message(7, message(1, b"\x0a\x00" * 5_000_000)))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01",
        b"\x3b",
        b"\x3c",
        b"\x3e",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x08" + b"\xff" * 11,
        b"\x08" + b"\xff" * 9 + b"\x7f",
        b"\x08",
        b"\x39\x00\x00",
        b"\x38\x01",
        b"\x3a\x00\x3a\x00",
        b"\x80" * 100,
        b"\xff" * 10_000,
        b"not a graph at all",
    ],
)
def test_malformed_bytes_are_refused_in_words(refused, content):
    assert "is not a usable ONNX graph" in refused(content)
    assert refused(model_of().SerializeToString() + content)


def test_damage_is_never_anything_but_an_error(refused, tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.arange(3), "c")),
        helper.make_node("If", ["sample"], ["y"], then_branch=body(identity("y")), else_branch=body(identity("y"))),
    ]
    whole = model_of(*nodes, functions=[function("f0", "f1"), function("f1")]).SerializeToString()
    dice = random.Random(7)
    start = time.monotonic()
    for _ in range(500):
        refused(whole[: dice.randrange(1, len(whole))])
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 1, 4])):
            damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        refused(bytes(damaged))
    assert time.monotonic() - start < 30


def rewritten(opened, part, model):
    """Put a graph in a bundle whose manifest then says that all is well."""
    path = opened.folder / part / "model.onnx"
    path.write_bytes(model.SerializeToString())
    manifest = read_sealed(opened.folder / "latentc.json")
    manifest["files"][f"{part}/model.onnx"] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    files = {name: FileInfo(**info) for name, info in manifest["files"].items() if name.startswith(f"{part}/")}
    manifest["parts"][part]["digest"] = digest(files)
    write_sealed(opened.folder / "latentc.json", manifest)
    return open_bundle(opened.folder)


@pytest.mark.slow
def test_a_build_opens_no_graph_that_is_refused(own_bundle, monkeypatch):
    from latentc.compiler.build import build
    from latentc.compiler.plan import plan
    from latentc.profiles import load_profile

    opened = own_bundle()
    model = onnx.load(opened.folder / "text_encoder" / "model.onnx", load_external_data=False)
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    (opened.folder / "text_encoder" / "secret.bin").write_bytes(bytes(64))
    model.graph.initializer.append(external("secret", location="secret.bin", offset="0"))
    kept.functions.extend([function(f"f{n}", f"f{n + 1}") for n in range(2999)] + [function("f2999")])
    kept.graph.node.append(helper.make_node("f0", ["input_ids"], ["y"], domain="f"))
    monkeypatch.setattr("onnx.load", lambda *_, **__: pytest.fail("it was opened"))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was opened"))
    for hostile, says in (
        (model, "'secret.bin'; expected: a listed file of its own folder"),
        (kept, r"functions \(3,000\)"),
    ):
        changed = rewritten(opened, "text_encoder", hostile)
        for ask in (plan, build):
            with pytest.raises(BundleError, match=says):
                ask(changed, load_profile("cpu-onnxruntime"))


def context(**attributes):
    return helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", **attributes)


def engine_of(*nodes):
    model = model_of(*nodes)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "engine.data"
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft"), None),
        (helper.make_node("Conv", ["x", "x"], ["y"], domain="com.microsoft.nchwc"), None),
        (context(embed_mode=0, ep_cache_context="q.bin"), None),
        (context(embed_mode=0, ep_cache_context="../q"), "'../q'"),
        (context(embed_mode=0, ep_cache_context="p"), "'p'"),
        (context(ep_cache_context="code"), "graph itself"),
        (helper.make_node("PythonOp", ["x"], ["y"], domain="com.microsoft"), "the operator PythonOp"),
        (helper.make_node("ATen", ["x"], ["y"], domain="org.pytorch.aten"), "'org.pytorch.aten'"),
        (helper.make_node("If", ["x"], ["y"], then_branch=body(), else_branch=body()), "control flow"),
        (helper.make_node("Custom", ["x"], ["y"], domain="com.microsoft", body=body()), r"subgraphs \(1\)"),
    ],
)
def test_graphs_in_artifacts(tmp_path, node, says):
    path, data = tmp_path / "engine.onnx", tmp_path / "engine.data"
    data.write_bytes(bytes(BYTES))
    os.link(data, tmp_path / "shared with another artifact")
    files = {"engine.data": BYTES, "q.bin": 10}
    path.write_bytes(engine_of(node).SerializeToString())
    if says is None:
        check_engine_graph(path, files, "Build it again.")
    else:
        with pytest.raises(BundleError, match=rf"{says}.*Build it again\."):
            check_engine_graph(path, files, "Build it again.")
    path.write_bytes(model_of(node).SerializeToString())
    with pytest.raises(BundleError, match=r"Build it again\."):
        check_engine_graph(path, files, "Build it again.")
