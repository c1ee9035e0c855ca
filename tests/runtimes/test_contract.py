"""What every runtime must do: one set of tests for all of them."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
import pytest

from latentc.compiler.cache import HEADER, Miss, artifacts, load_engine
from latentc.compiler.faults import broken
from latentc.compiler.lower import lowered
from latentc.compiler.targets import job_of
from latentc.core.bundle import Bundle
from latentc.core.errors import BundleError, CompileError, LatentcError, ProfileError, RuntimeMissing, ShapeError
from latentc.core.shapes import shape_of, sizes_of
from latentc.runtimes import RUNTIMES, runtime
from latentc.runtimes.base import MEMORY, files_in

from .conftest import OPSETS, by_onnx, write_graph

TOLERANCE = 1e-4  # of f32, for values around one

graph_readers = pytest.mark.parametrize("case", ["openvino", "onnxruntime"], indirect=True)
with_a_library = pytest.mark.parametrize("case", ["openvino", "onnxruntime", "torch"], indirect=True)


VARIES = {"CUDA": 1e-5}
"""Devices of ONNX Runtime on which two calls differ in the last bits: a norm there adds up in an order that varies."""


def same(case, left, right):
    """Whether two answers are the same to the bit, where the runtime always adds up in one order."""
    varies = VARIES.get(case.target.device, 0) if case.target.runtime == "onnxruntime" else 0
    near = all(np.allclose(left[name], right[name], rtol=0, atol=varies) for name in left)
    return left.keys() == right.keys() and near


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 8, 6), (1, 10, 12)])
def test_outputs_are_right(case, engine, batch, height, width):
    feeds = case.feeds(batch, height, width)
    outputs = engine.run(feeds)
    sizes = sizes_of(case.target.inputs, {name: array.shape for name, array in feeds.items()})
    assert {name: array.shape for name, array in outputs.items()} == {
        tensor.name: shape_of(tensor.shape, sizes) for tensor in case.target.outputs
    }
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}
    if case.expected is None:
        assert not any(array.any() for array in outputs.values())
    else:
        for name, wanted in case.expected(feeds).items():
            np.testing.assert_allclose(outputs[name], wanted, rtol=0, atol=TOLERANCE, err_msg=name)


def test_outputs_belong_to_the_caller(case, engine):
    first = engine.run(case.feeds())
    kept = {name: array.copy() for name, array in first.items()}
    for array in first.values():
        array.fill(7.0)
    assert same(case, engine.run(case.feeds()), kept)
    for array in first.values():
        assert (array == 7.0).all()


def test_inputs_stay_the_callers(case, engine):
    feeds = case.feeds()
    outputs = engine.run(feeds)
    kept = {name: array.copy() for name, array in outputs.items()}
    assert same(case, feeds, case.feeds())
    for array in feeds.values():
        array.fill(0.0)
    assert same(case, outputs, kept)


def test_any_memory_layout_will_do(case, engine):
    feeds = case.feeds()
    locked = {name: array.copy() for name, array in feeds.items()}
    for array in locked.values():
        array.flags.writeable = False
    strided = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in feeds.items()}
    assert not strided["sample"].flags.c_contiguous
    expected = engine.run(feeds)
    assert same(case, engine.run(locked), expected)
    assert same(case, engine.run(strided), expected)


def test_bound_inputs_need_not_be_fed(case, engine):
    feeds = case.feeds()
    expected = engine.run(feeds)
    context = feeds.pop("encoder_hidden_states")
    run = engine.bind({"encoder_hidden_states": context})
    context.fill(0.0)  # bound as it was
    assert same(case, run(feeds), expected)
    assert same(case, run(feeds), expected)
    with pytest.raises(ShapeError, match=r"encoder_hidden_states.* already bound"):
        run({**feeds, "encoder_hidden_states": context})
    with pytest.raises(ShapeError, match="missing"):
        run({"sample": feeds["sample"]})
    with pytest.raises(ShapeError, match="prompt"):
        engine.bind({"prompt": context})
    with pytest.raises(ShapeError, match="timestep"):
        engine.bind({"timestep": np.zeros(2, np.float32)})


def test_eight_threads_get_the_same_bytes(case, engine):
    feeds = [case.feeds(seed=seed) for seed in range(2)]
    expected = [engine.run(one) for one in feeds]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(engine.run, feeds * 4))
    assert all(same(case, outputs, expected[index % 2]) for index, outputs in enumerate(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep": None}, r"missing: \['timestep'\]"),
        ({"tmestep": np.zeros(1, np.float32)}, r"unknown: \['tmestep'\]"),
        ({"sample": np.zeros((2, 5, 8, 6), np.float32)}, "'sample' has shape"),
        ({"sample": np.zeros((2, 4, 8), np.float32)}, "'sample' has shape"),
        ({"sample": np.zeros((3, 4, 8, 6), np.float32)}, "'encoder_hidden_states' has shape"),
        ({"sample": np.zeros((2, 4, 0, 6), np.float32)}, "height is 0"),
        ({"sample": np.zeros((2, 4, 8, 6), np.float64)}, "'sample' is float64; it must be float32"),
        ({"timestep": np.array([500])}, "'timestep' is int64"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(case, engine, change, message):
    feeds = {name: array for name, array in {**case.feeds(), **change}.items() if array is not None}
    with pytest.raises(ShapeError, match=message):
        engine.run(feeds)
    engine.run(case.feeds())


def test_a_static_engine_refuses_other_shapes(case, tmp_path):
    feeds = case.feeds(2, 8, 8)
    changes = case.static(tmp_path / "out", feeds)
    engine = case.load(tmp_path / "out", **changes)
    if case.expected is not None:
        for name, wanted in case.expected(feeds).items():
            np.testing.assert_allclose(engine.run(feeds)[name], wanted, rtol=0, atol=TOLERANCE)
    with pytest.raises(ShapeError, match=r"built for \[2, 4, 8, 8\] only"):
        engine.run(case.feeds(2, 8, 16))
    engine.close()
    assert case.found(tmp_path / "out").differences["shape"] == (None, "free")
    (one,) = artifacts(Bundle(tmp_path / "out", case.bundle.manifest))
    says = r"does not match the profile \(shape is None, required is 'free'; .*shape.sample is \[2, "
    with pytest.raises(BundleError, match=says):
        load_engine(Bundle(tmp_path / "out", case.bundle.manifest), one, case.adapter, case.wanted())


@pytest.mark.slow
def test_a_lowered_graph_lies_apart_from_its_weights(case, tmp_path):
    """It is in a scratch folder, from which links lead to them."""
    if not case.adapter.facts.reads_onnx:
        return
    feeds = case.feeds(2, 8, 8)
    shape = {name: array.shape for name, array in feeds.items()}
    graph = write_graph(tmp_path / "part" / "model.onnx")
    opset = OPSETS.get(case.target.device, case.adapter.facts.newest_opset)
    lacks = case.adapter.facts.lacks.get(case.target.device, ())
    with lowered(
        graph, "key", opset, shape, () if case.adapter.facts.infers_shapes else ("fold",), lacks=lacks
    ) as path:
        assert path.parent != graph.parent
        case.build(tmp_path / "out", path, shape=shape)
    engine = case.load(tmp_path / "out", shape=shape)
    if case.expected is not None:
        for name, wanted in case.expected(feeds).items():
            np.testing.assert_allclose(engine.run(feeds)[name], wanted, rtol=0, atol=TOLERANCE)
    engine.close()


def with_other_weights(path, names):
    """Write the graph with other values of these weights; returns what ONNX's reference computes with them."""
    write_graph(path)
    model, rng = onnx.load(path), np.random.default_rng(3)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            values = onnx.numpy_helper.to_array(tensor)
            other = (values.T if values.ndim == 2 and len(set(values.shape)) == 1 else -0.5 * values) + 0.1
            other += 0.1 * rng.standard_normal(values.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(other.astype(np.float32), tensor.name))
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=100)
    return by_onnx(path)


