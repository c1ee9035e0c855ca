"""ONNX Runtime.

An artifact is `engine.onnx`, the graph as ONNX Runtime optimized it for this CPU, and `engine.data`, its weights: both
are mapped at load, and nothing is optimized again. Weights packed for the CPU's matrix kernels can be saved too
(`session.save_external_prepacked_constant_initializers`), but 1.31.1 then crashes in a text encoder's first call.

All flavours of the library (onnxruntime, onnxruntime-gpu...) unpack into one folder, where the last one wins; and a
session whose provider can't be loaded runs on the CPU without a word. Neither passes here.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import CompileError, ProfileError, RuntimeMissing
from ..core.progress import Progress
from ..core.record import suggest
from ..core.tensors import Array, Precision
from .base import Engine, Job, Option, Target
from .border import border, first_line
from .host import HostEngine
from .machine import instructions
from .stamp import REBUILD, check_stamp, write_stamp

GRAPH, DATA = "engine.onnx", "engine.data"
INLINE_BYTES = 1024
"""Weights below this size stay in the graph."""

INSTALL = 'Install it with: pip install ".[onnxruntime]".'

PROVIDERS = {"CPU": "CPUExecutionProvider"}
"""Devices, and what runs on them."""

PRECISIONS: dict[str, tuple[Precision, ...]] = {"CPU": ("f32",)}
"""What each computes in without casting back and forth."""

LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "layout": "ORT_ENABLE_LAYOUT",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}

ATTRIBUTES: dict[str, type] = {
    "intra_op_num_threads": int,
    "inter_op_num_threads": int,
    "enable_cpu_mem_arena": bool,
    "enable_mem_pattern": bool,
    "use_deterministic_compute": bool,
}
"""Options that are attributes of SessionOptions, by its own names."""

ENTRIES = (
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.intra_op_thread_affinities",
    "session.set_denormal_as_zero",
    "session.dynamic_block_base",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
)
"""Options that are entries of the session's configuration, by its own names; true and false are 1 and 0."""

LEVEL = "graph_optimization_level"
SILENT = 4  # errors come as exceptions; the library's own log goes to stderr


class ONNXRuntime:
    """The adapter."""

    reads_onnx = True
    newest_opset = 23
    typed = False
    infers_shapes = True

    def devices(self) -> tuple[str, ...]:
        """Those of `PROVIDERS` that this flavour of the library has."""
        return tuple(device for device in PROVIDERS if self.missing(device) is None)

    def missing(self, device: str) -> str | None:
        """A library that isn't there or can't be loaded, several that overwrote one another, an unknown device."""
        try:
            has: list[str] = _library().get_available_providers()
        except ModuleNotFoundError as exc:
            return f"ONNX Runtime isn't installed here ({first_line(exc)}). {INSTALL}"
        except Exception as exc:  # a damaged installation raises whatever it likes
            return _damage(f"can't be loaded ({first_line(exc)})")
        if len(_flavours()) > 1:
            return _damage("was installed several times over")
        if device not in PROVIDERS:
            return f"latentc drives no {device} through ONNX Runtime. It drives: {', '.join(PROVIDERS)}."
        if PROVIDERS[device] not in has:
            return f"This ONNX Runtime has no {PROVIDERS[device]}; it has: {', '.join(has)}. {INSTALL}"
        return None

    def unbuildable(self, device: str) -> str | None:
        """It compiles where it runs."""
        return self.missing(device)

    def versions(self) -> dict[str, str]:
        """The library's version, and the flavour's name where it isn't the plain one."""
        with border(RuntimeMissing, "ONNX Runtime can't be loaded", INSTALL):
            version = str(_library().__version__)
        flavour = next(iter(_flavours()), "onnxruntime")
        return {"onnxruntime": version} | ({} if flavour == "onnxruntime" else {"flavour": flavour})

    def device(self, device: str) -> dict[str, str]:
        """On a CPU, the instruction sets: the graph's layout is made for them."""
        if device != "CPU":
            return {}
        return {"architecture": platform.machine(), "instructions": " ".join(instructions())}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """By device."""
        return PRECISIONS.get(device, ())

    def check(self, options: Mapping[str, Option]) -> None:
        """`ATTRIBUTES` and `ENTRIES` by ONNX Runtime's names, and `graph_optimization_level`, one of `LEVELS`."""
        for name, value in options.items():
            if name == LEVEL:
                fits, wanted = value in LEVELS, f"one of: {', '.join(LEVELS)}"
            elif name in ATTRIBUTES:
                kind = ATTRIBUTES[name]
                fits, wanted = type(value) is kind, {int: "a whole number", bool: "true or false"}[kind]
            elif name in ENTRIES:
                fits, wanted = isinstance(value, bool | int | str), "true, false, a whole number or a string"
            else:
                known = [*ATTRIBUTES, *ENTRIES, LEVEL]
                raise ProfileError(f"ONNX Runtime has no option {name!r} here. {suggest(name, known)}")
            if not fits:
                raise ProfileError(f"{name} is {value!r}; it must be {wanted}. Correct it under [options].")

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Optimize and write. Memory peaks at about the weights in f32."""
        target = job.target
        self._require(target)
        with border(ProfileError, f"ONNX Runtime refuses the options of {job.part}", "Correct them under [options]."):
            options = _options(target, LEVELS[str(target.options.get(LEVEL, "all"))])
            options.optimized_model_filepath = str(out / GRAPH)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", str(INLINE_BYTES)
            )
        on_progress(f"{job.part}: optimize", None)
        advice = f"If there is space left in {out.parent}, try opset = 18 in the profile."
        with border(CompileError, f"ONNX Runtime refuses {job.part} on {target.device}", advice):
            _session(job.graph, options, target)
        write_stamp(out, job, self.versions(), self.device(target.device))

    def load(self, artifact: Path, target: Target) -> Engine:
        """Map the optimized graph and its weights. It is computed as it was written."""
        self._require(target)
        check_stamp(artifact, target, self.versions(), self.device(target.device))
        path = artifact / GRAPH
        with border(CompileError, f"ONNX Runtime can't load {path}", REBUILD):
            session = _session(path, _options(target, LEVELS["off"]), target)
        _check_names(session, target, path)
        names = [tensor.name for tensor in target.outputs]

        def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
            del sizes
            with border(CompileError, "ONNX Runtime failed while computing", "Is there memory enough for this size?"):
                outputs: list[Array] = session.run(names, dict(feeds))
            return {name: output.astype(np.float32, copy=False) for name, output in zip(names, outputs, strict=True)}

        return HostEngine(target, call)

    def _require(self, target: Target) -> None:
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)
        if target.precision not in self.precisions(target.device):
            has = ", ".join(self.precisions(target.device))
            raise CompileError(
                f"ONNX Runtime doesn't compute in {target.precision} on {target.device}; it has: {has}. "
                "Ask for one of them under [precision]."
            )


def _session(path: Path, options: Any, target: Target) -> Any:
    """A session on the target's device, whole: no other provider may have stepped in."""
    provider = PROVIDERS[target.device]
    session = _library().InferenceSession(str(path), options, providers=[provider])
    taken = session.get_providers()
    if taken[0] != provider:
        raise RuntimeMissing(
            f"{provider} was asked for, and ONNX Runtime took {', '.join(taken)}: the provider's libraries can't be "
            f"loaded. {INSTALL}"
        )
    return session


