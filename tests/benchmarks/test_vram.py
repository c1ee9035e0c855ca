"""GPU memory by stand-ins for the vendors' libraries: there is no GPU here."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from latentc.benchmarks import bench, sampler, vram
from latentc.benchmarks.bench import _vram
from latentc.benchmarks.compare import compare
from latentc.benchmarks.line import Wish
from latentc.benchmarks.markdown import markdown
from latentc.benchmarks.page import page
from latentc.benchmarks.reading import sections
from latentc.benchmarks.records import Memory, Vram
from latentc.benchmarks.vram import Device, VramWatch, clocks, devices
from latentc.cli.bench import print_rows


class Gpus:
    """What two GPUs hold, changed between two looks."""

    def __init__(self, used=(0, 0)):
        self.used, self.mhz = list(used), {1: 1980, 2: 2619}
        self.compute, self.graphics = ([], []), ([], [])

    def nvml(self):
        module = ModuleType("pynvml")

        def listed(rows):
            return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in rows]

        module.nvmlInit = lambda: None
        module.nvmlDeviceGetCount = lambda: 2
        module.nvmlDeviceGetHandleByIndex = lambda index: index
        module.nvmlDeviceGetComputeRunningProcesses = lambda device: listed(self.compute[device])
        module.nvmlDeviceGetGraphicsRunningProcesses = lambda device: listed(self.graphics[device])
        module.nvmlDeviceGetMemoryInfo = lambda device: SimpleNamespace(used=self.used[device], total=80_000)
        module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
        module.nvmlDeviceGetClockInfo = lambda device, kind: self.mhz[kind]
        module.nvmlDeviceGetPowerUsage = lambda device: 412_500
        module.nvmlDeviceGetTemperature = lambda device, sensor: 61
        return module

    def amdsmi(self):
        module = ModuleType("amdsmi")
        module.AmdSmiInitFlags = SimpleNamespace(INIT_AMD_GPUS=2)
        module.AmdSmiMemoryType = SimpleNamespace(VRAM=0)
        module.amdsmi_init = lambda flag: None
        module.amdsmi_get_processor_handles = lambda: [0, 1]
        module.amdsmi_get_gpu_process_list = lambda device: [
            {"pid": pid, "memory_usage": {"vram_mem": held, "gtt_mem": 7, "cpu_mem": 7}}
            for pid, held in self.compute[device]
        ]
        module.AmdSmiClkType = SimpleNamespace(GFX=1, MEM=2)
        module.AmdSmiTemperatureType = SimpleNamespace(HOTSPOT=1)
        module.AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
        module.amdsmi_get_clock_info = lambda device, kind: {"clk": self.mhz[kind], "max_clk": 9}
        module.amdsmi_get_power_info = lambda device: {"current_socket_power": "N/A", "average_socket_power": 412.5}
        module.amdsmi_get_temp_metric = lambda device, sensor, metric: 61
        module.amdsmi_get_gpu_memory_usage = lambda device, kind: self.used[device] if kind == 0 else None
        return module


@pytest.fixture(params=["NVIDIA", "AMD"])
def gpus(request, monkeypatch):
    """Two GPUs of one vendor, and the vendor's name."""
    found = Gpus(used=(1000, 500))
    here, absent, module = (
        ("pynvml", "amdsmi", found.nvml) if request.param == "NVIDIA" else ("amdsmi", "pynvml", found.amdsmi)
    )
    monkeypatch.setitem(sys.modules, here, module())
    monkeypatch.setitem(sys.modules, absent, None)
    return found, request.param


def held(watch):
    return {one.device: (one.resting_bytes, one.peak_bytes, one.by) for one in watch.held()}


def test_each_gpu_has_its_own_resting_and_peak_figure(gpus):
    found, vendor = gpus
    watch = VramWatch(devices())
    found.compute[0][:], found.compute[1][:] = [(10, 100), (99, 5)], [(11, 30)]
    watch.see([10, 11])
    found.compute[0][:] = [(10, 40), (11, 20), (99, 5000)]
    found.used[:] = [9000, 9000]  # what others took meanwhile is in the device's figure alone
    watch.see([10, 11])
    assert held(watch) == {f"{vendor} 0": (60, 100, "process"), f"{vendor} 1": (30, 30, "process")}


def test_clocks_power_and_temperature_of_each_gpu(gpus):
    found, vendor = gpus
    state = {"core_mhz": 1980, "memory_mhz": 2619, "watts": 412.5, "celsius": 61.0}
    assert [one.model_dump() for one in clocks(devices())] == [
        {"device": f"{vendor} {index}", **state} for index in (0, 1)
    ]
    found.mhz = {}  # one of the libraries' many errors
    assert {(one.core_mhz, one.memory_mhz, one.watts) for one in clocks(devices())} == {(None, None, 412.5)}


