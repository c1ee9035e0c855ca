"""MIGraphX, compiled ahead by ROCm's `migraphx-driver` for AMD GPUs that needn't be here, run by its Python module.

An artifact is `engine.mxr` and `names.json`. Sizes are fixed. Written by its documentation
(rocm.docs.amd.com/projects/AMDMIGraphX: driver options, cross-compilation, Python API) and tried with a driver and a
module that stand in for ROCm's, on no device.
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
from .border import border, call_program, first_line, rebuild
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
    """The adapter."""

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
        """The module that can't be loaded, an unknown device, or one that isn't here."""
        try:
            _module()
        except Exception as exc:  # its libraries raise whatever they like
            return f"MIGraphX's Python module can't be loaded ({first_line(exc)}). {INSTALL} It lies in {ROCM / 'lib'}."
        if reason := _unknown(device):
            return reason
        has = [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD" and gpu.architecture]
        return None if device in has else f"There is no {device} here; AMD GPUs found: {', '.join(has) or 'none'}."

    def unbuildable(self, device: str) -> str | None:
        """The driver that isn't installed, or an unknown device; the device itself needn't be here."""
        return _unknown(device) if _driver() else f"There is no migraphx-driver here. {INSTALL}"

    def versions(self) -> dict[str, str]:
        """Of MIGraphX: by its module, or by its driver where only that is here."""
        with border(RuntimeMissing, "MIGraphX can't say its version", INSTALL):
            driver = _driver()  # of the same package as the module, whose own version may be "dev"
            said = call_program("", driver, "--version") if driver else str(_module().__version__)
            return {"migraphx": re.findall(r"\d+\.\d+\.\d+", said)[0]}

    def device(self, device: str) -> dict[str, str]:
        """The architecture, which is its name; kernels are ROCm's, by its version where it states one."""
        del device
        told = ROCM / ".info" / "version"
        return {"rocm": told.read_text(encoding="utf-8").strip()} if told.is_file() else {}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16, everywhere: it computes in what the graph says."""
        return () if _unknown(device) else PRECISIONS

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Let the driver compile for the device, with inputs and outputs in the host's memory."""
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
        what = f"MIGraphX can't compile {job.part} for {target.device}"
        written = ("--binary", "--output", out / PROGRAM)
        call_program(what, _driver(), "compile", "--onnx", job.graph, *flags, *written)
        if not (out / PROGRAM).is_file():
            raise CompileError(f"{what}: the driver says nothing and wrote nothing. Is its ROCm new enough (7.2)?")

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Bring the program onto the GPU."""
        del files
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        module = _module()
        with border(CompileError, f"MIGraphX can't load {artifact / PROGRAM}", rebuild(artifact)):
            held: list[Any] = [module.load(str(artifact / PROGRAM))]
            inputs, outputs = read_names(artifact)
        wanted = {tensor.name for tensor in target.outputs}

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del sizes
            with border(CompileError, "MIGraphX failed while computing", "Is there memory enough for this size?"):
                arrays = {name: np.ascontiguousarray(feeds[name]) for name in inputs}  # arguments don't keep them
                given = {name: module.argument(array) for name, array in arrays.items()}
                found = zip(outputs, held[0].run(given), strict=True)
                return {name: np.array(value, dtype=np.float32) for name, value in found if name in wanted}

        return HostEngine(target, call, held.clear)


def _unknown(device: str) -> str | None:
    return None if device in GFX else f"latentc drives no {device} through MIGraphX. {suggest(device, list(GFX))}"


def _driver() -> str | None:
    """The compiler's path."""
    return shutil.which("migraphx-driver") or shutil.which(str(ROCM / "bin" / "migraphx-driver"))


@cache
def _module() -> Any:
    return import_module("migraphx")
