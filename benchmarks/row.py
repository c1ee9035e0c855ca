"""Convert a contender's measurements to a line of the results."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..compiler.flops import count_flops
from ..core import shapes
from ..core.bundle import Bundle, checked_graph
from ..core.errors import LatentcError
from ..core.model import Role
from ..core.request import Request
from ..core.version import __version__
from ..pipelines.complete import size_and_seed
from ..runtimes.environment import every_environment
from ..runtimes.machine import machine
from .contender import Contender
from .records import THREADS, Measurement, StageName, Work, model_of
from .stability import stability_of

LEAVES_OUT = (
    "Starting Python, importing, building and loading: see `startup`.",
    "The first run and the warm-up: see `first` and `warmup`.",
    "Writing PNG files.",
)
CORES = (THREADS, "OMP_WAIT_POLICY", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "MKL_NUM_THREADS")
"""Environment variables that affect how libraries use cores."""
COUNTED = (
    "In FLOP: activations, normalization, softmax and other elementwise operations. Engines may need fewer FLOP than "
    "the exported graph, which is counted."
)


STAGE_ROLES: dict[StageName, Role] = {
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "denoiser": "denoiser",
    "vae_decoder": "decoder",
}
"""The role of the part whose precision applies to a stage."""


def row_of(
    contender: Contender,
    request: Request,
    work: dict[StageName, Work] | None,
    uncounted: tuple[str, ...],
    common: dict[str, Any],
    folder: Path,
) -> Measurement:
    """Make the line. `common` has the fields that the lines of a run share; image paths are relative to `folder`."""
    stable, stability = stability_of(contender.draws) if contender.draws else (None, None)
    leaves_out = [*LEAVES_OUT, *uncounted, *contender.leaves_out]
    if stated := contender.bundle.standing.statement:
        leaves_out.append(stated)
    first = {part.role: name for name, part in reversed(contender.bundle.manifest.parts.items())}
    ceilings = {stage: contender.ceiling_tflops.get(first.get(role, "")) for stage, role in STAGE_ROLES.items()}
    if work is not None:
        work = {stage: one.model_copy(update={"ceiling_tflops": ceilings.get(stage)}) for stage, one in work.items()}
    if contender.draws and contender.draws[0].joules is None:
        leaves_out.append("Energy: this machine has no counters, or they are not readable.")
    if contender.draws and contender.memory is None:
        leaves_out.append("Memory: this system does not report it.")
    vram = contender.memory.vram if contender.memory else ()
    if common["machine"].gpus and not vram:
        leaves_out.append("GPU memory: no driver library (nvidia-ml-py, amdsmi) reported memory of this process.")
    if any(one.by == "device" for one in vram):
        leaves_out.append(
            "GPU memory by process: the driver library does not list these processes, as in a container. Figures are "
            "the use of the whole device minus its use before loading, including changes by other processes."
        )
    given = {name: value for name, value in contender.environment.items() if name == THREADS}
    return Measurement(
        **common | {"environment": common["environment"] | given},
        model=model_of(contender.bundle),
        subject=contender.subject,
        request=request,
        startup=contender.startup,
        first=contender.first,
        warmup=tuple(contender.warmup),
        draws=tuple(contender.draws),
        stable=stable,
        stability=stability,
        memory=contender.memory,
        work=work if contender.draws else None,
        parity=contender.parity,
        pictures=tuple(os.path.relpath(picture, folder) for picture in contender.pictures),
        error=contender.error,
        leaves_out=tuple(leaves_out),
    )


def work_of(bundle: Bundle, request: Request) -> tuple[dict[StageName, Work] | None, tuple[str, ...]]:
    """The work of each stage, or None, and sentences on what isn't counted."""
    try:
        return count_work(bundle, request), (COUNTED,)
    except LatentcError as exc:
        return None, (f"FLOP: they could not be counted. {exc}",)


def count_work(bundle: Bundle, request: Request) -> dict[StageName, Work]:
    """Count FLOP of all text encoders of one generation, or the encoders of a video's image, of one denoiser call, and
    of the decoding of all images or frames.

    Counted on the bundle's graphs, for a prompt of one chunk and, with guidance, a negative prompt; frames are decoded
    together. Raises what `count_flops` raises.
    """
    model, (width, height, _) = bundle.manifest.model, size_and_seed(request)
    guided = request.guided and not model.takes_guidance
    zeros = model.zeros_for_empty and not request.negative_prompt
    drawn = shapes.Setting(width, height, request.count, guided)
    read = replace(drawn, guided=guided and not zeros)
    if model.reads_image:
        seeing, reading = (_count(bundle, bundle.one(role), drawn) for role in ("image_encoder", "encoder"))
        encoders: dict[StageName, float] = {"image_encoder": seeing + request.count * reading}
    else:
        encoders = {"text_encoder": sum(_count(bundle, encoder.part, read) for encoder in model.text_encoders)}
    decoder = request.count * _count(bundle, bundle.one("decoder"), drawn)
    return {
        **{stage: Work(flops=flops) for stage, flops in encoders.items()},
        "denoiser": Work(flops=_count(bundle, bundle.one("denoiser"), drawn)),
        "vae_decoder": Work(flops=decoder),
    }


def _count(bundle: Bundle, part: str, drawn: shapes.Setting) -> float:
    info = bundle.part(part)
    free = shapes.sizes(bundle.manifest.model, info.role, drawn)
    fixed = {tensor.name: shapes.shape_of(tensor.shape, free) for tensor in info.inputs}
    return float(count_flops(checked_graph(bundle, part), fixed))


def run_facts(apart: bool = False) -> dict[str, Any]:
    """The fields that the lines of a run share."""
    return {
        "run": uuid4().hex,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "latentc": __version__,
        "commit": commit(),
        "machine": machine(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "other_cores": None,
        "apart": apart,
        "environment": {name: os.environ[name] for name in CORES if name in os.environ} | every_environment(),
    }


def commit() -> str | None:
    """The commit of latentc's source, with `-dirty` if it has changes; None if it isn't a git checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
