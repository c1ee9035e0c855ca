"""MIGraphX: compiled ahead of time by ROCm's `migraphx-driver`, without the AMD GPU, and run by its Python module.

An artifact is `engine.mxr` and `names.json`. Sizes are fixed. Written from its documentation
(rocm.docs.amd.com/projects/AMDMIGraphX: driver options, cross-compilation, Python API) and tested with substitutes for
ROCm's driver and module only, not on a device.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..core.engine import Engine
from ..core.errors import CompileError, RuntimeMissing
from ..core.progress import Progress
from ..core.recipes import Precision
from ..core.record import suggest
from ..core.tensors import Array
from .base import Facts, Job, Runtime, Target
from .border import ENOUGH, border, call_program, first_line, rebuild
from .host import HostEngine
from .machine import machine
from .order import read_names, write_names

PROGRAM = "engine.mxr"
ROCM = Path("/opt/rocm")
INSTALL = "Install it from ROCm's packages: apt install migraphx (rocm.docs.amd.com)."
GFX = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1201")
"""MI200, MI300, MI350, RX 7900, RX 7800, RX 9070."""

PRECISIONS: tuple[Precision, ...] = ("f32", "f16")


class MIGraphX(Runtime):
    """The adapter to MIGraphX."""

    facts = Facts(
        title="MIGraphX",
        devices=GFX,
        options={"exhaustive_tune": bool, "gpu_arch_params": str},
        newest_opset=18,
        typed=True,
        reads_bf16=False,
        free_sizes=False,
    )

    def missing(self, device: str) -> str | None:
        """Report a module that can't be loaded, and an unknown or missing device."""
        try:
            _module()
        except Exception as exc:  # its libraries may raise anything
            return (
                f"MIGraphX's Python module cannot be loaded ({first_line(exc)}). {INSTALL} Add {ROCM / 'lib'} to "
                "PYTHONPATH."
            )
        if reason := _unknown(device):
            return reason
        has = [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD" and gpu.architecture]
        if device in has:
            return None
        return f"This machine has no {device} GPU; AMD GPUs found: {', '.join(has) or 'none'}."

    def unbuildable(self, device: str) -> str | None:
        """Report a driver that is not installed, and an unknown device; the device itself isn't needed."""
        return _unknown(device) if _driver() else f"migraphx-driver was not found. {INSTALL}"

    def versions(self) -> dict[str, str]:
        """The version of MIGraphX, from its driver, or from its module where there is no driver."""
        with border(RuntimeMissing, "The version of MIGraphX cannot be read", INSTALL):
            driver = _driver()  # of the same package as the module, whose own version may be "dev"
            output = call_program("", driver, "--version") if driver else str(_module().__version__)
            return {"migraphx": re.findall(r"\d+\.\d+\.\d+", output)[0]}

    def device(self, device: str) -> dict[str, str]:
        """The version of ROCm, which brings the kernels, where it states one; the architecture is the device's name."""
        del device
        version = ROCM / ".info" / "version"
        return {"rocm": version.read_text(encoding="utf-8").strip()} if version.is_file() else {}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16 on every GPU: it computes in the types of the graph."""
        return () if _unknown(device) else PRECISIONS

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile for the device with the driver, with inputs and outputs in the host's memory."""
        target = job.target
        if reason := self.unbuildable(target.device):
            raise RuntimeMissing(reason)
        write_names(job, out)
        on_progress(f"{job.part}: compile", None)
        flags = ["--enable-offload-copy", "--gpu-arch", target.device]
        if params := target.options.get("gpu_arch_params"):
            flags += ["--gpu-arch-params", str(params)]
        if target.options.get("exhaustive_tune"):
            flags.append("--exhaustive-tune")
        what = f"MIGraphX cannot compile {job.part} for {target.device}"
        written = ("--binary", "--output", out / PROGRAM)
        call_program(what, _driver(), "compile", "--onnx", job.graph, *flags, *written)
        if not (out / PROGRAM).is_file():
            raise CompileError(f"{what}: the driver wrote no file and no error. Check that ROCm is 7.2 or newer.")

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load the program onto the GPU."""
        del files
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        module = _module()
        with border(CompileError, f"MIGraphX cannot load {artifact / PROGRAM}", rebuild(artifact)):
            held: list[Any] = [module.load(str(artifact / PROGRAM))]
            inputs, outputs = read_names(artifact)
        wanted = {tensor.name for tensor in target.outputs}

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del sizes
            with border(CompileError, "MIGraphX failed while computing", ENOUGH):
                arrays = {name: np.ascontiguousarray(feeds[name]) for name in inputs}  # arguments don't own them
                given = {name: module.argument(array) for name, array in arrays.items()}
                found = zip(outputs, held[0].run(given), strict=True)
                return {name: np.array(value, dtype=np.float32) for name, value in found if name in wanted}

        return HostEngine(target, call, held.clear)


def _unknown(device: str) -> str | None:
    if device in GFX:
        return None
    return f"latentc does not support device {device!r} through MIGraphX. {suggest(device, list(GFX))}"


def _driver() -> str | None:
    """Path of the compiler; None where it was not found."""
    return shutil.which("migraphx-driver") or shutil.which(str(ROCM / "bin" / "migraphx-driver"))


@cache
def _module() -> Any:
    return import_module("migraphx")
