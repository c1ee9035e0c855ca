"""Other libraries' exceptions come out as ours, in one line that says something."""

import pytest

from latentc.core.errors import CompileError, ShapeError
from latentc.runtimes.border import border, first_line

OPENVINO = """Exception from src/inference/src/cpp/core.cpp:237:
Exception from src/inference/src/dev/plugin.cpp:84:
Check 'is_valid_model' failed at src/plugins/intel_cpu/src/utils/graph_serializer/deserializer.cpp:160:
[CPU] Could not deserialize by device xml header.


"""
ORT = (
    "[ONNXRuntimeError] : 1 : FAIL : /src/graph.cc:5511 onnx::GraphProto f(const x&) const "
    "[ONNXRuntimeError] : 1 : FAIL : graph.cc:5436 Failed to write external initializers\n"
)


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (RuntimeError(OPENVINO), "[CPU] Could not deserialize by device xml header."),
        (RuntimeError("Check 'x' failed at y.cpp:1:\n"), "Check 'x' failed at y.cpp:1:"),
        (RuntimeError(ORT), "graph.cc:5436 Failed to write external initializers"),
        (
            RuntimeError("Exception from core.cpp:132:\nFrontEnd failed:\nNo such file\n"),
            "FrontEnd failed: No such file",
        ),
        (MemoryError(), "MemoryError"),
        (ValueError("x" * 1000), "x" * 400),
    ],
)
def test_the_first_line_that_says_something(exc, line):
    assert first_line(exc) == line


def test_foreign_exceptions_are_mapped_and_ours_pass():
    message = r"^It broke: \[CPU\] Could .* header\. Mend it\.$"
    with pytest.raises(CompileError, match=message) as caught, border(CompileError, "It broke", "Mend it."):
        raise RuntimeError(OPENVINO)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ShapeError, match="^ours$"), border(CompileError, "It broke", "Mend it."):
        raise ShapeError("ours")
    with pytest.raises(KeyboardInterrupt), border(CompileError, "It broke", "Mend it."):
        raise KeyboardInterrupt