@pytest.mark.parametrize(
    ("engine", "asked"), [("tensorrt 11.4.0 sm90 f16", True), ("onnxruntime 1.31.1 CPU f32", False)]
)
def test_each_repetition_has_the_clocks_and_the_gpu_s_own_times(gpus, engine, asked):
    own = {"text_encoder": 0.1, "denoiser": [0.2, 0.3], "vae_decoder": 0.1} if asked else None
    answer = {
        "text_encoder": 1,
        "denoiser": [1, 2],
        "vae_decoder": 1,
        "total": 6,
        "device_seconds": own,
        "replays": None,
    }
    contender = SimpleNamespace(
        process=SimpleNamespace(ask=lambda verb, what, limit: answer),
        wish=Wish({}, ""),
        limit=1.0,
        subject=SimpleNamespace(engines={"unet": engine}),
    )
    bench._gpus.cache_clear()
    draw = bench._draw(contender)
    bench._gpus.cache_clear()
    assert [one.core_mhz for one in draw.clocks] == ([1980, 1980] if asked else [])
    assert (draw.device_seconds and draw.device_seconds.denoiser) == ((0.2, 0.3) if asked else None)


def test_what_is_asked_of_nvml_is_in_its_wheel():
    nvml = pytest.importorskip("pynvml")
    source = Path(vram.__file__).read_text()
    names = set(re.findall(r"nvml\.(\w+)", source))
    assert len(names) > 8
    assert [name for name in sorted(names) if not hasattr(nvml, name)] == []


def test_a_process_that_computes_and_draws_counts_once(monkeypatch):
    found = Gpus()
    monkeypatch.setitem(sys.modules, "pynvml", found.nvml())
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    watch = VramWatch(devices())
    found.compute[0][:], found.graphics[0][:] = [(10, 100)], [(10, 100), (12, 1)]
    watch.see([10, 12])
    assert held(watch) == {"NVIDIA 0": (101, 101, "process")}


def test_where_processes_have_other_numbers_the_devices_are_asked(gpus):
    found, vendor = gpus
    watch = VramWatch(devices())
    found.compute[0][:] = [(40_010, 700)]  # the host's number of what is 10 here
    found.used[:] = [1700, 500]
    watch.see([10])
    found.compute[0][:] = [(40_010, 300)]
    found.used[:] = [1300, 500]
    watch.see([10])
    assert held(watch) == {f"{vendor} 0": (300, 700, "device")}, "less the idle value; the other GPU holds nothing"
    found.used[:] = [9000, 9000]
    watch.see([10], alone=False)
    assert held(watch) == {f"{vendor} 0": (300, 700, "device")}, "others loaded since"


def test_a_process_without_a_figure_is_measured_by_the_device(monkeypatch):
    found = Gpus(used=(1000, 0))
    monkeypatch.setitem(sys.modules, "pynvml", found.nvml())
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    watch = VramWatch(devices())
    found.compute[0][:], found.used[0] = [(10, None)], 1250
    watch.see([10])
    assert held(watch) == {"NVIDIA 0": (250, 250, "device")}


def test_a_gpu_that_ours_left_alone_has_no_figure_by_device(gpus):
    found, vendor = gpus
    watch = VramWatch(devices())
    found.compute[0][:] = [(10, 100)]
    found.used[:] = [1100, 4000]  # somebody else's, and the library names ours
    watch.see([10])
    assert held(watch) == {f"{vendor} 0": (100, 100, "process")}


def test_libraries_that_fail_in_odd_ways_are_none(monkeypatch):
    def fail():
        raise KeyError("libamd_smi.so")

    for name in ("pynvml", "amdsmi"):
        module = ModuleType(name)
        module.nvmlInit = fail
        monkeypatch.setitem(sys.modules, name, module)
    assert devices() == []


def fail(*_):
    raise RuntimeError("Not Supported")


@pytest.mark.parametrize("question", ["ComputeRunningProcesses", "GraphicsRunningProcesses", "MemoryInfo"])
def test_one_question_that_isnt_supported_leaves_the_others(monkeypatch, question):
    found = Gpus(used=(1000, 500))
    module = found.nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    monkeypatch.setattr(module, next(name for name in vars(module) if name.endswith(question)), fail)
    watch = VramWatch(devices())
    found.compute[0][:] = found.graphics[0][:] = [(10, 100)]
    watch.see([10])
    assert held(watch) == {"NVIDIA 0": (100, 100, "process")}


ALL = ("ComputeRunningProcesses", "GraphicsRunningProcesses", "MemoryInfo")


@pytest.mark.parametrize("names", [("HandleByIndex",), ALL])
def test_a_gpu_that_answers_nothing_leaves_the_others(monkeypatch, names):
    found = Gpus(used=(1000, 500))
    module = found.nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    for name in names:
        real = getattr(module, f"nvmlDeviceGet{name}")
        monkeypatch.setattr(module, f"nvmlDeviceGet{name}", lambda index, real=real: real(index) if index else fail())
    assert [device.name for device in devices()] == ["NVIDIA 1"]


