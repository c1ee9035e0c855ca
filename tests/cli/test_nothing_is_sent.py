"""Commands in an empty home folder: it stays empty, and no name is resolved and no address connected to.

Python's own calls are audited in every process of a command. Libraries in C resolve names themselves: where strace is
installed and allowed, the kernel's view of all threads and processes is read as well.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from latentc.benchmarks.baselines import BASELINES, PROFILE_MODULE
from latentc.benchmarks.line import command
from latentc.core.bundle import open_bundle
from latentc.core.telemetry import VARIABLES
from latentc.profiles import load_profile
from latentc.runtimes import runtime

SUPPRESSED_BY = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "NNCF_CI")
"""Variables with which a library sends nothing by itself. They would let the test pass without the switches."""

HOMES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME", "TORCH_HOME")

AUDIT = f"""
import os, sys

SENDERS = {{"onnxruntime", "openvino", "nncf", "huggingface_hub", "transformers", "diffusers"}}
INITIAL = {{"latentc.core", "latentc.core.telemetry"}}  # what latentc/__init__ itself imports
NETWORK = {{"socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.connect"}}

def note(text):
    with open(os.environ["AUDIT_LOG"], "a") as log:
        log.write(text + "\\n")

def imported(name):
    off = all(os.environ.get(variable) == "1" for variable in {tuple(VARIABLES)!r})
    note(f"imported {{name}} {{off and sys.modules.get('openvino_telemetry', 0) is None}}")

class Finder:  # asked for each module before it is loaded; finds none
    def find_spec(name, path, target=None):
        if name in SENDERS or (name.startswith("latentc.") and name not in INITIAL):
            imported(name.split(".")[0])

def hook(event, arguments):
    if event in NETWORK and (event != "socket.connect" or not isinstance(arguments[1], (str, bytes))):
        note(f"network {{event}} {{arguments[:2]}}")

sys.meta_path.insert(0, Finder)
sys.addaudithook(hook)
"""


@cache
def strace() -> list[str]:
    """The start of a command line, or nothing where processes can't be traced."""
    calls = ("-e", "trace=connect,sendto,sendmsg,sendmmsg")
    asked = ["strace", "-f", "--seccomp-bpf", "-qq", *calls]  # seccomp: only these calls are slowed down
    able = shutil.which("strace") and subprocess.run([*asked, "true"], capture_output=True, check=False).returncode == 0
    return asked if able else []