@pytest.mark.parametrize("case", ["openvino", "onnxruntime", "iree"], indirect=True)
def test_an_engine_is_opened_with_other_weights(case, tmp_path):
    feeds = case.feeds(2, 8, 8)
    changes = case.static(tmp_path / "out", feeds)
    own, adapter = case.load(tmp_path / "out", **changes).run(feeds), case.adapter
    want = case.wanted(**changes)
    opset = adapter.facts.newest_opset
    passes = () if adapter.facts.infers_shapes else ("fold",)

    def opened(name, weights):
        folder = tmp_path / name
        folder.mkdir()
        expected = with_other_weights(folder / "model.onnx", weights)(feeds)
        with lowered(folder / "model.onnx", "key", opset, changes["shape"], passes) as path:
            job = job_of(case.bundle, "unet", path, want.target)
            return expected, adapter.open(job, lambda: tmp_path / "out" / "engines" / want.name)

    expected, engine = opened("large", ("conv_in", "to_q", "to_k", "to_v"))
    found = engine.run(feeds)
    engine.close()
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=TOLERANCE, err_msg=name)
        assert np.abs(wanted - own[name]).max() > 100 * TOLERANCE
    if adapter.facts.inline_numbers:
        with pytest.raises(CompileError, match=r"fewer than 64 numbers. Use `latentc fuse`"):
            opened("small", ("to_q", "norm.scale"))