def test_a_driver_that_goes_away_is_survived(monkeypatch):
    found = Gpus()
    module = found.nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    watch = VramWatch(devices())
    module.nvmlDeviceGetComputeRunningProcesses = module.nvmlDeviceGetMemoryInfo = None
    watch.see([10])
    assert watch.held() == ()


def test_what_a_device_gained_isnt_laid_to_engines_of_the_cpu():
    def contender(engine):
        return SimpleNamespace(subject=SimpleNamespace(engines={"unet": engine}))

    seen = {"vram": [{"device": "NVIDIA 0", "resting_bytes": 3, "peak_bytes": 7, "by": "device"}]}
    assert _vram(contender("openvino 2026.4.1 CPU bf16"), seen) == ()
    partly = "onnxruntime 1.23 WebGPU f16, nodes: 50 WebGpuExecutionProvider, 1 CPUExecutionProvider"
    assert len(_vram(contender(partly), seen)) == 1
    assert _vram(contender("onnxruntime 1.23 CPU f32, nodes: 50 CPUExecutionProvider"), seen) == ()
    (found,) = _vram(contender("onnxruntime 1.23 CUDA f16"), seen)
    assert (found.resting_bytes, found.peak_bytes, found.by) == (3, 7, "device")
    later = {"vram": [{"device": "NVIDIA 0", "resting_bytes": 1, "peak_bytes": 9, "by": "process"}]}
    assert _vram(contender("onnxruntime 1.23 CUDA f16"), later, [found])[0].peak_bytes == 9


def row_with(measured, *vram):
    memory = Memory(before_bytes=1, load_peak_bytes=1, loaded_bytes=1, run_peak_bytes=1, peak_bytes=1, vram=vram)
    return measured("a", (1.0, 1.01, 0.99, 1.0, 1.02, 0.98), memory=memory)


def test_resting_and_peak_are_columns_by_device(measured, tmp_path, capsys):
    two = row_with(
        measured,
        Vram(device="NVIDIA 0", resting_bytes=3_000_000_000, peak_bytes=5_000_000_000),
        Vram(device="NVIDIA 1", resting_bytes=1_000_000_000, peak_bytes=2_000_000_000, by="device"),
    )
    text = page(sections([two]), "title")
    assert ">NVIDIA 0: 3.00 GB; NVIDIA 1: 1.00 GB (device)<" in text
    assert ">NVIDIA 0: 5.00 GB; NVIDIA 1: 2.00 GB (device)<" in text
    assert "7.00 GB" not in text, "not summed over GPUs"
    resting, peak = "NVIDIA 0: 3.00 GB; NVIDIA 1: 1.00 GB (device)", "NVIDIA 0: 5.00 GB; NVIDIA 1: 2.00 GB (device)"
    assert f"| {resting} | {peak} |" in markdown(sections([two]))
    print_rows([two], tmp_path / "results.jsonl")
    shown = capsys.readouterr().out
    assert shown.count("NVIDIA 0: 3.00 GB") == shown.count("NVIDIA 0: 5.00 GB") == 1
    assert "GPU memory" not in markdown(sections([measured("a", (1.0,) * 6)]))


def test_peaks_are_compared_by_device(measured):
    def row(first, second):
        return row_with(
            measured,
            Vram(device="NVIDIA 0", resting_bytes=1, peak_bytes=first),
            Vram(device="NVIDIA 1", resting_bytes=1, peak_bytes=second),
        )

    found = compare([row(4_000_000_000, 2_000_000_000)], [row(2_000_000_000, 4_000_000_000)])
    assert {change.what: change.verdict for change in found.changes} == {
        "peak memory of NVIDIA 0": "better",
        "peak memory of NVIDIA 1": "worse",
    }


def test_a_devices_figure_isnt_held_against_a_processs(measured):
    def row(by, peak):
        return row_with(measured, Vram(device="NVIDIA 0", resting_bytes=1, peak_bytes=peak, by=by))

    (found,) = compare([row("process", 1_000_000_000)], [row("device", 4_000_000_000)]).changes
    assert (found.what, found.verdict) == ("peak memory of NVIDIA 0", "note")
    assert found.message == "by process to by device: not comparable"


def test_devices_are_asked_for_their_idle_value_once_a_process(monkeypatch):
    asked = []
    device = Device("NVIDIA 0", dict, lambda: asked.append("used") or 1000, dict)
    monkeypatch.setattr(sampler, "devices", lambda: [device])
    found = sampler.MemorySampler()
    for _ in range(2):
        found.peak(1 << 30)  # nobody's number: no process is looked at
    assert asked == ["used"]
