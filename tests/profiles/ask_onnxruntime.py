"""Opens a small model with options of execution providers, through the adapter, by the ONNX Runtime first on the path.

Reads a list of (device, options) as JSON, and prints for each the library's error, or what its parser logged of a value
that it ignores, or null.
"""

import json
import os
import re
import sys
import tempfile

import onnxruntime
from onnx import helper

from latentc.core.telemetry import switch_off_events
from latentc.runtimes import hip, placement

IGNORED = re.compile(r"qnn_execution_provider\.cc:\d+ (Parse\w+\] .*(?:Invalid|not valid|malformed|Unrecognized).*)")
"""QNN's plugin warns of a wrong value, and goes on without it."""


def model():
    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "add", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def answer(device, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0 if placement.PROVIDERS[device].plugin else placement.SILENT
    if device == "CPU":
        options.intra_op_num_threads = 2  # the second may have an affinity
        for name, text in given.items():
            options.add_session_config_entry(name, text)
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            placement.open_session(model(), options, device, given)
            error = None
        except Exception as exc:
            error = str(exc)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        log.seek(0)
        ignored = IGNORED.search(log.read().decode(errors="replace"))
    return ignored[1] if ignored else error


if __name__ == "__main__":
    switch_off_events(onnxruntime)
    hip.number_of = lambda *_, **__: 0
    print(json.dumps([answer(device, given) for device, given in json.load(sys.stdin)]))