def test_a_closed_engine_says_so(case):
    engine = case.load()
    run = engine.bind({"timestep": np.array([321.0], np.float32)})
    feeds = case.feeds()
    engine.close()
    engine.close()
    with pytest.raises(RuntimeMissing, match="closed"):
        engine.run(feeds)
    feeds.pop("timestep")
    with pytest.raises(RuntimeMissing, match="closed"):
        run(feeds)


def test_two_engines_of_one_artifact(case):
    first, second = case.load(), case.load()
    expected = first.run(case.feeds())
    first.close()
    assert same(case, second.run(case.feeds()), expected)
    second.close()


def test_an_artifact_stands_alone_and_can_move(case, engine, tmp_path):
    shutil.copytree(case.root, tmp_path / "moved")
    moved = case.load(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")  # what is loaded stays whole
    assert same(case, moved.run(case.feeds()), engine.run(case.feeds()))
    moved.close()


def test_options_are_strict(case):
    case.adapter.check({})
    known = case.adapter.threads_option("CPU")
    with pytest.raises(ProfileError, match=f"Did you mean '{known}'" if known else "no option 'threadsx'"):
        case.adapter.check({f"{known or 'threads'}x": 1})
    if known:
        assert known in case.adapter.facts.at_load
        case.adapter.check({known: 1})
        with pytest.raises(ProfileError, match=known):
            case.adapter.check({known: "several"})


def damages(folder):
    """Ways to break each file of an artifact."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        yield f"{path.name} truncated", path.name, content[: len(content) // 2]
        yield f"{path.name} empty", path.name, b""
        yield f"{path.name} gone", path.name, None
        yield f"{path.name} junk", path.name, b"\x07" * len(content)


def test_a_damaged_artifact_is_refused(case, tmp_path):
    for index, (what, name, content) in enumerate(damages(case.artifact)):
        root = tmp_path / str(index)
        shutil.copytree(case.root, root)
        folder = root / "engines" / case.artifact.name
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        found = case.found(root)
        if isinstance(found, Miss):
            assert found == Miss(folder.name, {}), what
            assert broken(Bundle(root, case.bundle.manifest)) == [folder], what
            continue
        with pytest.raises(BundleError) as caught:
            case.load(root)
        assert str(folder / name) in str(caught.value), what
        assert "latentc build" in str(caught.value), what


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_adapter_says_in_words_what_it_cannot_load(case, tmp_path):
    """Whoever wrote a header may have written the digest of anything into it. Bytes of weights can't be wrong."""
    for index, (_, name, content) in enumerate(damages(case.artifact)):
        if content is None or name == HEADER:
            continue
        folder = tmp_path / str(index)
        shutil.copytree(case.artifact, folder)
        (folder / name).write_bytes(content)
        files = {path: size for path, size in files_in(folder).items() if path != HEADER}
        if name.endswith((".data", "_data", ".txt", ".sha256", MEMORY)):
            with suppress(LatentcError):
                case.adapter.load(folder, case.target, files).close()
            continue
        with pytest.raises(LatentcError, match=r"\w+ \w+ \w+"):
            case.adapter.load(folder, case.target, files).close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "bf16"}, "precision is 'f32', required is 'bf16'"),
        ({"shape": {"sample": (1, 4, 8, 8)}}, "shape is 'free'"),
    ],
)
def test_an_artifact_that_is_not_what_is_wanted_is_not_loaded(case, changes, says):
    (one,) = artifacts(Bundle(case.root, case.bundle.manifest))
    with pytest.raises(BundleError) as caught:
        load_engine(Bundle(case.root, case.bundle.manifest), one, case.adapter, case.wanted(**changes))
    assert says in str(caught.value)
    assert "latentc build" in str(caught.value)


