"""What ONNX Runtime's profile says of the last call: its nodes, or that a recorded call was replayed."""

import json
import shutil
from pathlib import Path

import pytest

from latentc.compiler.targets import job_of
from latentc.core.errors import CompileError
from latentc.runtimes import replay
from latentc.runtimes.base import Inspects, files_in
from latentc.runtimes.replay import CALLS, nodes_of_last

CUDA = "CUDAExecutionProvider"


def run(start, *nodes):
    """Events of one run of a session, as `InferenceSession::Run` writes them: the whole at its end."""
    each = [
        {
            "name": f"/{op}_kernel_time",
            "ts": start + index,
            "args": {"provider": "CUDAExecutionProvider", "op_name": op},
        }
        for index, op in enumerate(nodes, 1)
    ]
    return [*each, {"name": "model_run", "ts": start, "args": {}}]


def test_a_call_without_nodes_was_replayed():
    recorded = [
        *run(10, "Conv", "MatMul"),
        *run(5),
        *run(100),
        *run(200),
    ]  # the first call runs, and is recorded inside
    assert nodes_of_last(recorded) == {}
    launched = [*run(10, "Conv", "MatMul"), *run(100, "Conv", "MatMul"), *run(200, "Conv", "MatMul", "MatMul")]
    assert nodes_of_last(launched) == {CUDA: {"MatMul": 2, "Conv": 1}}
    with pytest.raises(CompileError, match=f"lists 2 of {CALLS} calls.* with its recorded graph switched off"):
        nodes_of_last([*run(10, "Conv"), *run(100)])


def test_the_library_s_own_profile_has_every_call_and_the_artifact_is_not_changed(make_case, monkeypatch):
    case = make_case("onnxruntime")
    assert isinstance(case.adapter, Inspects)
    events = []
    monkeypatch.setattr(replay, "nodes_of_last", lambda found: events.extend(found) or nodes_of_last(found))
    before = files_in(case.artifact)
    monkeypatch.setattr(shutil, "copyfile", None)  # weights may be several GB
    found = case.adapter.inspect(case.artifact, job_of(case.bundle, "unet", case.bundle.graph("unet"), case.target))
    assert files_in(case.artifact) == before
    assert [one["name"] for one in events].count("model_run") == CALLS
    assert found["replayed"] is False, "a CPU records nothing"
    (nodes,) = found["nodes_of_last_call"].values()
    every = [one for one in events if one["name"].endswith("_kernel_time")]
    assert sum(nodes.values()) * CALLS == len(every)
    assert json.loads(json.dumps(found)) == found
    assert not list(Path.cwd().glob("calls*.json"))
