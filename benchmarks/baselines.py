"""Baselines for comparison: each is a program in `subjects/`, in an environment of its own if it needs one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..core.errors import RequestError, RuntimeMissing
from ..core.install import make, pip
from ..core.record import suggest
from ..profiles import Profile


@dataclass(frozen=True)
class Baseline:
    """A baseline, and the program that runs it."""

    name: str
    module: str
    environment: str | None = None
    """Its folder among the environments of `make peers`; None runs in latentc's own environment."""
    profile: Profile | None = None
    """For baselines that run PyTorch inside latentc's pipeline."""
    leaves_out: tuple[str, ...] = ()
    videos: bool = False
    """Whether it generates videos; those that run inside latentc's pipeline generate whatever it does."""
    own_threads: bool = False
    """Whether its library ignores `OMP_NUM_THREADS`."""
    cache: str | None = None
    """Environment variable of its compile cache. Each run gets a cache of its own, because a run that was killed may
    leave a damaged file that breaks all later ones."""


PROFILE_MODULE = "benchmarks.subjects.profile"
PAGE_MODULE = "benchmarks.subjects.browser"
"""For profiles of a library of browsers: it measures the page of `latentc package --for web`."""
EAGER = Profile(name="torch-eager", title="PyTorch eager, f32, in latentc's pipeline", runtime="torch")
COMPILED = Profile(
    name="torch-compile",
    title="torch.compile, f32, in latentc's pipeline",
    runtime="torch",
    options={"compile": True},
)
OWN_LOOP = "It runs its own pipeline, with its own tokenization, scheduler and image conversion."

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("torch-eager", PROFILE_MODULE, profile=EAGER),
        Baseline(
            "torch-compile",
            PROFILE_MODULE,
            profile=COMPILED,
            leaves_out=("Compilation: it happens in the first run.",),
            cache="TORCHINDUCTOR_CACHE_DIR",
        ),
        Baseline(
            "diffusers",
            "benchmarks.subjects.diffusers",
            leaves_out=(OWN_LOOP, "The safety checker is off."),
            videos=True,
        ),
        Baseline(
            "optimum-openvino",
            "benchmarks.subjects.optimum_openvino",
            "intel",
            leaves_out=(OWN_LOOP,),
            own_threads=True,
        ),
        Baseline(
            "optimum-onnxruntime",
            "benchmarks.subjects.optimum_onnxruntime",
            "onnx",
            leaves_out=(OWN_LOOP,),
            own_threads=True,
        ),
        Baseline(
            "openvino-genai",
            "benchmarks.subjects.openvino_genai",
            "intel",
            own_threads=True,
            leaves_out=(
                OWN_LOOP,
                "The stages are timed by the library itself; text encoders and decoding to the millisecond.",
                "The library doesn't report its precision: OpenVINO chooses it for the device.",
            ),
        ),
    )
}


def find_baseline(name: str) -> Baseline:
    """Find a baseline by name; raises `RequestError` for an unknown name."""
    if name not in BASELINES:
        raise RequestError(f"{name!r} is not a baseline. {suggest(name, list(BASELINES))}")
    return BASELINES[name]


def peers_folder() -> Path:
    """The folder in which `make peers` installs its environments, inside the environment of latentc."""
    return Path(sys.prefix) / "peers"


def require_baseline(baseline: Baseline, peers: Path) -> None:
    """Raise `RuntimeMissing` if the environment or the libraries of a baseline aren't installed. Nothing is loaded."""
    python_of(baseline, peers)
    needs = ("torch",) if baseline.profile is not None else ("torch", "diffusers", "transformers")
    if baseline.environment is None and (absent := [name for name in needs if find_spec(name) is None]):
        raise RuntimeMissing(
            f"{baseline.name} needs {' and '.join(absent)}. Install the missing packages with: {pip('export')}."
        )


def check_task(baseline: Baseline, *, films: bool, images: bool) -> None:
    """Raise `RequestError` for a baseline that can't generate videos (`films`), or from `images` beside the prompt."""
    if baseline.profile is None and (not baseline.videos if films else images):
        able = [one.name for one in BASELINES.values() if one.profile is not None or (films and one.videos)]
        raise RequestError(
            f"{baseline.name} is not measured with {'videos' if films else 'images beside the prompt'}. Use "
            f"{' or '.join(able)} instead."
        )


def python_of(baseline: Baseline, peers: Path) -> Path:
    """The Python interpreter of a baseline; raises `RuntimeMissing` if its environment doesn't exist."""
    if baseline.environment is None:
        return Path(sys.executable)
    python = peers / baseline.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        raise RuntimeMissing(f"{baseline.name} has no environment on this machine. Create it with: {make('peers')}.")
    return python
