"""What profiles are measured against: each a program in `subjects/`, in its own environment where it needs one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..core.errors import RequestError, RuntimeMissing
from ..core.install import pip
from ..core.record import suggest
from ..profiles import Profile


@dataclass(frozen=True)
class Baseline:
    """One baseline."""

    name: str
    module: str
    environment: str | None = None
    """Folder of the peers' environments that it runs in; None: latentc's own."""
    profile: Profile | None = None
    """For those that are PyTorch under latentc's pipeline."""
    leaves_out: tuple[str, ...] = ()
    own_threads: bool = False
    """Whether its library doesn't read `OMP_NUM_THREADS`."""
    cache: str | None = None
    """Variable that says where it keeps what it compiles: each run gets a place of its own, for one that was killed
    may leave half a file that fails every later one."""


PROFILE_MODULE = "benchmarks.subjects.profile"
EAGER = Profile(name="torch-eager", title="PyTorch as it is, f32, under latentc's pipeline", runtime="torch")
COMPILED = Profile(
    name="torch-compile",
    title="torch.compile, f32, under latentc's pipeline",
    runtime="torch",
    options={"compile": True},
)
OWN_LOOP = "Its own pipeline draws: tokens, scheduler and pixels are its own too."

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("torch-eager", PROFILE_MODULE, profile=EAGER),
        Baseline(
            "torch-compile",
            PROFILE_MODULE,
            profile=COMPILED,
            leaves_out=("Compiling: it is in the first draw.",),
            cache="TORCHINDUCTOR_CACHE_DIR",
        ),
        Baseline("diffusers", "benchmarks.subjects.diffusers", leaves_out=(OWN_LOOP, "The safety checker is off.")),
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
                "Stages are timed by itself, text encoders and decoding to the millisecond.",
                "It doesn't say which precision it computes in: it is OpenVINO's choice for the device.",
            ),
        ),
    )
}


def find_baseline(name: str) -> Baseline:
    """The baseline of this name; raises `RequestError` for an unknown one."""
    if name not in BASELINES:
        raise RequestError(f"There is no baseline {name!r}. {suggest(name, list(BASELINES))}")
    return BASELINES[name]


def peers_folder() -> Path:
    """Where `make peers` puts the environments of other libraries' versions: beside what latentc runs in."""
    return Path(sys.prefix) / "peers"


def require_baseline(baseline: Baseline, peers: Path) -> None:
    """Raise `RuntimeMissing` where a baseline can't be measured: its environment, or PyTorch in latentc's, isn't there.

    Nothing is loaded: that they are installed is all that is known.
    """
    python_of(baseline, peers)
    needs = ("torch",) if baseline.profile is not None else ("torch", "diffusers", "transformers")
    if baseline.environment is None and (absent := [name for name in needs if find_spec(name) is None]):
        raise RuntimeMissing(
            f"{baseline.name} needs {' and '.join(absent)}. Install what is missing with: {pip('export')}."
        )


def python_of(baseline: Baseline, peers: Path) -> Path:
    """The Python that a baseline runs under; raises `RuntimeMissing` where its environment isn't there."""
    if baseline.environment is None:
        return Path(sys.executable)
    python = peers / baseline.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        raise RuntimeMissing(f"{baseline.name} has no environment here. Make it with: make peers.")
    return python
