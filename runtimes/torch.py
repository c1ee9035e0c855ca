"""The reference: the checkpoint's own modules, run by PyTorch. It is what the export was compared with.

An artifact is `source.json`: where the checkpoint is. The bundle's graphs aren't read. With the option `compile`, the
modules go through `torch.compile`: a baseline for `latentc bench`, paid for at the first call of each process. So are
GPUs of NVIDIA's and AMD's, in whatever PyTorch calls CUDA; f32 is computed in f32 there, not in TF32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationError

from ..core.engine import Engine
from ..core.errors import CheckpointError, CompileError, RuntimeMissing
from ..core.install import install
from ..core.limits import threads
from ..core.progress import Progress
from ..core.reading import CONFIG_BYTES, read_json
from ..core.record import Record, complaints, suggest
from ..core.tensors import Array
from .base import COUNTS, Facts, Job, Runtime, Target
from .border import REBUILD, border, first_line
from .host import HostEngine

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.parts import PartSpec

SOURCE = "source.json"
COMPILE, THREADS = "compile", "threads"
INSTALL = install("export")
LIBRARIES = ("torch", "diffusers", "transformers")
DEVICES = {"CPU": "cpu", "CUDA": "cuda"}
"""Devices, and what PyTorch calls them."""


class Reference(Record):
    """`source.json`: the checkpoint behind a part."""

    location: str
    """Folder or file on this machine; of a hub id, where it was fetched to."""
    variant: str | None = None
    components: dict[str, str] = Field(default_factory=dict)
    """Components from elsewhere, by name: from where."""
    family: str
    part: str
    digest: str
    """Of the component's config and stored weights."""


class Torch(Runtime):
    """The adapter."""

    facts = Facts(
        title="The torch runtime",
        devices=tuple(DEVICES),
        libraries=LIBRARIES,
        precisions=("f32", "bf16", "f16"),
        options={COMPILE: bool, THREADS: COUNTS},
        at_load=frozenset({THREADS}),
        threads=THREADS,
        reads_onnx=False,
    )

    def missing(self, device: str) -> str | None:
        """A library that isn't there or can't be loaded, an unknown device, or one that isn't here."""
        try:
            torch = import_module("torch")
        except Exception as exc:  # its libraries, where they don't fit, raise OSError and more
            return f"PyTorch can't be loaded here ({first_line(exc)}). {INSTALL}"
        if absent := [name for name in LIBRARIES if find_spec(name) is None]:
            return f"The reference needs {' and '.join(absent)} too. {INSTALL}"
        if device not in DEVICES:
            return f"latentc drives no {device} through PyTorch. {suggest(device, list(DEVICES))}"
        if device == "CUDA" and not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} finds no GPU here. It takes a build for CUDA or ROCm, and the driver."
        return None

    def versions(self) -> dict[str, str]:
        """Of PyTorch, diffusers and transformers."""
        with border(RuntimeMissing, "The reference can't be run", INSTALL):
            return {name: metadata.version(name) for name in LIBRARIES}

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Note where the checkpoint is, and the digest of its weights."""
        self._require(job.target)
        if (origin := job.origin) is None:
            raise CompileError(f"The torch runtime runs a checkpoint's own modules, and {job.part} comes from none.")
        on_progress(f"{job.part}: read the checkpoint", None)
        checkpoint = _open(origin.location, origin.family, origin.variant, origin.components)
        reference = Reference(
            location=str(checkpoint.place),
            variant=origin.variant,
            components=dict(origin.components),
            family=origin.family,
            part=job.part,
            digest=checkpoint.digest(_spec(checkpoint, job.part, job.target).component),
        )
        (out / SOURCE).write_text(reference.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Open the checkpoint and load the component. Raises `CheckpointError` where it moved or was changed."""
        del files
        self._require(target)
        try:
            reference = Reference.model_validate(read_json(artifact / SOURCE, CONFIG_BYTES, CompileError, REBUILD))
        except ValidationError as exc:
            raise CompileError(f"{artifact / SOURCE} is damaged: {complaints(exc, Reference)}. {REBUILD}") from exc
        if not Path(reference.location).exists():
            raise CheckpointError(
                f"The torch runtime runs the checkpoint itself, and {reference.location} isn't there any more. "
                "Put it back, or export the checkpoint from where it is now."
            )
        checkpoint = _open(reference.location, reference.family, reference.variant, reference.components)
        spec = _spec(checkpoint, reference.part, target)
        if checkpoint.digest(spec.component) != reference.digest:
            raise CheckpointError(
                f"{spec.component} of {reference.location} isn't what this engine was built from. {REBUILD}"
            )
        return _engine(checkpoint, spec, target)

    def _require(self, target: Target) -> None:
        if reason := self.missing(target.device):
            raise RuntimeMissing(reason)


def _engine(checkpoint: Checkpoint, spec: PartSpec, target: Target) -> Engine:
    import torch

    from ..checkpoints.parts import as_part

    dtype: torch.dtype = getattr(torch, target.recipe.dtype)
    inputs = tuple(tensor.name for tensor in spec.inputs)
    outputs = tuple(tensor.name for tensor in spec.outputs)
    device = DEVICES[target.device]
    own = None if "OMP_NUM_THREADS" in os.environ else threads()  # which PyTorch reads by itself
    if device == "cpu" and (count := target.options.get(THREADS, own)) is not None:
        torch.set_num_threads(int(count))
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    module = as_part(checkpoint, spec, checkpoint.module(spec.component, dtype=dtype))
    with border(CompileError, f"PyTorch can't hold {spec.component} on {target.device}", "Is there memory enough?"):
        part: Any = module.to(device)
    if target.options.get(COMPILE):
        part = torch.compile(part)  # pyright: ignore[reportUnknownMemberType]

    def taken(array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array))  # pyright: ignore[reportUnknownMemberType]
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    def call(feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        del sizes
        with (
            border(CompileError, "PyTorch failed while computing", "Is there memory enough for this size?"),
            torch.inference_mode(),
        ):
            results: tuple[torch.Tensor, ...] = part(*(taken(feeds[name]) for name in inputs))
            # A copy: a module may answer with its own buffer, or with a view of another output.
            return {name: result.float().cpu().numpy().copy() for name, result in zip(outputs, results, strict=True)}

    return HostEngine(target, call, torch.cuda.empty_cache if device == "cuda" else None)


def _open(name: str, family: str, variant: str | None, components: Mapping[str, str]) -> Checkpoint:
    from ..checkpoints.open import open_checkpoint

    return open_checkpoint(name, family=family, variant=variant, components=components)


def _spec(checkpoint: Checkpoint, part: str, target: Target) -> PartSpec:
    """The part with the target's outputs; raises `CheckpointError` where the checkpoint takes other inputs."""
    from ..checkpoints.parts import part_spec

    spec = part_spec(checkpoint, part)
    if {tensor.name for tensor in spec.inputs} != {tensor.name for tensor in target.inputs}:
        raise CheckpointError(
            f"{part} of the checkpoint takes {', '.join(tensor.name for tensor in spec.inputs)}; the bundle says "
            f"{', '.join(tensor.name for tensor in target.inputs)}. Export the checkpoint again."
        )
    return replace(spec, outputs=target.outputs)
