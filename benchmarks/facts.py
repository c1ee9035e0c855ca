"""What a machine has, for `latentc probe`: hardware, drivers, libraries, and the devices that each library finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from ..core.errors import LatentcError
from ..core.files import write_text
from ..core.telemetry import switch_off_events
from ..runtimes import cuda, hip
from ..runtimes.border import first_line
from ..runtimes.diagnose import diagnose
from ..runtimes.environment import every_environment
from ..runtimes.iree import DYLIB
from ..runtimes.machine import amd_gpus, machine

VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "CUDA_LAUNCH_BLOCKING", "CUDA_CACHE_DISABLE",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES", "HSA_ENABLE_SDMA", "GPU_DEVICE_ORDINAL",
    "IREE_HIP_DYLIB_PATH", "OPENVINO_LOG_LEVEL", "VK_ICD_FILENAMES", "VK_DRIVER_FILES",
    "MESA_VK_DEVICE_SELECT", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS",
    "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LD_LIBRARY_PATH",
)  # fmt: skip
"""Environment variables that change what drivers and libraries do. Beside these, only those that are part of proofs are
read (`runtimes.environment`): others may be secrets."""

OUTPUT = "dxdiag.xml"
"""The file that dxdiag writes: it prints nothing."""

TOOLS: Mapping[str, tuple[str, ...]] = {
    "nvidia-smi": ("-q", "-d", "CLOCK,POWER,TEMPERATURE,PERFORMANCE,MEMORY"),
    "amd-smi": ("static", "--asic", "--driver", "--vram", "--vbios"),
    "rocminfo": (),
    "migraphx-driver": ("--version",),
    "vulkaninfo": ("--summary",),
    "clinfo": ("-l",),
    "lscpu": (),
    "system_profiler": ("SPDisplaysDataType", "-json"),
    "dxdiag": ("/whql:off", "/x", OUTPUT),
}
"""Programs of vendors and systems, whose output is kept where they are installed: what they print, or `OUTPUT`."""

TOOL_SECONDS, FILE_SECONDS, LOOK_SECONDS = 20.0, 90.0, 2.0

OPENVINO_FACTS = (
    *("FULL_DEVICE_NAME", "DEVICE_TYPE", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES"),
    *("GPU_DEVICE_TOTAL_MEM_SIZE", "GPU_UARCH_VERSION", "GPU_EXECUTION_UNITS_COUNT", "NPU_DRIVER_VERSION"),
)
"""Properties of OpenVINO's devices; none identifies a single device."""

IREE_FACTS = ("device_id", "name")
"""Facts of IREE's devices, without `path`, which is an identifier of the single device."""


def machine_facts(folder: Path) -> str:
    """Hardware, drivers, libraries, and the environment variables that they read."""
    here, states = machine(), diagnose()
    write_text(folder / "machine.json", here.model_dump_json(indent=1) + "\n")
    write_text(folder / "runtimes.json", json.dumps([asdict(one) for one in states], indent=1) + "\n")
    set_here = {name: os.environ[name] for name in sorted(VARIABLES) if name in os.environ} | every_environment()
    write_text(folder / "environment.json", json.dumps(set_here, indent=1) + "\n")
    packages = sorted({f"{one.name}=={one.version}" for one in metadata.distributions() if one.name})
    write_text(folder / "packages.txt", "\n".join(packages) + "\n")
    for tool, arguments in TOOLS.items():
        if path := shutil.which(tool):
            seconds = FILE_SECONDS if OUTPUT in arguments else TOOL_SECONDS
            given = [str(folder / OUTPUT) if one == OUTPUT else one for one in arguments]
            write_text(folder / f"{tool}.log", output_of([path, *given], seconds))
            if OUTPUT in arguments:
                _wait_for(folder / OUTPUT, seconds)
    gpus = ", ".join(gpu.name for gpu in here.gpus) or "no GPU found"
    return f"{here.cpu}; {gpus}; runtimes that work: {', '.join(one.name for one in states if one.works)}"