def _options(target: Target, level: str) -> Any:
    library = _library()
    options = library.SessionOptions()
    options.log_severity_level = SILENT
    options.graph_optimization_level = getattr(library.GraphOptimizationLevel, level)
    if target.device != "CPU":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, value in target.options.items():
        if name in ATTRIBUTES:
            setattr(options, name, value)
        elif name in ENTRIES:
            options.add_session_config_entry(name, str(int(value)) if isinstance(value, bool) else str(value))
    return options


def _check_names(session: Any, target: Target, path: Path) -> None:
    inputs = {tensor.name for tensor in session.get_inputs()}
    outputs = {tensor.name for tensor in session.get_outputs()}
    wanted = {tensor.name for tensor in target.inputs}
    if inputs != wanted or not {tensor.name for tensor in target.outputs} <= outputs:
        raise CompileError(
            f"{path} takes {sorted(inputs)} and gives {sorted(outputs)}; the bundle says {sorted(wanted)} and "
            f"{[tensor.name for tensor in target.outputs]}. {REBUILD}"
        )


def _damage(what: str) -> str:
    """Say what is in the folder that all flavours share, and how to make it whole."""
    has = ", ".join(f"{name} {version}" for name, version in _flavours().items()) or "none that pip knows of"
    names = " ".join(_flavours()) or "onnxruntime"
    return (
        f"ONNX Runtime {what}. All its flavours unpack into one folder, and the last one wins; installed: {has}. "
        f'Keep one: pip uninstall -y {names} && pip install ".[onnxruntime]".'
    )


@cache
def _flavours() -> dict[str, str]:
    """Installed distributions that own the `onnxruntime` folder, and their versions."""
    found: dict[str, str] = {}
    for package in metadata.distributions(name=None):
        name = cast("str | None", package.metadata["Name"])
        if name and name.lower().replace("_", "-").startswith("onnxruntime"):
            record = package.read_text("RECORD") or ""
            if any(line.startswith("onnxruntime/__init__.py") for line in record.splitlines()):
                found[name] = package.version
    return found


def _library() -> Any:
    import onnxruntime

    library: Any = onnxruntime
    library.InferenceSession  # noqa: B018  a folder that lost its files still imports
    return library
