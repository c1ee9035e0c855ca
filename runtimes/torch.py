"""The reference runtime: the checkpoint's own modules, run by PyTorch. The export was compared with them.

An artifact is `source.json`, which states where the checkpoint is. The bundle's graphs aren't read. With the option
`compile`, the modules go through `torch.compile`: a baseline for `latentc bench`, compiled at the first call of each
process. The device CUDA covers NVIDIA's and AMD's GPUs, as in PyTorch; f32 is computed in f32 there, not in TF32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import Field, ValidationError

from ..core.engine import Engine
from ..core.errors import CheckpointError, CompileError, RuntimeMissing
from ..core.external import parameter_of
from ..core.files import sha256_json
from ..core.install import install
from ..core.limits import threads
from ..core.progress import Progress
from ..core.reading import CONFIG_BYTES, read_json
from ..core.record import Record, complaints, suggest
from ..core.tensors import Array
from .base import COUNTS, NUMBERED, CheckpointOrigin, Facts, Job, Runtime, Target, numbered
from .border import ENOUGH, REBUILD, border, first_line
from .cuda import TF32_OVERRIDE
from .environment import READ
from .host import HostEngine
from .torch_clock import TorchClock
from .weights import weights_in

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.parts import PartSpec

SOURCE = "source.json"
COMPILE, THREADS = "compile", "threads"
EXTRA = "export"
LIBRARIES = ("torch", "diffusers", "transformers")
VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "DNNL_", "MKL_CBWR", "MKL_DISABLE_FAST_MM", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_"),
    *("PYTORCH_MIOPEN_", "PYTORCH_TUNABLEOP_", "TORCHINDUCTOR_", "TORCH_ALLOW_TF32_", "TORCH_BLAS_", "TORCH_CUDNN_"),
    *("TORCH_LINALG_", "TORCH_LINEAR_", "TORCH_MKLDNN_", "TORCH_ROCM_", *READ["hip"]),  # CUDA may be an AMD GPU
)
DEVICES = {"CPU": "cpu", "CUDA": "cuda"}
"""Devices, and their names in PyTorch."""


class Reference(Record):
    """The checkpoint of a part, stored as `source.json`."""

    location: str
    """Folder or file on this machine; for a hub id, the folder that it was downloaded to."""
    variant: str | None = None
    left_out: tuple[str, ...] = ()
    """Optional components that were left out."""
    components: dict[str, str] = Field(default_factory=dict)
    """Locations of components that come from elsewhere, keyed by component."""
    embeddings: tuple[str, ...] = ()
    """Files of textual inversions, with their tokens."""
    adapters: dict[str, float] = Field(default_factory=dict)
    """Files of adapters that its weights are fused with, and their strengths."""
    family: str
    part: str
    digest: str
    """Digest of the component's config, its stored weights and its adapters."""


