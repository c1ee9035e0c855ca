"""Operators that ONNX does not define: each runtime's list agrees with the installed library."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from latentc.core.graph_rules import MICROSOFT
from latentc.core.kernels import cpu_kernels
from latentc.runtimes import RUNTIMES, runtime

MHA, GROUP_NORM, SPLIT = (f"{MICROSOFT}.{name}" for name in ("MultiHeadAttention", "GroupNorm", "BiasSplitGelu"))


def schemas():
    library = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    return sorted({one.name for one in library.get_all_operator_schema() if one.domain == MICROSOFT})


def test_openvinos_list_is_what_its_frontend_converts(tmp_path):
    """In a process of its own: openvino-tokenizers, once imported, converts more."""
    pytest.importorskip("openvino")
    run = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout)) == runtime("openvino").facts.others


def converted_by_openvino(tmp_path):
    """By a graph of one operator: only for an unknown one, OpenVINO says that it has no rule to convert it."""
    import openvino

    core, found = openvino.Core(), set()
    for name in schemas():
        values = [helper.make_tensor_value_info(each, 1, [2, 3]) for each in "abc"]
        node = helper.make_node(name, list("abc"), ["o"], domain=MICROSOFT)
        graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("o", 1, None)])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        try:
            core.read_model(path)
        except RuntimeError as exc:
            if "No conversion rule found" in str(exc) or "not supported" in str(exc):
                continue
        found.add(f"{MICROSOFT}.{name}")
    return sorted(found)


def test_onnx_runtimes_cpu_takes_what_it_has_kernels_for():
    adapter = runtime("onnxruntime")
    assert adapter.unsupported("CPU", (MHA, GROUP_NORM, SPLIT)) == (SPLIT, GROUP_NORM)
    assert adapter.unsupported("CUDA", (MHA, GROUP_NORM)) == ()  # a build refuses what its provider leaves to the CPU
    assert adapter.unsupported("CPU", ("org.other.Thing",)) == ("org.other.Thing",)
    assert MHA in (cpu_kernels() or ())
    assert GROUP_NORM not in (cpu_kernels() or ())


@pytest.mark.parametrize("name", RUNTIMES)
def test_standard_operators_are_no_question(name):
    adapter = runtime(name)
    assert adapter.unsupported(adapter.facts.devices[0], ()) == ()


def test_compilers_without_microsofts_operators_say_so():
    for name in ("iree", "tensorrt", "tensorrt-rtx"):
        assert runtime(name).unsupported(runtime(name).facts.devices[0], (MHA,)) == (MHA,)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(converted_by_openvino(Path(sys.argv[1]))))
