"""The line to another process: answers, refusals, ends; and the memory that is seen from outside."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from latentc.benchmarks.energy import joules, read_counters
from latentc.benchmarks.line import Brief, reason
from latentc.benchmarks.process import Process
from latentc.core.errors import BundleError, LatentcError

PYTHON = Path(sys.executable)
MEGABYTE = 1_000_000


@pytest.fixture
def sampler():
    with Process(PYTHON, "benchmarks.sampler") as process:
        yield process


def test_an_order_is_answered_and_a_refusal_is_an_error(sampler):
    assert sampler.ask("stop", {}, 60) == {"now": None, "peak": None, "vram": []}
    with pytest.raises(LatentcError, match="KeyError: 'pid'"):
        sampler.ask("watch", {}, 60)
    with pytest.raises(LatentcError, match="KeyError: 'dance'"):
        sampler.ask("dance", {}, 60)
    assert sampler.ask("stop", {}, 60) == {"now": None, "peak": None, "vram": []}, "it goes on after"


def test_how_a_process_ended_is_said():
    with Process(PYTHON, "core.errors") as process, pytest.raises(LatentcError, match="ended with code 0 during"):
        process.ask("load", {}, 60)
    with (
        Process(PYTHON, "core.nowhere") as process,
        pytest.raises(LatentcError, match="ended with code 1 .* Its last output: .*No module named"),
    ):
        process.ask("load", {}, 60)
    with Process(PYTHON, "benchmarks.sampler") as process:
        process.ask("stop", {}, 60)
        assert not process.ended
        subprocess.run(["kill", "-9", str(process.pid)], check=True)
        with pytest.raises(LatentcError, match="usually because memory ran out"):
            process.ask("stop", {}, 60)
        assert process.ended


def test_one_that_doesnt_answer_is_stopped(sampler):
    subprocess.run(["kill", "-STOP", str(sampler.pid)], check=True)
    with pytest.raises(LatentcError, match="benchmarks.sampler did not answer 'stop' within 0 s and was stopped"):
        sampler.ask("stop", {}, 0.01)


NAP = "import time; from latentc.benchmarks.line import serve; serve({'nap': lambda what: time.sleep(600)})"


def test_a_process_ends_with_its_harness_even_in_the_middle_of_an_order():
    with subprocess.Popen([PYTHON, "-c", NAP], stdin=subprocess.PIPE, text=True) as process:
        process.stdin.write('{"verb": "nap", "what": {}}\n')
        process.stdin.close()
        assert process.wait(120) == 0


def test_a_python_that_isnt_there(tmp_path):
    with pytest.raises(LatentcError, match="cannot be run"):
        Process(tmp_path / "python", "benchmarks.sampler")


@pytest.mark.parametrize(
    ("module", "library", "says"),
    [
        ("diffusers", "diffusers", r'pip install .*"\.\[export\]"'),
        ("optimum_openvino", "optimum", "make peers"),
        ("optimum_onnxruntime", "optimum", "make peers"),
        ("openvino_genai", "openvino", "make peers"),
    ],
)
def test_a_baseline_without_its_library_says_how_to_get_it(tmp_path, module, library, says):
    (tmp_path / f"{library}.py").write_text("raise ImportError('not here')")
    brief = Brief("", "", "", None, {}, ceiling=False)
    with (
        Process(PYTHON, f"benchmarks.subjects.{module}", {"PYTHONPATH": str(tmp_path)}) as process,
        pytest.raises(LatentcError, match=f"A library is missing .not here.*{says}"),
    ):
        process.ask("open", asdict(brief), 60)


def test_reasons_are_one_line():
    assert reason(BundleError("no\nbundle")) == "no bundle"
    assert reason(ValueError("x " * 1000)).startswith("ValueError: x x")
    assert len(reason(ValueError("x " * 1000))) < 500
    assert reason(MemoryError()) == "MemoryError"


HOLDER = """
import subprocess, sys
print("ready", flush=True)
for line in sys.stdin:
    if line == "hold\\n":
        held = bytearray(b"x") * 80_000_000
    if line == "drop\\n":
        held = None
    if line == "child\\n":
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1], ""], stdin=-1, stdout=-1, text=True)
        child.stdout.readline()
        child.stdin.write("hold\\n")
        child.stdin.flush()
        child.stdout.readline()
    print("done", flush=True)
if sys.argv[1]:
    child.communicate()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak between samples is Linux's account")
def test_memory_of_a_process_and_its_children(sampler):
    with subprocess.Popen(
        [PYTHON, "-c", HOLDER, HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:

        def do(what):
            holder.stdin.write(what + "\n")
            holder.stdin.flush()
            holder.stdout.readline()

        def ask(verb):
            return sampler.ask(verb, {"pid": holder.pid}, 60)

        holder.stdout.readline()
        before = ask("watch")["now"]
        do("hold")
        do("drop")
        seen = ask("stop")
        assert seen["peak"] - before > 70 * MEGABYTE, "a peak between samples is seen"
        assert abs(seen["now"] - before) < 40 * MEGABYTE
        again = ask("watch")["now"]
        do("child")
        seen = ask("stop")
        assert seen["now"] - again > 80 * MEGABYTE, "the child's is counted"
        assert ask("peak")["peak"] >= seen["peak"] - MEGABYTE
        holder.stdin.close()


def counters(folder, **zones):
    for name, (kind, count) in zones.items():
        zone = folder / name.replace("_", ":")
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(kind + "\n")
        (zone / "max_energy_range_uj").write_text("9999999\n")
        if count is not None:
            (zone / "energy_uj").write_text(f"{count}\n")
    return read_counters(folder)


def test_energy_is_that_of_the_packages(tmp_path):
    zones = {"intel-rapl_0": ("package-0", 5_000_000), "intel-rapl_1": ("package-1", 9_000_000)}
    before = counters(tmp_path, **zones, **{"intel-rapl_2": ("psys", 1), "intel-rapl_0_0": ("core", 1)})
    after = counters(tmp_path, **zones | {"intel-rapl_0": ("package-0", 7_500_000), "intel-rapl_1": ("package-1", 0)})
    assert before.keys() == {"intel-rapl:0", "intel-rapl:1"}
    assert joules(before, after) == pytest.approx(2.5 + 1.0), "one counter began anew"


def test_energy_is_absent_where_the_machine_doesnt_tell(tmp_path):
    assert read_counters(tmp_path / "none") == {}
    assert counters(tmp_path, **{"intel-rapl_0": ("package-0", None)}) == {}
    assert joules({}, {}) is None
    assert joules({"a": (1, 2)}, {}) is None