class Torch(Runtime):
    """The adapter to PyTorch."""

    facts = Facts(
        title="The torch runtime",
        variables=VARIABLES,
        devices=tuple(DEVICES),
        numbered=True,
        libraries=LIBRARIES,
        precisions=("f32", "bf16", "f16"),
        options={COMPILE: bool, THREADS: COUNTS},
        at_load=frozenset({THREADS}),
        threads=THREADS,
        reads_onnx=False,
        needs_checkpoint=True,
    )

    def missing(self, device: str) -> str | None:
        """Report a library that is not installed or can't be loaded, and an unknown or missing device."""
        try:
            torch = import_module("torch")
        except Exception as exc:  # mismatched libraries raise OSError and more
            return f"PyTorch cannot be loaded ({first_line(exc)}). {install(EXTRA)}"
        if absent := [name for name in LIBRARIES if find_spec(name) is None]:
            return f"The torch runtime also requires {' and '.join(absent)}. {install(EXTRA)}"
        name, number = numbered(device)
        if name not in DEVICES or (number is not None and name == "CPU"):
            return f"latentc does not support device {device!r} through PyTorch. {suggest(device, list(DEVICES))}"
        if name == "CUDA" and not torch.cuda.is_available():
            return (
                f"PyTorch {torch.__version__} finds no GPU. Install a build of PyTorch for CUDA or ROCm, and the GPU's "
                "driver."
            )
        if name == "CUDA" and number is not None and number >= torch.cuda.device_count():
            return f"PyTorch finds {torch.cuda.device_count()} GPUs, numbered from 0 on; {device} is not one of them."
        if name == "CUDA" and os.environ.get(TF32_OVERRIDE, "0") != "0":
            return (
                f"{TF32_OVERRIDE}={os.environ[TF32_OVERRIDE]} in the environment makes NVIDIA's libraries compute f32 "
                "in TF32. Unset it, or set it to 0."
            )
        return None

    def versions(self) -> dict[str, str]:
        """Versions of PyTorch, diffusers and transformers."""
        with border(RuntimeMissing, "The torch runtime cannot be used", install(EXTRA)):
            return {name: metadata.version(name) for name in LIBRARIES}

    def places(self, device: str) -> dict[int, str]:
        """The GPUs that PyTorch finds."""
        name = numbered(device)[0]
        if name == "CPU":
            return {0: name}
        return {number: f"{name}{NUMBERED}{number}" for number in range(import_module("torch").cuda.device_count())}

    def model(self, device: str) -> dict[str, str]:
        """The GPU's name."""
        name, number = numbered(device)
        return {} if name == "CPU" else {"gpu": str(import_module("torch").cuda.get_device_name(number or 0))}

    def drivers(self, device: str) -> dict[str, str]:
        """The GPU's driver and number: an engine's key doesn't have the GPU's name."""
        name, number = numbered(device)
        return super().drivers(device) | ({} if name == "CPU" else {"number": str(number or 0)})

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Store where the checkpoint is, and the digest of its weights."""
        self._require(job.target)
        if (origin := job.origin) is None:
            raise CompileError(
                f"The torch runtime runs the modules of a checkpoint, but the bundle of {job.part} has none. Use "
                "another runtime."
            )
        on_progress(f"{job.part}: read the checkpoint", None)
        checkpoint = open_origin(origin)
        reference = Reference(
            location=str(checkpoint.place),
            variant=origin.variant,
            left_out=origin.left_out,
            components=dict(origin.components),
            embeddings=origin.embeddings,
            adapters=dict(origin.adapters),
            family=origin.family,
            part=job.part,
            digest=_digest(checkpoint, _spec(checkpoint, job.part, job.target)),
        )
        (out / SOURCE).write_text(reference.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n")

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Open the checkpoint and load the component. Raises `CheckpointError` where it was moved or changed."""
        del files
        return _engine(*self._opened(artifact, target), target)

    def _opened(self, artifact: Path, target: Target) -> tuple[Checkpoint, PartSpec]:
        """The checkpoint of an artifact, and its part."""
        self._require(target)
        try:
            reference = Reference.model_validate(read_json(artifact / SOURCE, CONFIG_BYTES, CompileError, REBUILD))
        except ValidationError as exc:
            raise CompileError(f"{artifact / SOURCE} is damaged: {complaints(exc, Reference)}. {REBUILD}") from exc
        if not Path(reference.location).exists():
            raise CheckpointError(
                f"The torch runtime runs the checkpoint itself, and {reference.location} does not exist any more. "
                "Restore it, or export the checkpoint again from its current location."
            )
        checkpoint = open_origin(reference)
        spec = _spec(checkpoint, reference.part, target)
        if _digest(checkpoint, spec) != reference.digest:
            names = " or ".join((spec.component, *spec.also))
            raise CheckpointError(f"{names} of {reference.location} was changed after this engine was built. {REBUILD}")
        return checkpoint, spec

    def fixed(self, device: str) -> str | None:
        """Weights can be exchanged on every device."""
        del device

    def open(self, job: Job, artifact: Callable[[], Path]) -> Engine:
        """Load the checkpoint's module, and give it the graph's weights, which have its parameters' names."""
        checkpoint, spec = self._opened(artifact(), job.target)
        return _engine(checkpoint, spec, job.target, weights_in(job.graph, job.weights))

    def _require(self, target: Target) -> None:
        if reason := self.missing(target.place):
            raise RuntimeMissing(reason)