def test_no_artifact_at_all(case, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        assert case.found(folder) == Miss(None, {})


def test_an_artifact_of_another_precision_is_refused(case):
    assert case.found(case.root, precision="bf16") == Miss(case.artifact.name, {"precision": ("f32", "bf16")})


@with_a_library
def test_an_artifact_of_another_version_or_device_is_refused(case, monkeypatch):
    kind = type(case.adapter)
    monkeypatch.setattr(kind, "versions", lambda self: {"library": "0.1"})
    found = case.found(case.root)
    assert found.nearest == case.artifact.name
    assert found.differences["versions.library"] == (None, "0.1")
    monkeypatch.undo()
    if not case.adapter.facts.reads_onnx:
        return
    monkeypatch.setattr(kind, "device", lambda self, device: {"instructions": "6502"})
    assert case.found(case.root).differences["device.instructions"][1] == "6502"


@graph_readers
def test_a_broken_graph_is_refused_in_the_librarys_words(case, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"this is no graph" * 10)
    with pytest.raises(CompileError, match="refuses unet on CPU: .*opset = 18") as caught:
        case.compile(tmp_path / "out", tmp_path / "model.onnx")
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


@with_a_library
def test_a_device_that_is_not_there(case, tmp_path):
    assert "NPU" in (case.adapter.missing("NPU") or "")
    with pytest.raises(RuntimeMissing, match="NPU"):
        case.compile(tmp_path / "out", device="NPU")
    with pytest.raises(RuntimeMissing, match="NPU"):
        case.adapter.load(case.artifact, replace(case.target, device="NPU"), files_in(case.artifact))


@graph_readers
def test_a_graph_with_other_names_is_refused(case, tmp_path):
    renamed = (*case.target.outputs, case.target.outputs[0].model_copy(update={"name": "noise"}))
    case.build(tmp_path / "out", outputs=renamed)
    with pytest.raises(CompileError, match="noise"):
        case.load(tmp_path / "out", outputs=renamed)


def test_only_the_outputs_asked_for(case, engine):
    one = case.target.outputs[:1]
    narrow = case.load(outputs=one)
    expected = engine.run(case.feeds())
    assert same(case, narrow.run(case.feeds()), {one[0].name: expected[one[0].name]})
    narrow.close()


def test_every_runtime_answers_what_the_compiler_asks(case):
    adapter = case.adapter
    assert {"CPU", case.target.device} <= set(adapter.devices())
    assert adapter.missing(case.target.device) is None
    assert "f32" in adapter.precisions("CPU")
    assert case.target.runtime in adapter.versions()
    assert all(isinstance(value, str) for value in {**adapter.versions(), **adapter.device("CPU")}.values())


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ProfileError, match="Did you mean 'openvino'"):
        runtime("openvin")
    assert set(RUNTIMES) >= {"openvino", "onnxruntime", "torch", "null"}


def test_a_forgotten_engine_does_no_harm(case, engine):
    forgotten = case.load()
    expected = forgotten.run(case.feeds())
    del forgotten
    assert same(case, engine.run(case.feeds()), expected)
