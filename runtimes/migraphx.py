"""MIGraphX: compiled ahead of time by ROCm's `migraphx-driver`, and run by its Python module.

An artifact is `engine.mxr` and `names.json`. Sizes are fixed. On a machine with the GPU, the driver compiles for that
GPU and measures its kernels. Without the GPU it compiles for an architecture, which drivers support since June 2026,
without measuring and without the kernels of MIOpen, hipBLASLt and CK; it then assumes 120 compute units and one
chiplet, unless `gpu_arch_params` states others, and the artifact also has `without_gpu.txt`. Fast math, which replaces
f16's GELU by an approximation, is off.

Written from its documentation (rocm.docs.amd.com/projects/AMDMIGraphX: driver options, cross-compilation, Python API)
and sources, and tested with substitutes for ROCm's driver and module only, not on a device.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..core.engine import Engine
from ..core.errors import CompileError, ProfileError, RuntimeMissing
from ..core.graph_rules import MICROSOFT
from ..core.progress import Progress
from ..core.recipes import Precision
from ..core.record import suggest
from ..core.tensors import Array
from ..core.units import counted
from . import hip
from .base import Facts, Job, Option, Runtime, Target, numbered
from .border import ENOUGH, border, call_program, first_line, rebuild
from .host import HostEngine
from .machine import machine
from .order import read_names, write_names

PROGRAM = "engine.mxr"
CROSSED = "without_gpu.txt"
"""The flags of an engine that was compiled without its GPU."""

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

LARGEST = {
    "gfx90a": (110, 1),
    "gfx942": (304, 8),
    "gfx950": (256, 8),
    "gfx1100": (96, 1),
    "gfx1101": (60, 1),
    "gfx1102": (32, 1),
    "gfx1103": (12, 1),
    "gfx1150": (16, 1),
    "gfx1151": (40, 1),
    "gfx1200": (32, 1),
    "gfx1201": (64, 1),
}
"""Most compute units and chiplets that a GPU of an architecture has to HIP: gfx90a is half of an MI250X
(ROCm/legacy-rocm-build, docs/reference/gpu-specs.rst at e88a729c)."""

ONLY = {"gfx950": "{num_cu:256, num_chiplets:8}"}
"""Parameters of architectures whose products all have the same: those of an MI350X and an MI355X, not divided."""

UNITS, CHIPLETS = "num_cu", "num_chiplets"
PARAM_NAMES = (UNITS, CHIPLETS, "max_threads_per_cu", "max_threads_per_block", "wavefront_size")
FORM = re.compile(r"\{\s*(\w+\s*:\s*\d+\s*(,\s*\w+\s*:\s*\d+\s*)*)\}")

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
        numbered=True,
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
        name = numbered(device)[0]
        if name not in (has := _architectures()):
            return f"This machine has no {name} GPU; AMD GPUs found: {', '.join(has) or 'none'}."
        return _no_access(device)

    def unbuildable(self, device: str) -> str | None:
        """Report a driver that is not installed, an unknown device, and one that isn't here, for an old driver."""
        program = driver()
        if program is None:
            return f"migraphx-driver was not found. {INSTALL}"
        if reason := _unknown(device):
            return reason
        name = numbered(device)[0]
        if name in _architectures():
            return _no_access(device)
        if CROSS not in _options(program):
            return (
                f"This machine has no {name} GPU, and its migraphx-driver cannot compile without the GPU: it has no "
                f"{CROSS}, which was added in June 2026. Update ROCm, or build on a machine with the GPU."
            )
        return None

    def uncompilable(self, target: Target) -> str | None:
        """Report options that this driver doesn't have, and one that needs the GPU, where it isn't here."""
        try:
            line = command_line(target, Path("model.onnx"), Path(PROGRAM), here=target.device in _architectures())
        except CompileError as exc:
            return str(exc)
        has = _options(line[0])
        lacking = [word for word in line if word.startswith("--") and word not in has]
        if not has or not lacking:
            return None
        other = (
            f", or remove {PARAMS} from [options]" if f"{CROSS}-params" in lacking and PARAMS in target.options else ""
        )
        return f"{line[0]} has no {' and no '.join(lacking)}. Update ROCm{other}, and build again."

    def versions(self) -> dict[str, str]:
        """The version of MIGraphX, from its driver, or from its module where there is no driver."""
        with border(RuntimeMissing, "The version of MIGraphX cannot be read", INSTALL):
            program = driver()  # of the same package as the module, whose own version may be "dev"
            output = call_program("migraphx-driver", program, "--version") if program else str(_module().__version__)
            return {"migraphx": re.findall(r"\d+\.\d+\.\d+", output)[0]}

    def device(self, device: str) -> dict[str, str]:
        """Versions of ROCm, which brings the kernels, where it states them, and variables that change the code; the
        architecture is the device's name.
        """
        del device
        return hip.versions() | hip.environment()

    def kinds(self, device: str) -> tuple[str, ...]:
        """The architecture, and `hip`."""
        return *super().kinds(device), "hip"

    def places(self, device: str) -> dict[int, str]:
        """The GPUs of the architecture, as HIP numbers them."""
        return hip.places(numbered(device)[0])

    def model(self, device: str) -> dict[str, str]:
        """The kernel's name and the memory of the GPU."""
        return hip.model(*numbered(device))

    def drivers(self, device: str) -> dict[str, str]:
        """Versions of ROCm and of the libraries that load the program, which compile parts of it then; the GPU's model,
        which its key doesn't have.
        """
        with suppress(Exception):  # `missing` reports it
            _module()
        return hip.drivers() | hip.model(*numbered(device))

    def check(self, options: Mapping[str, Option], device: str | None = None) -> None:
        """Also check the form of the device's parameters, and that a GPU of this architecture can have them."""
        super().check(options, device)
        if PARAMS in options:
            _check_params(str(options[PARAMS]), numbered(device)[0] if device else None)

    def remark(self, artifacts: Iterable[Path], device: str) -> str | None:
        """State that engines were compiled without the GPU, and, on a machine with it, how to replace them."""
        crossed = [artifact for artifact in artifacts if (artifact / CROSSED).is_file()]
        if not crossed:
            return None
        slow = (
            f"{counted(len(crossed), 'engine')} for {device} compiled on a machine without that GPU: kernels were not "
            "measured, and those of MIOpen, hipBLASLt and CK are not used."
        )
        if numbered(device)[0] in _architectures():
            return f"{slow} For faster ones, remove {' '.join(map(str, crossed))} and build again on this machine."
        return f"{slow} A build on a machine with the GPU makes faster ones."

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """f32 and f16 on every GPU: it computes in the types of the graph."""
        return () if _unknown(device) else PRECISIONS

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile for the device with the driver, with inputs and outputs in the host's memory."""
        target = job.target
        if reason := self.unbuildable(target.place):
            raise RuntimeMissing(reason)
        here = target.device in _architectures()
        line = command_line(target, job.graph, out / PROGRAM, here=here)
        if reason := self.uncompilable(target):
            raise RuntimeMissing(reason)
        write_names(job, out)
        on_progress(f"{job.part}: compile", None)
        call_program(
            f"MIGraphX cannot compile {job.part} for {target.device}",
            *line,
            variables=hip.alone(hip.number_of(target.device, target.number)) if here else {},
            result=out / PROGRAM,
        )
        if not here:
            (out / CROSSED).write_text(
                " ".join(_device_flags(target, here=False)) + "\n", encoding="utf-8", newline="\n"
            )

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load the program onto the GPU."""
        del files
        if reason := self.missing(target.place):
            raise RuntimeMissing(reason)
        module, number = _module(), hip.number_of(target.device, target.number)
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
    if numbered(device)[0] in GFX:
        return None
    return f"latentc does not support device {device!r} through MIGraphX. {suggest(device, list(GFX))}"


def _architectures() -> list[str]:
    """Those of the AMD GPUs of this machine."""
    return [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD" and gpu.architecture]


def _no_access(device: str) -> str | None:
    name, number = numbered(device)
    if reason := hip.denied(name):
        return reason
    try:
        hip.number_of(name, number)
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
    params = params or ONLY.get(target.device)
    return [CROSS, target.device, *([f"{CROSS}-params", str(params)] if params else [])]


def _check_params(text: str, device: str | None) -> None:
    """Raise `ProfileError` for parameters in another form, of unknown names, or larger than a device's GPUs have."""
    stated = FORM.fullmatch(text.strip())
    if stated is None:
        raise ProfileError(
            f"{PARAMS} is {text!r}; it must have the form {{num_cu:304, num_chiplets:8}}. Correct it under [options]."
        )
    pairs = (pair.partition(":") for pair in stated[1].split(","))
    given = {name.strip(): int(number) for name, _, number in pairs}
    if unknown := sorted(given.keys() - set(PARAM_NAMES)):
        raise ProfileError(f"{PARAMS} has no {unknown[0]!r}. {suggest(unknown[0], list(PARAM_NAMES))}")
    for name, most in zip((UNITS, CHIPLETS), LARGEST.get(device or "", ()), strict=False):
        if given.get(name, 1) not in range(1, most + 1):
            raise ProfileError(
                f"{PARAMS} has {name}:{given[name]}, but no {device} has more than {most}. Write those of your GPU "
                "(rocminfo: Compute Unit, and num_xcc), or remove the option."
            )


@cache
def _options(driver: str) -> frozenset[str]:
    """The options of a driver's `compile`, from its help: lines such as `    --output, -o [std::string]`."""
    lines = re.findall(
        r"(?m)^ {4}(-[\w-]+(?:, +-[\w-]+)*)", call_program("migraphx-driver", driver, "compile", "--help")
    )
    return frozenset(name for line in lines for name in re.split(", +", line))


def driver() -> str | None:
    """Path of the compiler; None where it was not found."""
    found = (shutil.which(str(root / "bin" / "migraphx-driver")) for root in hip.roots())
    return shutil.which("migraphx-driver") or next(filter(None, found), None)


@cache
def _module() -> Any:
    return import_module("migraphx")