def _engine(
    checkpoint: Checkpoint, spec: PartSpec, target: Target, weights: Mapping[str, Array] | None = None
) -> Engine:
    """The engine of a component, with the values of `weights` instead of its own where there are any."""
    import torch

    from ..checkpoints.parts import as_part

    dtype: torch.dtype = getattr(torch, target.recipe.dtype)
    inputs = tuple(tensor.name for tensor in spec.inputs)
    outputs = tuple(tensor.name for tensor in spec.outputs)
    kind = DEVICES[target.device]
    device = kind if target.number is None else f"{kind}:{target.number}"
    own = None if "OMP_NUM_THREADS" in os.environ else threads()  # PyTorch reads that variable itself
    if device == "cpu" and (count := target.options.get(THREADS, own)) is not None:
        torch.set_num_threads(int(count))
    if kind == "cuda":
        in_f32(torch)
    module = as_part(checkpoint, spec, load=partial(checkpoint.module, dtype=dtype))
    with border(
        CompileError, f"PyTorch cannot load {spec.component} on {target.device}", "Check that enough memory is free."
    ):
        if weights is not None:
            _exchange(cast("Module", module.model), weights, spec.name)
        part: Any = module.to(device)
    if target.options.get(COMPILE):
        part = torch.compile(part)  # pyright: ignore[reportUnknownMemberType]

    clock = TorchClock(torch.cuda, device) if kind == "cuda" else None

    def taken(array: Array) -> torch.Tensor:
        tensor = _tensor(array)
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        del sizes
        with (
            border(CompileError, "PyTorch failed while computing", ENOUGH),
            torch.inference_mode(),
        ):
            given = [taken(feeds[name]) for name in inputs]
            with nullcontext() if clock is None else clock.around():
                results: tuple[torch.Tensor, ...] = part(*given)
            # A copy: a module may return its own buffer, or a view of another output.
            found = {name: result.float().cpu().numpy().copy() for name, result in zip(outputs, results, strict=True)}
            if clock is not None:
                clock.note()
            return found

    if clock is None:
        return HostEngine(target, call)
    return HostEngine(target, call, torch.cuda.empty_cache, clock.use)


def _tensor(array: Array) -> torch.Tensor:
    """A copy of an array."""
    import torch

    return torch.tensor(array)


def _exchange(module: Module, weights: Mapping[str, Array], part: str) -> None:
    """Replace parameters by a graph's weights of the same names; equal ones stay, mapped from the checkpoint's file.

    Raises `CompileError` for a graph of another module.
    """
    import torch

    own = dict(module.named_parameters(remove_duplicate=False))
    graph = {parameter_of(name): values for name, values in weights.items()}
    named = {name: values.T if transposed else values for (name, transposed), values in graph.items() if name in own}
    if not named or any(values.shape != own[name].shape for name, values in named.items()):
        raise CompileError(f"The graph of {part} is not of the checkpoint's module. Export the checkpoint again.")
    for name, values in named.items():
        if not torch.equal(given := _tensor(np.asarray(values, np.float32)).to(own[name].dtype), own[name]):
            own[name].data = given


def in_f32(torch: Any) -> None:
    """Have PyTorch compute f32 in f32, not in TF32. TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 would change its default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def open_origin(origin: CheckpointOrigin | Reference) -> Checkpoint:
    """Open the checkpoint of a bundle, with everything that was changed at export."""
    from ..checkpoints.open import open_checkpoint

    return open_checkpoint(
        origin.location,
        family=origin.family,
        variant=origin.variant,
        components=origin.components,
        without=origin.left_out,
        embeddings=origin.embeddings,
        adapters=origin.adapters,
    )


def _digest(checkpoint: Checkpoint, spec: PartSpec) -> str:
    """Digest of the files of a part's component, and of those that are part of its graph, such as ControlNets."""
    digests = [checkpoint.digest(name) for name in (spec.component, *spec.also)]
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def _spec(checkpoint: Checkpoint, part: str, target: Target) -> PartSpec:
    """The part with the target's outputs; raises `CheckpointError` where the checkpoint has other inputs."""
    from ..checkpoints.parts import part_spec

    spec = part_spec(checkpoint, part)
    if {tensor.name for tensor in spec.inputs} != {tensor.name for tensor in target.inputs}:
        raise CheckpointError(
            f"{part} of the checkpoint has the inputs {', '.join(tensor.name for tensor in spec.inputs)}, but the "
            f"bundle expects {', '.join(tensor.name for tensor in target.inputs)}. Export the checkpoint again."
        )
    return replace(spec, outputs=target.outputs)
