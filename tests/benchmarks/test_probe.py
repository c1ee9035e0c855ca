"""`latentc probe`: trials in processes of their own, with their own time, and an archive that names nobody."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import tomllib
import zipfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from latentc.benchmarks import facts, probe, trials
from latentc.benchmarks.pairs import PAIRS, beyond, pairs_of
from latentc.benchmarks.probe import Outcome, redact, run_trial, shipped_profiles
from latentc.benchmarks.records import read_records
from latentc.benchmarks.trials import NOT_RUN, Session, Trial
from latentc.cli.app import app
from latentc.compiler.build import build
from latentc.compiler.targets import targets
from latentc.core.errors import LatentcError, RequestError, RuntimeMissing
from latentc.core.recipes import RECIPES
from latentc.profiles import load_profile
from latentc.runtimes import hip, runtime
from latentc.runtimes.iree import DYLIB
from latentc.runtimes.machine import AmdGpu, Gpu, machine
from latentc.runtimes.trt import TensorRT

ORT = load_profile("cpu-onnxruntime")


@pytest.fixture(autouse=True)
def handlers():
    """What the tests start isn't deaf to SIGINT, even if the tests are."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def session(tmp_path):
    folder, scratch = tmp_path / "archive", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    return Session(folder, scratch, time.monotonic() + 600)


def quiet(what, share=None):
    del what, share


def outcomes(archive):
    with zipfile.ZipFile(archive) as found:
        return {one["name"]: one for one in json.loads(found.read("trials.json"))}, found.read("summary.md").decode()


def test_what_there_is_no_time_for_is_in_the_archive(tmp_path):
    output = tmp_path / "results" / "probe.zip"
    found = probe.probe([ORT], output, minutes=0, on_progress=quiet)
    assert {one.outcome for one in found} == {"not run"}
    listed, summary = outcomes(output)
    assert list(listed) == list(trials.trials([ORT])) == [one.name for one in found]
    assert all(f"| {name} | not run | 0 | It needs at least" in summary.replace("\\", "") for name in listed)
    assert sorted(path.name for path in output.parent.iterdir()) == ["probe.zip"], "nothing else is left"


def test_an_unknown_trial_is_refused_before_anything_runs(tmp_path):
    output = tmp_path / "probe.zip"
    with pytest.raises(RequestError, match="no trial 'senes'.*scenes"):
        probe.probe([ORT], output, minutes=1, on_progress=quiet, only=["senes"])
    assert not output.exists()


def test_trials_follow_from_the_profiles():
    cuda, tensorrt = load_profile("h100"), load_profile("h100-tensorrt")
    names = list(trials.trials([cuda, tensorrt, ORT]))
    assert names.index("machine") < names.index("build-scenes-h100") < names.index("scenes") < names.index("sd15")
    assert {"build-sd15-h100", "build-sd15-h100-tensorrt", "pairs-sd15-h100", "pairs-scenes-h100-tensorrt"} <= set(
        names
    )
    assert names.index("pairs-scenes-h100") < names.index("sd15") < names.index("pairs-sd15-h100") < names.index("sdxl")
    assert {"load-cpu-onnxruntime", "close-cpu-onnxruntime", "contract-onnxruntime"} <= set(names)
    assert not {"build-sd15-cpu-onnxruntime", "pairs-scenes-cpu-onnxruntime"} & set(names), "full sizes are for GPUs"
    assert "sd15" not in trials.trials([ORT])


@pytest.mark.parametrize("name", [name for name in probe.profile_names() if load_profile(name).device != "CPU"])
def test_each_pair_changes_one_thing_that_its_runtime_has(name):
    profile = load_profile(name)
    known = runtime(profile.runtime).facts
    for variant in pairs_of(profile):
        again = type(profile).model_validate(variant.model_dump(mode="json"))
        assert again == variant, "it reaches the trial's process as it is"
        changed = {field for field in type(profile).model_fields if getattr(profile, field) != getattr(variant, field)}
        assert len(changed - {"name"}) == 1
        assert variant.options.keys() <= known.options.keys()
        assert variant.opset <= known.newest_opset


def comes_to(profile, bundle):
    """What each part is built with: the settings that a profile leaves out have their libraries' defaults."""
    adapter = runtime(profile.runtime)
    off = {name: False for name, kind in adapter.facts.options.items() if kind is bool}
    found = targets(bundle, profile, adapter, tuple(RECIPES))
    return profile.opset, [(part, one.precision, one.shape, one.loop, off | dict(one.options)) for part, one in found]


@pytest.mark.parametrize("name", [name for name in probe.profile_names() if load_profile(name).device != "CPU"])
def test_both_sides_of_each_pair_differ_in_what_is_built(name, exported):
    profile, bundle = load_profile(name), exported("sd1")
    sides = [comes_to(one, bundle) for one in [profile, *pairs_of(profile)]]
    assert all(one != sides[0] for one in sides[1:])
    switches = {"onnxruntime": "enable_cuda_graph", "tensorrt": "cuda_graph", "tensorrt-rtx": "cuda_graph"}
    if profile.device.startswith(("CUDA", "sm")):
        switch = switches[profile.runtime]
        flipped = [
            one for one in pairs_of(profile) if one.options.get(switch, False) != profile.options.get(switch, False)
        ]
        assert len(flipped) == 1, "CUDA graphs on and off"
    if profile.device not in ("NPU", "QNN") and not runtime(profile.runtime).facts.page:
        assert pairs_of(profile)