class Watched:
    """Runs commands in one empty home folder."""

    def __init__(self, folder: Path) -> None:
        self.home, self._log, self._calls = folder / "home", folder / "audit.log", folder / "calls"
        self.home.mkdir()
        (folder / "audit").mkdir()
        (folder / "audit" / "sitecustomize.py").write_text(AUDIT)
        left_out = {*SUPPRESSED_BY, *HOMES, *VARIABLES}
        path = [str(folder / "audit"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {name: value for name, value in os.environ.items() if name not in left_out} | {
            **dict.fromkeys(VARIABLES, "0"),  # left over by the user
            "HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join(path),
            "AUDIT_LOG": str(self._log),
        }

    def __call__(self, *arguments: str | Path, orders: str | None = None) -> set[str]:
        """Run it and check what it wrote and called; gives what it imported: latentc, and libraries that send."""
        self._log.write_text("")
        traced = [*strace(), *(["-o", str(self._calls)] if strace() else [])]
        done = subprocess.run(
            [*traced, *map(str, arguments)],
            input=orders,
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert [str(path.relative_to(self.home)) for path in self.home.rglob("*")] == []
        noted = self._log.read_text().splitlines()
        assert [line for line in noted if line.startswith("network")] == []
        assert [line for line in noted if line.endswith("False")] == []
        if traced:
            calls = self._calls.read_text().splitlines()
            assert [call for call in calls if "sa_family=AF_INET" in call] == []
        return {line.split()[1] for line in noted}


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


LATENTC = (sys.executable, "-m", "latentc")


def test_the_watch_sees_what_a_library_sends(watched):
    """Without latentc: each of the two libraries writes, so an empty folder says something."""
    for library, traces in (("onnxruntime", ".cache"), ("openvino", "intel")):
        with pytest.raises(AssertionError):
            watched(sys.executable, "-c", f"import {library}")
        assert (watched.home / traces).is_dir()
        shutil.rmtree(watched.home / traces)
    with pytest.raises(AssertionError):
        watched(sys.executable, "-c", "import socket; socket.socket(socket.AF_INET, 2).connect(('127.0.0.1', 9))")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["doctor", "profiles"])
def test_commands_without_a_bundle(watched, name):
    imported = watched(*LATENTC, name)
    assert name == "profiles" or {"onnxruntime", "openvino"} <= imported


@pytest.mark.slow
def test_export_sends_nothing_and_gives_the_same_bytes_again(watched, exported, checkpoint, tmp_path):
    imported = watched(*LATENTC, "export", checkpoint("sd1"), "-o", tmp_path / "sd1.bundle")
    assert {"onnxruntime", "diffusers", "transformers", "huggingface_hub"} <= imported
    again, first = open_bundle(tmp_path / "sd1.bundle").manifest, exported("sd1").manifest
    assert (again.files, again.parts) == (first.files, first.parts)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu-openvino-f32", "cpu-onnxruntime", "torch-f32", "null"])
def test_every_runtime(watched, own_bundle, tmp_path, profile):
    chosen = load_profile(profile)
    if reason := runtime(chosen.runtime).missing(chosen.device):
        pytest.skip(reason)
    bundle, which = own_bundle("sd1").folder, ("--profile", profile)
    if profile == "cpu-openvino-f32":  # neither loads a library that computes
        watched(*LATENTC, "plan", bundle, *which)
        watched(*LATENTC, "why", bundle, *which)
    imported = watched(*LATENTC, "build", bundle, *which, "--quiet")
    imported |= watched(*LATENTC, "run", bundle, "x", *which, "--steps", "1", "-o", tmp_path / "x.png")
    assert {"openvino": "openvino", "onnxruntime": "onnxruntime"}.get(chosen.runtime, "") in {*imported, ""}


ONE_PART = """
import sys
from pathlib import Path

from latentc.compiler.make import make
from latentc.compiler.targets import wanted
from latentc.core.bundle import open_bundle
from latentc.core.progress import quiet
from latentc.profiles import load_profile

opened, profile = open_bundle(sys.argv[1]), load_profile("cpu-iree")
adapter, engines = wanted(opened, profile, to_run=True)
want = next(one for one in engines if one.part == "text_encoder")
made = make(opened, profile, adapter, want, Path(sys.argv[2]), quiet, here=True)
assert made.parity.psnr_db > 60
"""


@pytest.mark.slow
def test_iree(watched, own_bundle, tmp_path):
    """One part is compiled, loaded and compared, as the commands do: to compile them all takes a minute."""
    if reason := runtime("iree").missing("CPU"):
        pytest.skip(reason)
    (tmp_path / "engine").mkdir()
    assert watched(sys.executable, "-c", ONE_PART, own_bundle("sd1").folder, tmp_path / "engine") >= {"latentc"}


@pytest.mark.slow
def test_bench(watched, own_bundle, tmp_path):
    options = ["--size", "64x64", "--batch", "1", "--steps", "1", "--repeat", "1", "--no-ceiling"]
    options += ["-o", tmp_path / "results.jsonl"]
    which = ["-p", "cpu-openvino-f32,cpu-onnxruntime", "--against", "diffusers"]
    imported = watched(*LATENTC, "bench", own_bundle("sd1").folder, *which, *options)
    assert {"onnxruntime", "openvino", "diffusers"} <= imported


@pytest.mark.parametrize("module", sorted({PROFILE_MODULE, *(one.module for one in BASELINES.values())}))
def test_every_subject_starts(watched, module):
    """Those of other environments as well: telemetry is off in their process before they import a library."""
    assert watched(*command(Path(sys.executable), module), orders="") == {"latentc"}
