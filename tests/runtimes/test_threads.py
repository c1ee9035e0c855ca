"""How many threads a runtime gets: what is asked, else what the container and the affinity mask allow."""

import os
import subprocess
import sys

import pytest

from latentc.compiler.build import build
from latentc.compiler.engines import Engines, load
from latentc.compiler.targets import wanted, with_threads
from latentc.core.errors import ProfileError
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import RUNTIMES, runtime
from latentc.runtimes import onnxruntime as ort_adapter
from latentc.runtimes import openvino as ov_adapter

PARTS = ("onnxruntime", "openvino")


def keys(bundle, profile):
    return [want.key for want in wanted(bundle, profile, to_run=False)[1]]


@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32", "cpu-iree", "torch-f32", "null"])
def test_another_number_of_threads_never_asks_for_another_build(bundle, name):
    opened, profile = bundle("sd1"), load_profile(name)
    assert keys(opened, with_threads(profile, 1)) == keys(opened, with_threads(profile, 7)) == keys(opened, profile)


def test_no_option_that_acts_at_load_only_is_in_a_key(bundle):
    opened = bundle("sd1")
    for name, options in (
        ("cpu-onnxruntime", {"session.intra_op.allow_spinning": False, "enable_cpu_mem_arena": False}),
        ("cpu-openvino-f32", {"NUM_STREAMS": 1, "CPU_RUNTIME_CACHE_CAPACITY": 7, "ENABLE_CPU_PINNING": False}),
    ):
        profile = load_profile(name)
        assert keys(opened, profile.with_options(options)) == keys(opened, profile)
    for name, options in (
        ("cpu-onnxruntime", {"graph_optimization_level": "basic"}),
        ("cpu-onnxruntime", {"session.set_denormal_as_zero": True}),  # what is computed changes
        ("cpu-openvino-f32", {"EXECUTION_MODE_HINT": "ACCURACY"}),
    ):
        profile = load_profile(name)
        assert set(keys(opened, profile.with_options(options))).isdisjoint(keys(opened, profile))


def test_every_runtime_says_how_or_that_it_takes_none():
    for name in RUNTIMES:
        adapter = runtime(name)
        if option := adapter.threads_option("CPU"):
            assert option in adapter.facts.at_load
            adapter.check({option: 2}) if adapter.missing("CPU") is None else None
    with pytest.raises(ProfileError, match="CUDA through onnxruntime does not compute in threads"):
        with_threads(load_profile("h100"), 2)
    with pytest.raises(ProfileError, match="an integer from 1 to"):
        with_threads(load_profile("null"), 0)
    assert with_threads(load_profile("null"), 2) == load_profile("null")


@pytest.fixture
def given(monkeypatch):
    """Threads that each loaded engine was given, as the libraries say it themselves."""
    found = []
    loaded, opened = ov_adapter._check_precision, ort_adapter.open_session

    def openvino(compiled, *rest):
        found.append(compiled.get_property("INFERENCE_NUM_THREADS"))
        loaded(compiled, *rest)

    def onnxruntime(graph, options, *rest):
        found.append(options.intra_op_num_threads)
        return opened(graph, options, *rest)

    monkeypatch.setattr(ov_adapter, "_check_precision", openvino)
    monkeypatch.setattr(ort_adapter, "open_session", onnxruntime)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32"])
def test_what_was_asked_is_what_computes_and_draws_the_same(bundle, given, monkeypatch, name):
    from latentc.core.request import Request

    opened, profile = bundle("sd1"), load_profile(name)
    build(opened, profile)
    given.clear()
    for module in (ort_adapter, ov_adapter):
        monkeypatch.setattr(module, "threads", lambda: 1)
    with Pipeline.open(opened, profile) as limited:
        one = limited(Request(prompt="x", steps=1, seed=1))
    assert set(given) == {1}
    given.clear()
    for module in (ort_adapter, ov_adapter):
        monkeypatch.setattr(module, "threads", lambda: 64)
    with Pipeline.open(opened, profile, threads=1) as asked:
        other = asked(Request(prompt="x", steps=1, seed=1))
    assert set(given) == {1}
    assert (one.images == other.images).all()
    engines = Engines(opened, with_threads(profile, 1))
    assert engines.unproved() is None, "what was proved counts for every number of threads"
    load(opened, with_threads(profile, 2)).close()


CHILD = """
import os, sys
from latentc.core.limits import cores, threads
print(cores(), threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="one core")
def test_a_process_on_one_core_computes_in_one_thread():
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "-c", core, sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.slow
def test_iree_computes_in_so_many():
    code = (
        "import os\nfrom latentc.runtimes.iree import _in_threads\n"
        "def count(): return len(os.listdir('/proc/self/task'))\n"
        "_in_threads(1)\nbefore = count()\n_in_threads(3)\nthree = count() - before\n_in_threads(3)\n"
        "_in_threads(1)\nprint(three, count() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode and "No module named 'iree" in done.stderr:
        pytest.skip("IREE isn't here")
    first, all_ = map(int, done.stdout.split())
    assert 3 <= first == all_


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("cpu-onnxruntime", "intra_op_num_threads"),
        ("cpu-onnxruntime", "inter_op_num_threads"),
        ("cpu-openvino-f32", "INFERENCE_NUM_THREADS"),
        ("cpu-openvino-f32", "NUM_STREAMS"),
    ],
)
def test_no_profile_asks_for_a_million_threads(name, option):
    """They take 20 GB, and no signal ends what waits for them."""
    adapter = runtime(load_profile(name).runtime)
    with pytest.raises(ProfileError, match=f"{option} is 1000000; .*1,024"):
        adapter.check({option: 1_000_000})
