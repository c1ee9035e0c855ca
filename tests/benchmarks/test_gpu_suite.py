"""The suite for a GPU, where there is none: nothing is said to have been run that wasn't."""

import json
import sys
import time

import pytest

from latentc.benchmarks import gpu_suite
from latentc.benchmarks.gpu_suite import NOT_RUN, Times, main
from latentc.runtimes.machine import machine


def told(output):
    return {trial["name"]: trial for trial in json.loads(output.with_suffix(".trials.json").read_text())}


def test_what_isnt_reached_is_told(tmp_path):
    output = tmp_path / "results.jsonl"
    assert main(["-o", str(output), "--minutes", "0"]) == 0
    found = told(output)
    assert {"contract-cuda", "scenes", "sd15", "sdxl", "webgpu", "iree-ptx", "tensorrt-rtx"} <= found.keys()
    assert {trial["outcome"] for trial in found.values()} == {"not run"}
    page = output.with_suffix(".md").read_text()
    assert all(f"| {name} | not run | 0 | It takes" in page for name in found)
    with pytest.raises(SystemExit):
        main(["-o", str(output), "--only", "sd3"])


@pytest.mark.skipif(bool(machine().gpus), reason="There is a GPU here.")
def test_what_needs_a_gpu_says_so_without_one(tmp_path):
    output = tmp_path / "results.jsonl"
    assert (
        main(["-o", str(output), "--minutes", "3", "--only", "iree-ptx,tensorrt-rtx", "--scratch", str(tmp_path)]) == 0
    )
    found = told(output)
    assert [trial["outcome"] for trial in found.values()] == ["not run"] * 2
    assert (
        "There is no GPU for the PTX of sm_80 here" in found["iree-ptx"]["said"] or "IREE" in found["iree-ptx"]["said"]
    )
    assert "Install NVIDIA's driver" in found["tensorrt-rtx"]["said"]


PROGRAMS = {
    "ends": "import sys; sys.stderr.write('noise\\n12:00:00 2 of 2 rows\\n')",
    "breaks": "raise ValueError('a bug')",
    "lacks": f"import sys; sys.stderr.write('12:00:00 no GPU\\n'); sys.exit({NOT_RUN})",
    "lasts": "import time\ntime.sleep(60)",
    "is deaf": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)",
}


@pytest.mark.parametrize(
    ("program", "outcome", "said"),
    [
        ("ends", "done", "2 of 2 rows"),
        ("breaks", "failed", "ValueError: a bug"),
        ("lacks", "not run", "no GPU"),
        ("lasts", "not run", "It was stopped: the time was up."),
        ("is deaf", "not run", "It was stopped: the time was up."),
    ],
)
def test_what_a_trial_comes_to(tmp_path, monkeypatch, program, outcome, said):
    monkeypatch.setattr(gpu_suite, "GRACE_SECONDS", 1.0)
    times = Times(tmp_path / "results.jsonl", tmp_path, time.monotonic() + 4)
    found = gpu_suite._run(program, 0, times, [sys.executable, "-c", PROGRAMS[program]])
    assert (found.outcome, found.said) == (outcome, said)
    assert found.seconds < 20