def test_a_pair_in_what_the_gpu_does_not_compute_in_is_left_out():
    profile = load_profile("rtx-2080")
    left = {one.name: beyond(one, profile) for one in pairs_of(profile)}
    assert left["rtx-2080-vae-tf32"] == "rtx-2080-vae-tf32 was left out: sm75 does not compute in tf32"
    assert left["rtx-2080-graph"] is None
    assert "rtx-2080-vae-f16" not in left, "it is in f16 already"


@pytest.mark.parametrize(("has", "left_out"), [(("tf32", "f16"), "f32"), (("f32", "f16"), "tf32")])
def test_where_the_environment_chooses_between_f32_and_tf32_the_other_is_listed_with_its_reason(
    has, left_out, monkeypatch
):
    """TensorRT's provider has no option: f32 is only there with the variable, TF32 only without (NVIDIA's docs)."""
    profile = load_profile("h100-onnxruntime-tensorrt")
    monkeypatch.setattr(type(runtime("onnxruntime")), "precisions", lambda self, device: has)
    reasons = {one.name.rpartition("-")[2]: beyond(one, profile) for one in pairs_of(profile)}
    assert reasons["f16"] is None
    if left_out == "f32":
        assert "NVIDIA_TF32_OVERRIDE=0: run this trial a second time" in reasons["f32"]
    else:
        assert reasons["f32"].endswith("it is what h100-onnxruntime-tensorrt comes to on this machine")


def test_every_pair_belongs_to_a_shipped_profile():
    shipped = [load_profile(name) for name in probe.profile_names()]
    for name, device in PAIRS:
        assert any(one.runtime == name and device in ("", one.device.partition("-")[0]) for one in shipped)


def test_shipped_profiles_that_work_here_are_tried():
    found, left_out = shipped_profiles()
    assert found
    assert all(runtime(one.runtime).missing(one.device) is None for one in found)
    on_cpu = [one.runtime for one in found if one.device == "CPU"]
    assert len(set(on_cpu)) == len(on_cpu)
    assert not {"null", "torch"} & set(on_cpu)
    on_gpu = {name for name in probe.profile_names() if load_profile(name).device != "CPU"}
    assert on_gpu == left_out.keys() | {one.name for one in found if one.device != "CPU"}
    assert all(len(reason) > 20 for reason in left_out.values())


def test_each_profile_that_is_not_tried_has_its_reason_in_the_archive(tmp_path, monkeypatch):
    here = machine().model_copy(update={"gpus": (Gpu(name="H100", vendor="NVIDIA", architecture="sm_90"),)})
    monkeypatch.setattr(probe, "machine", lambda: here)

    def missing(self, device):
        if device == "gfx90a":
            raise OSError("libamdhip64.so.7: version not found")
        return None if device in ("CPU", "CUDA") else f"This machine has no {device}."

    for name in ("onnxruntime", "iree"):
        monkeypatch.setattr(type(runtime(name)), "missing", missing)
    found, left_out = shipped_profiles()
    assert "h100" in [one.name for one in found]
    assert left_out["mi300x"] == "This machine has no gfx942."
    assert left_out["mi250x"] == "OSError: libamdhip64.so.7: version not found"
    assert left_out["mi300x-migraphx"] == "It is for gfx942; GPU architectures found: sm_90."
    output = tmp_path / "probe.zip"
    probe.probe(found, output, minutes=0, on_progress=quiet, only=["machine"], left_out=left_out)
    with zipfile.ZipFile(output) as archive:
        kept = json.loads(archive.read("not-tried.json"))
    assert kept == {name: why.replace(sys.prefix, "PYTHON") for name, why in left_out.items()}
    assert "| mi300x | This machine has no gfx942. |" in outcomes(output)[1]
    probe.probe([ORT], output, minutes=0, on_progress=quiet, only=["machine"])
    assert "| h100 | It is not among the profiles that were requested" in outcomes(output)[1].replace("\\", "")


