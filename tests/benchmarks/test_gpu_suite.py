"""The suite for a GPU, where there is none: nothing is said to have been run that wasn't."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from latentc.benchmarks import gpu_suite
from latentc.benchmarks.gpu_suite import NOT_RUN, NOTHING, Times, Trial, main
from latentc.benchmarks.records import read_records
from latentc.core.errors import LatentcError, RuntimeMissing
from latentc.profiles import load_profile
from latentc.runtimes.machine import machine


@pytest.fixture(autouse=True)
def handlers():
    """The suite sets its own: afterwards they are as they were. What it starts isn't deaf, even if the tests are."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def told(output):
    return {trial["name"]: trial for trial in json.loads(output.with_suffix(".trials.json").read_text())}


def test_what_isnt_reached_is_told(tmp_path):
    output = tmp_path / "results.jsonl"
    assert main(["-o", str(output), "--minutes", "0"]) == NOTHING
    found = told(output)
    assert {"contract-cuda", "scenes", "sd15", "sdxl", "webgpu", "iree-ptx", "tensorrt-rtx"} <= found.keys()
    assert {trial["outcome"] for trial in found.values()} == {"not run"}
    page = output.with_suffix(".md").read_text()
    assert all(f"| {name} | not run | 0 | It takes" in page for name in found)
    with pytest.raises(SystemExit):
        main(["-o", str(output), "--only", "sd3"])


@pytest.mark.slow
@pytest.mark.skipif(bool(machine().gpus), reason="There is a GPU here.")
def test_what_needs_a_gpu_says_so_without_one(tmp_path):
    output, scratch = tmp_path / "results.jsonl", tmp_path / "not" / "there"
    command = ["-o", str(output), "--minutes", "3", "--only", "iree-ptx,tensorrt-rtx", "--scratch", str(scratch)]
    assert main(command) == NOTHING
    found = told(output)
    assert [trial["outcome"] for trial in found.values()] == ["not run"] * 2
    assert "for sm_80 code" in found["iree-ptx"]["said"] or "IREE" in found["iree-ptx"]["said"]
    assert "There is no GPU here" in found["tensorrt-rtx"]["said"]


READY = "open(sys.argv[2], 'w').close()\n"
PROGRAMS = {
    "ends": "open(sys.argv[1], 'w').write('2 of 2 rows'); print('noise', file=sys.stderr)",
    "breaks": "raise ValueError('a bug')",
    "lacks": f"open(sys.argv[1], 'w').write('no GPU'); sys.exit({NOT_RUN})",
    "lasts": f"{READY}time.sleep(600)",
    "gives in": f"try:\n {READY} time.sleep(600)\nexcept KeyboardInterrupt:\n open(sys.argv[1], 'w').write('kept')",
    "is deaf": f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{READY}time.sleep(600)",
}


class UpWhenReady(Times):
    """Time that is up as soon as a program says that it is under way."""

    @property
    def left(self):
        if self.output.with_suffix(".begun").exists():
            while not self.output.with_suffix(".ready").exists():
                time.sleep(0.05)
            return gpu_suite.GRACE_SECONDS
        self.output.with_suffix(".begun").touch()
        return super().left


@pytest.mark.parametrize(
    ("program", "outcome", "said"),
    [
        ("ends", "done", "2 of 2 rows"),
        ("breaks", "failed", "ValueError: a bug"),
        ("lacks", "not run", "no GPU"),
        ("lasts", "not run", "It was stopped: the time was up."),
        ("gives in", "not run", "kept"),
        ("is deaf", "not run", "It was stopped: the time was up."),
    ],
)
def test_what_a_trial_comes_to(tmp_path, monkeypatch, program, outcome, said):
    lasts = READY in PROGRAMS[program]
    monkeypatch.setattr(gpu_suite, "GRACE_SECONDS", 1.0 if program == "is deaf" else 60.0)
    times = (UpWhenReady if lasts else Times)(tmp_path / "results.jsonl", tmp_path, time.monotonic() + 600)
    times.answer(program).write_text("1 of 2 rows, in an earlier run")
    ready = str(times.output.with_suffix(".ready"))
    command = [sys.executable, "-c", f"import sys, time\n{PROGRAMS[program]}", str(times.answer(program)), ready]
    found = gpu_suite._run(program, 0, times, command)
    assert (found.outcome, found.said) == (outcome, said)
    kept = times.output.with_suffix(f".{program}.log")
    assert kept.exists() == (program in ("ends", "breaks", "lasts")), "of what says nothing beside, no log is left"


