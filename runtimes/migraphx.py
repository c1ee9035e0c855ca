"""MIGraphX: compiled ahead of time by ROCm's `migraphx-driver`, and run by its Python module.

An artifact is `engine.mxr` and `names.json`. Sizes are fixed. On a machine with the GPU, the driver compiles for that
GPU and measures its kernels. Without the GPU it compiles for an architecture, which drivers support since June 2026,
without measuring and without the kernels of MIOpen, hipBLASLt and CK; it then assumes 120 compute units and one
chiplet, unless `gpu_arch_params` states others. Fast math, which replaces f16's GELU by an approximation, is off.

Written from its documentation (rocm.docs.amd.com/projects/AMDMIGraphX: driver options, cross-compilation, Python API)
and sources, and tested with substitutes for ROCm's driver and module only, not on a device.
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
from ..core.graph_rules import MICROSOFT
from ..core.progress import Progress
from ..core.recipes import Precision
from ..core.record import suggest
from ..core.tensors import Array
from . import hip
from .base import Facts, Job, Runtime, Target
from .border import ENOUGH, border, call_program, first_line, rebuild
from .host import HostEngine
from .machine import machine
from .order import read_names, write_names

PROGRAM = "engine.mxr"
CROSS, PARAMS, TUNE = "--gpu-arch", "gpu_arch_params", "exhaustive_tune"
INSTALL = (
    "Install it from ROCm's packages (apt install migraphx), or with ROCm 7.14 and 10 from AMD's wheel for Python 3.12 "
    "(rocm.docs.amd.com/projects/ai-ecosystem)."
)
GFX = (
    *("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1102", "gfx1103"),
    *("gfx1150", "gfx1151", "gfx1200", "gfx1201"),
)
"""Those of AMD's page for MIGraphX 2.19 and ROCm 10.2, in order: MI200, MI300, MI350, RX 7900, RX 7800, RX 7600, Radeon
780M, 890M and 8060S (Ryzen AI Max), RX 9060, RX 9070."""

PRECISIONS: tuple[Precision, ...] = ("f32", "f16")


OTHERS = frozenset(
    f"{MICROSOFT}.{name}"
    for name in (
        *("Attention", "BiasAdd", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "GroupNorm", "MatMulNBits"),
        *("MultiHeadAttention", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    )
)
"""Microsoft's operators that its parser knows (src/onnx/parse_*.cpp of its repository in 2026); none was run here."""