def test_everything_that_a_gpu_can_run_is_tried_on_one_without_profiles_of_its_own(monkeypatch):
    """An RTX card has shipped profiles of TensorRT for RTX only; the suite compares it with the other ways."""
    card = Gpu(name="RTX 4090", vendor="NVIDIA", architecture="sm_89", memory_bytes=24_000_000_000)
    here = machine().model_copy(update={"gpus": (card,)})
    monkeypatch.setattr(probe, "machine", lambda: here)
    works = {"onnxruntime": {"CPU", "CUDA"}, "tensorrt-rtx": {"sm89"}, "tensorrt": set()}
    for kind, name in ((type(runtime("onnxruntime")), lambda _: "onnxruntime"), (TensorRT, lambda self: self._is.name)):
        monkeypatch.setattr(
            kind, "missing", lambda self, device, name=name: None if device in works[name(self)] else f"No {device}."
        )
    found, left_out = shipped_profiles()
    by_name = {one.name: one for one in found}
    assert {"rtx-4090", "h100-on-sm89"} <= by_name.keys()
    assert not any(name.startswith(("a100-on", "mi300x-on")) for name in (*by_name, *left_out))
    cuda = by_name["h100-on-sm89"]
    assert (cuda.device, cuda.gpus, cuda.memory_gb, cuda.proof) == ("CUDA", ("sm_89",), 24.0, "written")
    assert cuda.options == load_profile("h100").options
    assert left_out["h100-tensorrt-on-sm89"] == "No sm89.", "its reason is in the archive"
    assert left_out["h100-onnxruntime-tensorrt-on-sm89"] == "No TensorRT."
    assert {"build-scenes-h100-on-sm89", "pairs-sd15-h100-on-sm89"} <= set(trials.trials(found))
    other = here.model_copy(update={"gpus": (Gpu(name="RX 7600", vendor="AMD", architecture="gfx1102"),)})
    monkeypatch.setattr(probe, "machine", lambda: other)
    adapted = {one.name: one for one in probe._adapted([])}
    assert (adapted["mi300x-mxr-on-gfx1102"].device, adapted["mi300x-mxr-on-gfx1102"].options) == ("gfx1102", {})
    assert [one.runtime for one in adapted.values()].count("iree") == 1
    assert [one.device for one in adapted.values() if one.runtime == "onnxruntime"].count("MIGraphX-gfx1102") == 1
    assert not [one for one in adapted.values() if one.device.startswith("MIGraphX-") and "gfx1102" not in one.device]


READY = "open(sys.argv[1], 'w').close()\n"
PROGRAMS = {
    "ends": "open(sys.argv[-1], 'w').write('2 of 2 rows'); print('noise', file=sys.stderr)",
    "breaks": "raise ValueError('a bug')",
    "crashes": "import os; print('vae_decoder: compare', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)",
    "is killed": "import os; os.kill(os.getpid(), 9)",
    "lacks": f"open(sys.argv[-1], 'w').write('no GPU'); sys.exit({NOT_RUN})",
    "fails": "open(sys.argv[-1], 'w').write('below the floor'); sys.exit(1)",
    "lasts": f"{READY}time.sleep(600)",
    "gives in": f"try:\n {READY} time.sleep(600)\nexcept KeyboardInterrupt:\n open(sys.argv[-1], 'w').write('kept')",
    "is deaf": f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{READY}time.sleep(600)",
}


@pytest.mark.parametrize(
    ("program", "outcome", "found"),
    [
        ("ends", "done", "2 of 2 rows"),
        ("breaks", "failed", "It exited with code 1 without an answer (ValueError: a bug)."),
        ("crashes", "failed", "It crashed with SIGSEGV (vae_decoder: compare)."),
        ("is killed", "failed", "It was killed by the system, usually for lack of memory."),
        ("lacks", "not run", "no GPU"),
        ("fails", "failed", "below the floor"),
        ("lasts", "not run", "It was stopped after"),
        ("gives in", "not run", "kept"),
        ("is deaf", "not run", "It was stopped after"),
    ],
)
def test_what_a_trial_comes_to(session, monkeypatch, program, outcome, found):
    ready = session.scratch / "ready"
    if READY in PROGRAMS[program]:  # its time is up as soon as it is under way
        wait = probe.subprocess.Popen.wait

        def waits(process, timeout=None):
            while not ready.exists():
                time.sleep(0.05)
            return wait(process, 0 if timeout and timeout > 100 else timeout)

        monkeypatch.setattr(probe.subprocess.Popen, "wait", waits)
    monkeypatch.setattr(probe, "GRACE_SECONDS", 1.0 if program == "is deaf" else 60.0)
    session.folder.with_name("answer.txt").write_text("1 of 2 rows, of another trial")
    line = [sys.executable, "-c", f"import sys, time\n{PROGRAMS[program]}", str(ready)]
    came = run_trial(program, Trial(lambda _: "", 0), session, [ORT], line)
    assert came.outcome == outcome
    assert came.found.startswith(found)
    kept = session.folder / f"{program}.log"
    assert kept.exists() == (program in ("ends", "breaks", "crashes", "lasts")), "an empty log is not kept"


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    def run(name, *_):
        if name == "scenes":
            raise KeyboardInterrupt
        return Outcome(name=name, outcome="done", seconds=1, found="all of it")

    monkeypatch.setattr(probe, "run_trial", run)
    output = tmp_path / "probe.zip"
    with pytest.raises(KeyboardInterrupt):
        probe.probe([ORT], output, minutes=5, on_progress=quiet, only=["machine", "scenes", "load-cpu-onnxruntime"])
    listed, _ = outcomes(output)
    assert {name: one["outcome"] for name, one in listed.items()} == {"machine": "done", "scenes": "not run"}