@pytest.mark.slow
def test_a_suite_that_is_stopped_has_its_trial_keep_what_it_has(tmp_path):
    times = Times(tmp_path / "results.jsonl", tmp_path, time.monotonic() + 120)
    told = f"import sys, time\n{PROGRAMS['gives in']}"

    def stop():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(1, stop)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        gpu_suite._run(
            "stopped", 0, times, [sys.executable, "-c", told, str(times.answer("stopped")), str(tmp_path / "ready")]
        )
    assert times.answer("stopped").read_text() == "kept"


def test_a_suite_that_is_stopped_tells_what_it_has(tmp_path, monkeypatch):
    def run(name, *_):
        if name == "sd15":
            raise KeyboardInterrupt
        return Trial(name=name, outcome="done", seconds=1, said="all of it")

    monkeypatch.setattr(gpu_suite, "_run", run)
    output = tmp_path / "results.jsonl"
    assert main(["-o", str(output), "--only", "scenes,sd15,sdxl"]) == 130
    assert {name: trial["outcome"] for name, trial in told(output).items()} == {"scenes": "done", "sd15": "not run"}


def test_it_is_stopped_from_outside_as_by_ctrl_c(tmp_path, monkeypatch):
    def run(name, *_):
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        return Trial(name=name, outcome="done", seconds=0, said="")

    monkeypatch.setattr(gpu_suite, "_run", run)
    assert main(["-o", str(tmp_path / "results.jsonl"), "--only", "scenes"]) == 0


@pytest.mark.slow
def test_measuring_takes_each_subject_and_fails_where_none_works(tmp_path, own_bundle, monkeypatch):
    bundle = own_bundle("sd1")
    times = Times(tmp_path / "results.jsonl", tmp_path, time.monotonic() + 300)
    monkeypatch.setattr(gpu_suite, "bundle_of", lambda family, times: bundle)
    assert [profile.shapes.images for profile in gpu_suite.subjects(4)[1:3]] == [4, 4]
    absent = load_profile("rtx-4090")
    monkeypatch.setattr(gpu_suite, "subjects", lambda batch: (load_profile("cpu-onnxruntime"), absent))
    said = gpu_suite.measured(None, steps=1, repeat=1)(times)
    assert said.startswith("1 of 2 rows; rtx-4090: Profile rtx-4090 cannot be used on this machine: ")
    assert [row.subject.name for row in read_records(times.output)] == ["null", "cpu-onnxruntime", "rtx-4090"]
    strict = load_profile("cpu-onnxruntime").model_copy(update={"name": "strict", "parity_db": {"f32": 500.0}})
    monkeypatch.setattr(gpu_suite, "subjects", lambda batch: (strict,))
    with pytest.raises(LatentcError, match="0 of 1 rows; strict"):
        gpu_suite.measured(None, steps=1, repeat=1)(times)
    monkeypatch.setattr(gpu_suite, "subjects", lambda batch: (absent, absent))
    monkeypatch.setattr(gpu_suite, "bundle_of", None)
    with pytest.raises(RuntimeMissing, match=r"^No sm89 GPU is available|is not installed"):
        gpu_suite.measured(None, steps=1, repeat=1)(times)
    times.output.write_text("torn\n")
    gpu_suite._write([Trial(name="sd15", outcome="done", seconds=1, said=said)], times.output)
    assert "| sd15 | done | 1 | 1 of 2 rows" in times.output.with_suffix(".md").read_text()


@pytest.mark.slow
def test_the_contract_is_what_pytest_says_of_it(tmp_path):
    times = Times(tmp_path / "results.jsonl", tmp_path, time.monotonic() + 120)
    assert gpu_suite.contract("closed and null")(times).startswith("1 passed")
    with pytest.raises(LatentcError, match="deselected"):
        gpu_suite.contract("no_such_test")(times)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RuntimeMissing, match="has no pytest"):
        gpu_suite.contract("null", str(bare))(times)