class MIGraphX(Runtime):
    """The adapter to MIGraphX."""

    facts = Facts(
        title="MIGraphX",
        devices=GFX,
        revision=2,
        options={TUNE: bool, PARAMS: str, "fast_math": bool},
        newest_opset=18,
        typed=True,
        reads_bf16=False,
        free_sizes=False,
        others=OTHERS,
    )

    def missing(self, device: str) -> str | None:
        """Report a module that can't be loaded, and an unknown or missing device."""
        try:
            _module()
        except Exception as exc:  # its libraries may raise anything
            return (
                f"MIGraphX's Python module cannot be loaded ({first_line(exc)}). {INSTALL} Add ROCm's lib folder, "
                "usually /opt/rocm/lib, to PYTHONPATH; the module is for one version of Python."
            )
        if reason := _unknown(device):
            return reason
        if device not in (has := _architectures()):
            return f"This machine has no {device} GPU; AMD GPUs found: {', '.join(has) or 'none'}."
        return _no_access(device)

    def unbuildable(self, device: str) -> str | None:
        """Report a driver that is not installed, an unknown device, and one that isn't here, for an old driver."""
        program = driver()
        if program is None:
            return f"migraphx-driver was not found. {INSTALL}"
        if reason := _unknown(device):
            return reason
        if device in _architectures():
            return _no_access(device)
        if not _crosses(program):
            return (
                f"This machine has no {device} GPU, and its migraphx-driver cannot compile without the GPU: it has no "
                f"{CROSS}, which was added in June 2026. Update ROCm, or build on a machine with the GPU."
            )
        return None

    def versions(self) -> dict[str, str]:
        """The version of MIGraphX, from its driver, or from its module where there is no driver."""
        with border(RuntimeMissing, "The version of MIGraphX cannot be read", INSTALL):
            program = driver()  # of the same package as the module, whose own version may be "dev"
            output = call_program("migraphx-driver", program, "--version") if program else str(_module().__version__)
            return {"migraphx": re.findall(r"\d+\.\d+\.\d+", output)[0]}

    def device(self, device: str) -> dict[str, str]:
        """Versions of ROCm, which brings the kernels, where it states them; the architecture is the device's name."""
        del device
        return hip.versions()

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
        here = target.device in _architectures()
        call_program(
            f"MIGraphX cannot compile {job.part} for {target.device}",
            *command_line(target, job.graph, out / PROGRAM, here=here),
            variables=hip.alone(hip.number_of(target.device)) if here else {},
            result=out / PROGRAM,
        )

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load the program onto the GPU."""
        del files
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        module, number = _module(), hip.number_of(target.device)
        with border(CompileError, f"MIGraphX cannot load {artifact / PROGRAM}", rebuild(artifact)):
            hip.use(number)  # a program is loaded onto the thread's current GPU
            held: list[Any] = [module.load(str(artifact / PROGRAM))]
            inputs, outputs = read_names(artifact)
        wanted = {tensor.name for tensor in target.outputs}

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del sizes
            with border(CompileError, "MIGraphX failed while computing", ENOUGH):
                hip.use(number)
                arrays = {name: np.ascontiguousarray(feeds[name]) for name in inputs}  # arguments don't own them
                given = {name: module.argument(array) for name, array in arrays.items()}
                found = zip(outputs, held[0].run(given), strict=True)
                return {name: np.array(value, dtype=np.float32) for name, value in found if name in wanted}

        return HostEngine(target, call, held.clear)


def _unknown(device: str) -> str | None:
    if device in GFX:
        return None
    return f"latentc does not support device {device!r} through MIGraphX. {suggest(device, list(GFX))}"


def _architectures() -> list[str]:
    """Those of the AMD GPUs of this machine."""
    return [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD" and gpu.architecture]


def _no_access(device: str) -> str | None:
    if reason := hip.denied(device):
        return reason
    try:
        hip.number_of(device)
    except RuntimeMissing as exc:
        return str(exc)
    return None


def command_line(target: Target, graph: Path, program: Path, *, here: bool) -> list[str]:
    """The driver's command line for a GPU that is `here`, or for its architecture only. Raises `CompileError`."""
    flags = ["--enable-offload-copy", *_device_flags(target, here=here)]
    if not target.options.get("fast_math"):
        flags.append("--disable-fast-math")
    return [str(driver()), "compile", "--onnx", str(graph), *flags, "--binary", "--output", str(program)]


def _device_flags(target: Target, *, here: bool) -> list[str]:
    """The driver's flags for a GPU of this machine, or for an architecture. Raises `CompileError`."""
    tune, params = bool(target.options.get(TUNE)), target.options.get(PARAMS)
    if here:
        return ["--exhaustive-tune"] if tune else []
    if tune:
        raise CompileError(
            f"{TUNE} measures kernels on the GPU, and this machine has no {target.device}. Remove it from [options], "
            "or build on a machine with the GPU."
        )
    return [CROSS, target.device, *(["--gpu-arch-params", str(params)] if params else [])]


@cache
def _crosses(driver: str) -> bool:
    """Whether a driver compiles for a GPU that isn't in the machine."""
    return CROSS in call_program("migraphx-driver", driver, "compile", "--help")


def driver() -> str | None:
    """Path of the compiler; None where it was not found."""
    found = (shutil.which(str(root / "bin" / "migraphx-driver")) for root in hip.roots())
    return shutil.which("migraphx-driver") or next(filter(None, found), None)


@cache
def _module() -> Any:
    return import_module("migraphx")
