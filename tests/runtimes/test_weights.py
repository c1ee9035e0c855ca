"""Graphs whose weights lie in another folder."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latentc.compiler.lower import PLACE
from latentc.compiler.targets import job_of
from latentc.runtimes.weights import in_memory


def written(folder, **place):
    """A graph of one weight; `place` is said of it in place of what is so."""
    weight = numpy_helper.from_array(np.arange(400, dtype=np.float32).reshape(20, 20), "w")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 20]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="data", size_threshold=10)
    for entry in model.graph.initializer[0].external_data:
        entry.value = str(place.get(entry.key, entry.value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("place", [{"offset": 4}, {"offset": -4}, {"length": 10_000}, {"location": "../other"}])
def test_nothing_outside_of_the_file_is_read(tmp_path, place):
    graph = written(tmp_path / "part", **place)
    (tmp_path / "other").write_bytes(bytes(1600))
    with pytest.raises(ValueError, match="beyond the end|is outside of"):
        in_memory(graph, graph.parent)


def test_weights_are_mapped_and_not_copied(tmp_path):
    graph = written(tmp_path / "part")
    content, mapped = in_memory(graph, graph.parent)
    assert len(content) < 300
    assert [len(one) for one in mapped] == [1600]


def test_a_bundle_does_not_name_a_folder_of_weights(make_case, tmp_path):
    """Whoever made the bundle may have named any; the name in a scratch folder is ours."""
    case = make_case("null")
    (tmp_path / PLACE).write_bytes(b"/")
    graph = case.bundle.graph("unet")
    assert job_of(case.bundle, "unet", tmp_path / "model.onnx", case.target).weights.samefile("/")
    place = graph.with_name(PLACE)
    place.write_bytes(b"/")
    try:
        job = job_of(case.bundle, "unet", graph, case.target)
        assert job.weights == graph.parent
    finally:
        place.unlink()