def _wait_for(path: Path, seconds: float) -> None:
    """Wait until a file is complete, that a program may still write after it has returned."""
    size, until = -1, time.monotonic() + seconds
    while time.monotonic() < until and not (path.exists() and path.stat().st_size == size > 0):
        size = path.stat().st_size if path.exists() else -1
        time.sleep(LOOK_SECONDS)


def list_devices(folder: Path) -> str:
    """The devices that each library finds, in `devices.json`; what fails has its error instead."""
    asked: dict[str, Callable[[], Any]] = {
        "nvidia": _nvidia,
        "amd": lambda: [asdict(gpu) for gpu in amd_gpus()],
        "hip": _hip,
        "openvino": _openvino,
        "onnxruntime": _onnxruntime,
        "iree": _iree,
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        found[name] = _answer(ask)
        write_text(folder / "devices.json", json.dumps(found, indent=1, default=str) + "\n")
    failed = [name for name, one in found.items() if isinstance(one, dict) and "error" in one]
    said = f"devices.json: {', '.join(name for name in found if name not in failed) or 'nothing'}"
    return said + (f"; not available: {', '.join(failed)}" if failed else "")


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except LatentcError as exc:
        return {"error": str(exc)}
    except Exception as exc:  # drivers raise anything
        return {"error": f"{type(exc).__name__}: {first_line(exc)}"}


def _nvidia() -> Any:
    found = cuda.capabilities()
    gpus = [{"capability": one, "name": cuda.gpu_name(f"{one}:{place}")} for place, one in enumerate(found)]
    return {"cuda": ".".join(map(str, cuda.driver_version())), "gpus": gpus}


def _hip() -> Any:
    """Where HIP's library is, its GPUs by PCI address, and the number of the one that latentc uses."""
    return {
        "library": hip.shared_library(),
        "versions": hip.versions(),
        "denied": hip.denied(),
        "addresses": _answer(hip.addresses),
        "number": _answer(hip.number_of),
    }


def _openvino() -> Any:
    core: Any = import_module("openvino").Core()

    def of(name: str) -> dict[str, str]:
        known = [fact for fact in OPENVINO_FACTS if fact in core.get_property(name, "SUPPORTED_PROPERTIES")]
        return {fact: str(core.get_property(name, fact)) for fact in known}

    return {name: _answer(lambda name=name: of(name)) for name in core.available_devices}


def _onnxruntime() -> Any:
    library: Any = import_module("onnxruntime")
    switch_off_events(library)
    each = [
        {"provider": one.ep_name, "type": one.device.type.name, "vendor": one.device.vendor, "id": one.device.device_id}
        for one in (library.get_ep_devices() if hasattr(library, "get_ep_devices") else ())
    ]
    return {"version": library.__version__, "providers": library.get_available_providers(), "devices": each}


def _iree() -> Any:
    """The devices of each driver, by the names and addresses with which it opens them."""
    if (path := hip.shared_library()) and DYLIB not in os.environ:
        os.environ[DYLIB] = f"file:{path}"
    library: Any = import_module("iree.runtime")

    def of(driver: str) -> Any:
        devices: Sequence[Mapping[str, Any]] = library.get_driver(driver).query_available_devices()
        return [{fact: one.get(fact) for fact in IREE_FACTS} for one in devices]

    return {driver: _answer(lambda driver=driver: of(driver)) for driver in sorted(library.query_available_drivers())}


def output_of(command: Sequence[str], seconds: float = TOOL_SECONDS, variables: Mapping[str, str] | None = None) -> str:
    """What a program writes to standard output and standard error, and its exit code. `variables` are added to its
    environment.
    """
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, timeout=seconds, env={**os.environ, **(variables or {})},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        return f"{exc}\n"
    given = "".join(f"{name}={value} " for name, value in (variables or {}).items())
    return f"$ {given}{' '.join(command)}\n{done.stdout.rstrip()}\nexit code {done.returncode}\n"