@pytest.mark.slow
def test_sigterm_stops_the_trial_and_writes_the_archive(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    line = [sys.executable, "-c", f"import sys, time\n{PROGRAMS['gives in']}", str(ready)]
    monkeypatch.setattr(probe, "run_trial", partial(_run_program, probe.run_trial, line))

    def stop():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    output = tmp_path / "probe.zip"
    with pytest.raises(KeyboardInterrupt):
        probe.probe([ORT], output, minutes=5, on_progress=quiet, only=["machine"], scratch=tmp_path / "scratch")
    assert outcomes(output)[0]["machine"]["found"] == "It was interrupted."
    assert not list((tmp_path / "scratch").iterdir()), "a folder of the user's gets nothing but checkpoints and bundles"


def _run_program(run, line, name, trial, session, profiles):
    return run(name, trial, session, profiles, line)


def test_texts_name_no_folder_user_or_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(probe.platform, "node", lambda: "load")
    monkeypatch.setattr(probe.getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(probe.Path, "home", lambda: Path("/home/ada"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # not the folder that the package is imported from
    folders = probe.private_folders(tmp_path / "own", tmp_path / "scratch")

    def clean(text, name="a.log"):
        return redact(name, text, folders)

    assert clean("/home/ada/models -I/home/ada/inc, /home/ada2/x") == "~/models -I~/inc, /home/ada2/x"
    assert clean(f"{tmp_path}/scratch/a.onnx {tmp_path}/own/b {Path.cwd()}/c") == "FOLDER/a.onnx TEMPORARY/b FOLDER/c"
    assert clean(f"{sys.prefix}/lib") == "PYTHON/lib"
    assert clean("ada@load: /data/ada/x, payload, reload-1") == "USER@MACHINE: /data/USER/x, payload, reload-1"
    assert clean("GPU-12345678-90ab-cdef") == "GPU (removed)"
    serials = (
        "        ASIC_SERIAL: 0x1A2B\n\tdeviceUUID        = 0a1b2c3d-0000\nSerial Number : 132452100\nclock: 1980\n"
    )
    kept = clean(serials)
    assert not any(number in kept for number in ("1A2B", "0a1b2c3d", "132452100"))
    assert "clock: 1980" in kept
    found = json.loads(clean(json.dumps({"load": 1, "error": "Traceback\n/home/ada/x.py on load"}), "a.json"))
    assert found == {"load": 1, "error": "Traceback\n~/x.py on MACHINE"}, "keys stay"
    assert clean(json.dumps({"a": "/home/ada/x"}) + "\n", "a.jsonl") == '{"a": "~/x"}\n'
    assert clean('{"a": "/home/ada/x', "a.jsonl") == '{"a": "~/x', "a torn line too"


def test_only_known_variables_of_the_environment_are_read(session, monkeypatch):
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-secret")
    monkeypatch.setenv("OV_API_KEY", "secret")
    monkeypatch.setenv("ORT_CUDA_GEMM_OPTIONS", "compute_16f=1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    facts.machine_facts(session.folder)
    kept = json.loads((session.folder / "environment.json").read_text())
    assert kept["NVIDIA_TF32_OVERRIDE"] == "0"
    assert kept["ORT_CUDA_GEMM_OPTIONS"] == "compute_16f=1"
    assert not {"NVIDIA_API_KEY", "OV_API_KEY"} & kept.keys()
    assert not [name for name in facts.VARIABLES if any(word in name for word in ("KEY", "TOKEN", "SECRET", "PASS"))]


SECRETS = ("C02XK0AAJHD5", "ADAS-PC", "ada", "adas-mac", "0F1E2D3C", "4D36E968", "00000000-0000-0000-0000-10de2684")
PLANTED = {
    "system_profiler": """{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M3 Max",
      "spdisplays_ndrvs" : [
        {
          "_name" : "Studio Display of adas-mac",
          "_spdisplays_display-serial-number" : "C02XK0AAJHD5",
          "spdisplays_display_uuid" : "0F1E2D3C"
        }
      ],
      "sppci_cores" : "40"
    }
  ]
}""",
    "vulkaninfo": "deviceName = NVIDIA RTX 4090\\n\\tdeviceUUID = 00000000-0000-0000-0000-10de2684\\n",
    "dxdiag": "",
}
XML = (
    "<?xml version='1.0'?><DxDiag><SystemInformation><MachineName>ADAS-PC</MachineName>"
    "<MachineId>{0F1E2D3C}</MachineId></SystemInformation>"
    "<DisplayDevice><CardName>NVIDIA RTX 4090</CardName><DeviceIdentifier>{4D36E968}"
    "</DeviceIdentifier></DisplayDevice><SerialNumber>C02XK0AAJHD5</SerialNumber><Path>C:\\\\Users\\\\ada\\\\x</Path></DxDiag>"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_programs_write_is_kept_without_names_and_numbers(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(probe.platform, "node", lambda: "adas-mac.local")
    monkeypatch.setattr(probe.getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(facts, "LOOK_SECONDS", 0.05)
    tools, folder = tmp_path / "tools", tmp_path / "archive"
    tools.mkdir()
    folder.mkdir()
    (tmp_path / "planted.xml").write_text(XML, encoding=encoding)
    for name, text in PLANTED.items():
        (tools / f"{name}.txt").write_text(text.replace("\\n", "\n").replace("\\t", "\t"))
        write = f'for file; do :; done; (sleep 0.2; cp {tmp_path}/planted.xml "$file") >/dev/null 2>&1 &'
        (tools / name).write_text(f"#!/bin/sh\ncat {tools}/{name}.txt\n{write if name == 'dxdiag' else ''}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setattr(facts, "diagnose", list)
    facts.machine_facts(folder)
    (folder / "devices.json").write_text(json.dumps({"gpus": [{"uuid": "0F1E2D3C", "name": "RTX 4090"}]}))
    (folder / "not-tried.json").write_text("{}")
    output = tmp_path / "probe.zip"
    probe._pack(folder, [], output, {})
    with zipfile.ZipFile(output) as archive:
        kept = {name: archive.read(name).decode() for name in archive.namelist()}
    everything = "\n".join(kept.values())
    assert [secret for secret in SECRETS if re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", everything)] == []
    assert '"_name" : "Apple M3 Max"' in kept["system_profiler.log"]
    assert '"sppci_cores" : "40"' in kept["system_profiler.log"]
    assert "<CardName>NVIDIA RTX 4090</CardName>" in kept["dxdiag.xml"]
    assert "deviceName = NVIDIA RTX 4090" in kept["vulkaninfo.log"]
    assert json.loads(kept["devices.json"]) == {"gpus": [{"uuid": "(removed)", "name": "RTX 4090"}]}


def test_devices_of_each_library_are_listed_and_what_fails_says_why(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("libamdhip64.so.7: undefined symbol")

    monkeypatch.setattr(facts.hip, "shared_library", lambda: "/opt/rocm/lib/libamdhip64.so.7")
    monkeypatch.setattr(facts.hip, "addresses", lambda: ("0000:03:00.0", "0000:0e:00.0"))
    monkeypatch.setattr(facts.hip, "number_of", broken)
    monkeypatch.delenv(DYLIB, raising=False)
    monkeypatch.setitem(facts.os.environ, DYLIB, "file:none")
    said = facts.list_devices(tmp_path)
    found = json.loads((tmp_path / "devices.json").read_text())
    assert found["hip"]["library"] == "/opt/rocm/lib/libamdhip64.so.7"
    assert found["hip"]["addresses"] == ["0000:03:00.0", "0000:0e:00.0"]
    assert found["hip"]["number"] == {"error": "OSError: libamdhip64.so.7: undefined symbol"}
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert "FULL_DEVICE_NAME" in found["openvino"]["CPU"]
    assert {"vulkan", "hip", "local-task"} <= found["iree"].keys()
    assert said.startswith("devices.json: ")
    listed = [one for each in found["iree"].values() if isinstance(each, list) for one in each]
    assert listed
    assert all(one.keys() == {"device_id", "name"} for one in listed), "no identifier of a single device"


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path):
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(LatentcError, match="Choose another file with --output"):
        probe.probe([ORT], taken / "x.zip", minutes=0, on_progress=quiet)
    with pytest.raises(LatentcError, match="Choose another folder with --scratch"):
        probe.probe([ORT], tmp_path / "x.zip", minutes=0, on_progress=quiet, scratch=taken / "y")
    assert taken.read_text() == "mine"


def test_pytorch_is_measured_on_the_gpu_or_on_the_cpu(monkeypatch):
    here = {"CPU"}
    monkeypatch.setattr(type(runtime("torch")), "missing", lambda self, device: None if device in here else "no")
    gpu = load_profile("h100")
    assert [(one.device, one.precision) for one in trials.torch_profiles([gpu], on_cpu=True)] == [
        ("CPU", {"default": ("f32",)})
    ]
    assert trials.torch_profiles([gpu], on_cpu=False) == []
    here.add("CUDA")
    found = trials.torch_profiles([gpu], on_cpu=False)
    assert [(one.device, one.options, one.precision == gpu.precision) for one in found] == [
        ("CUDA", {}, True),
        ("CUDA", {"compile": True}, True),
    ]
    assert [one.device for one in trials.torch_profiles([ORT], on_cpu=True)] == ["CPU"]


@pytest.mark.slow
def test_a_whole_run_on_this_machine(tmp_path, exported, monkeypatch):
    scratch = tmp_path / "scratch"
    shutil.copytree(exported("scenes").folder, scratch / "scenes.bundle")
    monkeypatch.setenv("CUDA_MODULE_LOADING", str(Path.home() / "lazy"))
    output = tmp_path / "probe.zip"
    only = ["machine", "build-scenes-cpu-onnxruntime", "load-cpu-onnxruntime"]
    found = probe.probe([ORT], output, minutes=10, on_progress=quiet, only=only, scratch=scratch)
    assert [(one.name, one.outcome) for one in found] == [(name, "done") for name in only], found
    with zipfile.ZipFile(output) as archive:
        names = set(archive.namelist())
        assert {"machine.json", "runtimes.json", "environment.json", "packages.txt", "trials.json"} <= names
        assert json.loads(archive.read("machine.json"))["cpu"] == machine().cpu
        environment = json.loads(archive.read("environment.json"))
        built = json.loads(archive.read("build-scenes-cpu-onnxruntime.json"))
        loaded = json.loads(archive.read("load-cpu-onnxruntime.json"))
        everything = b"".join(archive.read(name) for name in names).decode(errors="replace")
    assert environment["CUDA_MODULE_LOADING"] == str(Path("~", "lazy"))
    assert "HOME" not in environment
    assert str(tmp_path) not in everything
    assert built["seconds"]["reused"] < built["seconds"]["cold"]
    assert {one["part"] for one in built["engines"].values()} >= {"unet", "vae_decoder"}
    assert all(one["parity"]["psnr_db"] > 90 for one in built["engines"].values())
    assert len(loaded["processes"]) == 2
    assert loaded["files"]


def test_an_engine_that_loading_changes_fails(session, own_bundle, monkeypatch):
    bundle = own_bundle("sd1")
    monkeypatch.setattr(trials, "bundle_of", lambda family, session: bundle)
    lists = iter([{"unet-1/graph.onnx": "a"}, {"unet-1/graph.onnx": "a"}, {"unet-1/graph.onnx": "b"}])
    monkeypatch.setattr(trials, "_files", lambda bundle, names: next(lists))
    with pytest.raises(LatentcError, match=r"changed the engine: unet-1/graph\.onnx"):
        trials.load_twice(ORT, session)


class Drawing:
    """A process that says what its generations came to: `replays` of each."""

    def __init__(self, replays):
        self.replays = replays

    def __call__(self, python, module):
        self.answers = iter(self.replays)
        return nullcontext(self)

    def ask(self, verb, what, limit):
        return {"seconds": 1.0, "replays": next(self.answers)} if verb == "draw" else {"seconds": 1.0}


@pytest.mark.parametrize(
    ("options", "by_part", "last", "outcome"),
    [
        ({"cuda_graph": True}, {}, {"unet": (4, 4), "vae_decoder": (1, 1)}, "unet 4 of 4, vae_decoder 1 of 1"),
        ({"cuda_graph": True}, {}, {"unet": (4, 4), "vae_decoder": (0, 1)}, "records calls, but not all were replayed"),
        ({"cuda_graph": True}, {"decoder": {"cuda_graph": False}}, {"vae_decoder": (0, 1)}, "vae_decoder 0 of 1"),
        ({}, {"denoiser": {"cuda_graph": True}}, {"unet": (0, 4)}, "records calls, but not all were replayed"),
        ({}, {}, {"unet": (0, 4)}, "unet 0 of 4"),
        ({"cuda_graph": True}, {}, None, "files, unchanged"),
    ],
)
def test_a_loaded_engine_shows_that_its_calls_are_replayed(session, monkeypatch, options, by_part, last, outcome):
    profile = load_profile("h100-tensorrt").model_copy(update={"options": options, "part_options": by_part})
    monkeypatch.setattr(trials, "require", lambda profile: None)
    roles = {"unet": SimpleNamespace(role="denoiser"), "vae_decoder": SimpleNamespace(role="decoder")}
    bundle = SimpleNamespace(folder=session.scratch, part=roles.get)
    monkeypatch.setattr(trials, "bundle_of", lambda family, session: bundle)
    monkeypatch.setattr(trials, "build", lambda *_: SimpleNamespace(engines=[]))
    monkeypatch.setattr(trials, "_files", lambda bundle, names: {"engine.plan": "a"})
    monkeypatch.setattr(trials, "Process", Drawing([{"unet": (0, 4)}, {"unet": (3, 4)}, last]))
    failing = pytest.raises(LatentcError, match=outcome) if "but not" in outcome else nullcontext()
    with failing:
        assert trials.load_twice(profile, session).endswith(outcome)
    kept = json.loads((session.folder / "load-h100-tensorrt.json").read_text())
    assert [len(one["runs"]) for one in kept["processes"]] == [trials.LOADED_RUNS] * 2


def test_layers_are_kept_by_engine_and_recorded_calls_must_be_replayed(session, own_bundle, monkeypatch):
    bundle = own_bundle("sd1")
    monkeypatch.setattr(trials, "bundle_of", lambda family, session: bundle)
    said = trials.inspect(ORT, "scenes", session)
    kept = json.loads((session.folder / "layers-scenes-cpu-onnxruntime.json").read_text())
    assert said == f"0 of {len(kept)} engines replayed a recorded call"
    assert {name.rpartition("-")[0] for name in kept} >= {"unet", "vae_decoder"}
    assert all(one["nodes_of_last_call"]["CPUExecutionProvider"] for one in kept.values())
    monkeypatch.setattr(trials, "records", lambda *_: True)
    with pytest.raises(LatentcError, match="0 of .* although the profile records calls"):
        trials.inspect(ORT, "scenes", session)
    monkeypatch.undo()
    recording = [name for name in probe.profile_names() if trials.records(load_profile(name))]
    assert recording == ["h100", "h100-onnxruntime-tensorrt", "h100-tensorrt", "jetson-orin"]
    tensorrt = trials.trials([load_profile("rtx-4090")])
    assert {"inspect-scenes-rtx-4090", "inspect-sd15-rtx-4090"} <= tensorrt.keys()


@pytest.mark.parametrize(
    ("compiling", "loading", "blamed"),
    [
        (0, 0, None),
        (2_000_000, 0, None),
        (0, 70_000_000, "load"),
        (70_000_000, 0, "compile"),
        (900_000_000, -900_000_000, None),
    ],
)
def test_memory_that_is_not_given_back_fails_and_names_the_phase(compiling, loading, blamed):
    held, rounds = 10**9, []
    for _ in range(4):
        compiled = held + compiling
        held = compiled + loading
        memory = {"compile": compiled, "loaded": held + 10**8, "load": held}
        rounds.append({phase: {"process": 5 * 10**8, "NVIDIA 0": count} for phase, count in memory.items()})
    if blamed:
        with pytest.raises(LatentcError, match=rf"not given back \(NVIDIA 0, most of it by the {blamed}\)"):
            trials._given_back(rounds)
    else:
        assert trials._given_back(rounds).startswith("process: 500 MB after 2 rounds, 500 MB after 4; NVIDIA 0: 1.00")


def test_each_round_compiles_and_loads_and_a_failure_names_which(session, own_bundle, monkeypatch):
    bundle = own_bundle("sd1")
    monkeypatch.setattr(trials, "bundle_of", lambda family, session: bundle)
    build(bundle, ORT)
    adapter, compiled, limits = type(runtime("onnxruntime")), [], {"compile": 2, "load": 99}

    def counted(phase, work):
        def call(self, *given):
            limits[phase] -= 1
            if limits[phase] < 0:
                raise LatentcError("out of memory")
            compiled.extend([given[0].part] if phase == "compile" else [])
            return work(self, *given)

        return call

    for phase in limits:
        monkeypatch.setattr(adapter, phase, counted(phase, getattr(adapter, phase)))
    with pytest.raises(LatentcError, match="In round 3, the compile failed: out of memory"):
        trials.close_often(ORT, session, cycles=4)
    kept = json.loads((session.folder / "close-cpu-onnxruntime.json").read_text())
    assert compiled == [kept["compiled part"]] * 2
    assert [list(one) for one in kept["rounds"]] == [["compile", "loaded", "load"]] * 2
    assert all(one["loaded"]["process"] > 0 for one in kept["rounds"])
    limits.update(compile=1, load=0)
    with pytest.raises(LatentcError, match="In round 1, the load failed: out of memory"):
        trials.close_often(ORT, session)


@pytest.mark.slow
def test_measuring_takes_each_profile_and_fails_where_none_works(session, own_bundle, monkeypatch):
    bundle = own_bundle("sd1")
    monkeypatch.setattr(trials, "bundle_of", lambda family, session: bundle)
    monkeypatch.setattr(trials, "STEPS", {"scenes": 1, "sd15": 1})
    monkeypatch.setattr(trials, "torch_profiles", lambda profiles, on_cpu: [])
    absent = load_profile("rtx-4090")
    said = trials.measure([ORT, absent], "sd15", (1,), session, repeat=1)
    assert said == "1 of 1 rows measured"
    assert [row.subject.name for row in read_records(session.results)] == ["null", "cpu-onnxruntime"]
    strict = ORT.model_copy(update={"name": "strict", "parity_db": {"f32": 500.0}})
    with pytest.raises(LatentcError, match="0 of 1 rows measured; strict"):
        trials.measure([strict], "sd15", (1,), session, repeat=1)
    monkeypatch.setattr(trials, "bundle_of", None)
    with pytest.raises(RuntimeMissing):
        trials.measure([absent], "sd15", (1,), session)


@pytest.mark.slow
def test_the_contract_is_what_pytest_reports(session, tmp_path):
    assert trials.contract("closed and null", session).startswith("1 passed")
    with pytest.raises(RuntimeMissing, match="deselected"):
        trials.contract("no_such_test", session)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RuntimeMissing, match="pytest is not installed"):
        trials.contract("null", session, str(bare))


def test_clocks_are_written_while_something_is_measured(session, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'clocks.sm [MHz]'\nexec sleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = session.folder / "clocks.csv"
    started = []
    popen = trials.subprocess.Popen
    monkeypatch.setattr(trials.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with trials.clocks(path):
        written = path.with_stem("nvidia-smi-clocks")
        while not written.read_text():
            time.sleep(0.05)
    assert written.read_text() == "clocks.sm [MHz]\n"
    assert [one.poll() for one in started] == [-signal.SIGTERM]


def test_the_command_lists_trials_and_refuses_other_endings(tmp_path, monkeypatch):
    listed = CliRunner().invoke(app, ["probe", "--list", "--profile", "cpu-onnxruntime", "--json"])
    assert json.loads(listed.stdout) == list(trials.trials([ORT]))
    unknown = CliRunner().invoke(app, ["probe", "--list", "--profile", "cpu-onnxruntime", "--only", "nope"])
    assert isinstance(unknown.exception, RequestError)
    refused = CliRunner().invoke(app, ["probe", "-p", "cpu-onnxruntime", "-o", str(tmp_path / "probe.tar")])
    assert isinstance(refused.exception, RequestError)
    monkeypatch.chdir(tmp_path)
    command = ["probe", "-p", "cpu-onnxruntime", "--minutes", "0", "--json", "--only", "machine, scenes,machine"]
    nothing = CliRunner().invoke(app, command)
    assert nothing.exit_code == 3
    found = json.loads(nothing.stdout)
    assert [(one["name"], one["outcome"]) for one in found["trials"]] == [("machine", "not run"), ("scenes", "not run")]
    assert found["archive"] == "probe.zip"
    kept = Path("probe.zip").read_bytes()
    assert json.loads(CliRunner().invoke(app, command).stdout)["archive"] == "probe-1.zip"
    again = CliRunner().invoke(app, [*command, "-o", "probe.zip"])
    assert "already exists" in str(again.exception)
    assert Path("probe.zip").read_bytes() == kept


def test_what_owners_are_told_to_install_exists():
    root = Path(probe.__file__).parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (root / "docs" / "probe.md").read_text()
    named = {extra for each in re.findall(r'"\.\[([\w,-]+)\]"', text) for extra in each.split(",")}
    assert {"export", "bench", "onnxruntime-qnn", "tensorrt-rtx"} <= named
    assert named <= extras.keys()
    kinds = {name.partition("-")[0] for name in trials.trials([load_profile("h100-tensorrt"), ORT])}
    table = re.findall(r"(?m)^\| (`.+?) \|", text)
    assert kinds <= {re.split("[-`]", one)[1] for line in table for one in line.split(", ")}, "each trial is described"
    owners = ("NVIDIA", "AMD", "Intel Arc", "Windows", "Mac", "Snapdragon")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "pip install" in line]
    assert all(any(owner in line for line in lines) for owner in owners)
    flavours = [sum(one.startswith("onnxruntime") for one in re.findall(r"[\w-]+", line)) for line in lines]
    assert max(flavours) == 1, "flavours of ONNX Runtime overwrite each other"
    assert all(" pytest " in line for line in lines), "else no contract is tested"
    assert "pytest" not in " ".join(extras["bench"] + extras["export"])


def test_all_contenders_on_an_nvidia_gpu_fit_into_one_environment():
    """ONNX Runtime's TensorRT provider names the library that it loads; its wheel names the CUDA of its packages."""
    gpu = Path(probe.__file__).parent.parent / ".venv" / "wheels" / "onnxruntime-gpu"
    providers = [*gpu.rglob("libonnxruntime_providers_tensorrt.so")]
    if not providers:
        pytest.skip("onnxruntime-gpu isn't here: make wheels")
    (major,) = set(re.findall(rb"libnvinfer\.so\.(\d+)", providers[0].read_bytes()))
    (cuda,) = set(re.findall(r"nvidia-cudnn-cu(\d+)", next(gpu.glob("*.dist-info/METADATA")).read_text()))
    text = (Path(probe.__file__).parent.parent / "docs" / "probe.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| an NVIDIA GPU")]
    (wanted,) = re.findall(r'"(tensorrt-[^"]+)"', line)
    assert wanted == f"tensorrt-cu{cuda}>={int(major)}.14,<{int(major) + 1}"
    assert re.search(r"\[[^\]]*\btensorrt\b(?!-)", line) is None, "the extra would bring a newer one"


DRIVER = """#!/bin/sh
echo "$HIP_VISIBLE_DEVICES|$*" >> "$(dirname "$0")/received"
for file; do :; done
case "$*" in *--help*|*FAIL*) ;; *) echo mxr > "$file";; esac
"""


def gpu(architecture, address, memory):
    return AmdGpu(architecture, architecture, memory, address, 128)


@pytest.mark.parametrize("usable", [True, False])
def test_the_driver_of_migraphx_gets_what_the_adapter_gives_it(session, tmp_path, monkeypatch, usable):
    """An integrated GPU is HIP's first; the driver is where ROCm is, not on the path."""
    root = tmp_path / "rocm"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "migraphx-driver").write_text(DRIVER)
    (root / "bin" / "migraphx-driver").chmod(0o755)
    monkeypatch.setenv("ROCM_PATH", str(root))
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    assert shutil.which("migraphx-driver") is None
    cards = [gpu("gfx1036", "0000:0e:00", 1 << 29), gpu("gfx942", "0000:03:00", 192 << 30)]
    monkeypatch.setattr(trials, "amd_gpus", lambda: cards)
    monkeypatch.setattr(hip, "amd_gpus", lambda: cards)

    def addresses():
        if not usable:
            raise RuntimeMissing("hipGetDeviceCount of HIP failed with error 100.")
        return ("0000:0e:00.0", "0000:03:00.0")

    monkeypatch.setattr(hip, "addresses", addresses)
    assert "migraphx-driver" in trials.trials([ORT])
    graph = tmp_path / "model.onnx"
    part = SimpleNamespace(inputs=(), outputs=())
    bundle = SimpleNamespace(one=lambda role: "vae_decoder", part=lambda name: part)
    monkeypatch.setattr(trials, "checked_graph", lambda bundle, part: graph)
    monkeypatch.setattr(trials, "bundle_of", lambda family, session: bundle)
    said = trials.driver_flags(session)
    visible, lines = zip(
        *(line.split("|") for line in (root / "bin" / "received").read_text().splitlines()), strict=True
    )
    assert lines[0] == "compile --help"
    begin = f"compile --onnx {graph} --enable-offload-copy "
    assert all(line.startswith(begin) for line in lines[1:])
    flags = [line.removeprefix(begin).partition("--binary --output")[0].strip() for line in lines[1:]]
    cross = "--gpu-arch gfx942"
    assert flags == [
        *(["--disable-fast-math", "", "--exhaustive-tune --disable-fast-math"] if usable else []),
        f"{cross} --disable-fast-math",
        f"{cross} --gpu-arch-params {{num_cu:304, num_chiplets:8}} --disable-fast-math",
    ]
    assert set(visible[1:]) == ({"1"} if usable else {""}), "the card alone"
    kept = (session.folder / "migraphx-driver-flags.log").read_text()
    assert kept.count("wrote 4 bytes") == len(flags)
    assert said == f"tried with {len(flags)} sets of flags for gfx942: migraphx-driver-flags.log"
