"""What a runtime is: the one contract that every adapter fulfils.

A new runtime is a file beside this one, a line in `RUNTIMES`, an extra in `pyproject.toml` and a profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..core.bundle import Bundle, TensorInfo
from ..core.engine import Engine
from ..core.errors import ProfileError
from ..core.progress import Progress
from ..core.recipes import RECIPES, Precision, Recipe

MEMORY = "memory.json"
"""In an artifact: bytes that the compiler says it will hold on the device, by what for."""

PLACEMENT = "placement.json"
"""In an artifact: which nodes ran where in one call, or were compiled for what, by provider and operator."""

TIMING = ".timing"
"""Folder beside the artifacts: what TensorRT timed, by GPU and version."""

LINK = "weights"
"""In the scratch folder of a lowered graph: a link to the folder that holds the graph's weights."""

TOGETHER = "+"
"""In a device's name: between those that one engine is for."""

Option = bool | int | float | str

MOST_THREADS = 1024


def check_threads(value: Option) -> None:
    """Raise `ProfileError` for what is no number of threads."""
    if type(value) is not int or not 1 <= value <= MOST_THREADS:
        raise ProfileError(f"threads is {value!r}; it must be a whole number from 1 to {MOST_THREADS:,}.")


def files_in(folder: Path) -> dict[str, int]:
    """The files of an engine that was just compiled, by their paths in its folder: bytes of each."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


@dataclass(frozen=True)
class Target:
    """A profile as it applies to one part on this machine: nothing left to choose."""

    runtime: str
    device: str
    precision: Precision
    options: Mapping[str, Option]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    shape: Mapping[str, tuple[int, ...]] | None = None
    """Every input's shape, for a static engine; None where batch, height and width are free."""
    length: int = 77
    """Token ids in a chunk of a prompt."""

    @property
    def recipe(self) -> Recipe:
        """What the part is computed in."""
        return RECIPES[self.precision]


@dataclass(frozen=True)
class Job:
    """One part to compile."""

    bundle: Bundle
    part: str
    graph: Path
    """The lowered ONNX graph: in the target's precision and shapes. Its external data is in `weights`."""
    target: Target

    @property
    def weights(self) -> Path:
        """The folder of the graph's external data: that of the graph, or the one that a lowered graph links to.

        ONNX, onnx-ir, ONNX Runtime, OpenVINO and IREE refuse external data that is a link out of the graph's folder, so
        their adapters name this folder to the library.
        """
        link = self.graph.with_name(LINK)
        part = self.bundle.manifest.parts.get(self.part)
        own = part is not None and self.graph == self.bundle.folder / part.path
        return link.resolve() if link.is_symlink() and not own else self.graph.parent


@dataclass(frozen=True)
class Costs:
    """What engines take of memory and time, measured (benchmarks/results/2026-11-26-plan.md); memory in bytes.

    Weights are counted in the engine's own precision; what an earlier build took goes before all of it.
    """

    base: int = 0
    """Held whatever the engines are."""
    per_engine: int = 0
    """Held for each engine, whatever it is."""
    per_weight: float = 1.0
    """Held, for each byte of weights."""
    per_f32: float = 0.0
    """Held beside that, for each byte of the same weights in f32."""
    per_value: float = 1.0
    """Held, for each byte of values that are alive at once."""
    scores: Mapping[Precision, int] = field(default_factory=dict[Precision, int])
    """Copies of attention's scores that are held at once, by type; none where attention is one kernel."""
    stores: bool = False
    """Whether weights stay as narrow as the bundle stores them, whatever is computed in."""
    maps: bool = False
    """Whether weights are a mapped file: of a table that is only looked up in, few rows are ever read."""
    writes_f32: bool = False
    """Whether weights are f32 on disk, whatever is computed in."""
    build_base: int = 0
    """Held while building, whatever the part is."""
    build_per_weight: float = 0.0
    build_seconds: float = 0.0
    """On two cores, whatever the part is."""
    build_seconds_per_gb: float = 0.0
    """And for each 10^9 bytes of weights."""
    flop_per_second: Mapping[Precision, float] = field(default_factory=dict[Precision, float])
    """In a call, on two cores, by type; of a type that isn't there, calls take no time that counts."""
    on_host: bool = True
    """Whether engines are held in the machine's own memory."""


class Runtime(Protocol):
    """An adapter to one library that compiles and runs graphs."""

    revision: int
    """Raised when what it makes of a graph changes, or how it is loaded; part of the key."""
    reads_onnx: bool
    """Whether it compiles the lowered graph; if not, the compiler doesn't make one."""
    newest_opset: int
    """The newest ONNX operator set that it is given whole."""
    typed: bool
    """Whether it computes in the types that the graph states, which the compiler then lowers to the precision."""
    infers_shapes: bool
    """Whether it works out by itself what follows from fixed shapes; if not, the compiler writes it down."""
    at_load: frozenset[str]
    """Options that act at load only, and change no answer: no artifact hangs on them, and no key has them."""
    sums_in_a_row: frozenset[str]
    """Devices on which sums of many numbers in f32 lose accuracy: group norms are then written out (`core.norms`)."""
    lacks: Mapping[str, frozenset[str]]
    """By device, operators that it has no kernel for: the compiler writes them in others (`compiler.kernels`)."""
    reads_bf16: bool
    """Whether it takes weights that lie in bf16 and are cast where they are used; if not, the compiler widens them."""

    def devices(self) -> tuple[str, ...]:
        """Names of the devices that it works on here; none where it doesn't work. Raises nothing."""
        ...

    def missing(self, device: str) -> str | None:
        """None where it works here; else one sentence: why not, and what to install."""
        ...

    def unbuildable(self, device: str) -> str | None:
        """None where it can compile for a device here, which need not be here; else one sentence as `missing`'s."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that shape the artifact; part of its key."""
        ...

    def device(self, device: str) -> dict[str, str]:
        """What of the device shapes the artifact (instruction set, architecture); part of its key."""
        ...

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """What the device computes in natively, through this runtime."""
        ...

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Whether one engine can serve every size."""
        ...

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """What engines for a device take, of free or fixed sizes; None where nobody has measured it."""
        ...

    def threads_option(self, device: str) -> str | None:
        """The option that says in how many threads a device computes, one of `at_load`: unless it is set, `load` takes
        `core.limits.threads`. None for a device that doesn't compute in this process's threads, empty where nothing is
        computed.
        """
        ...

    def check(self, options: Mapping[str, Option]) -> None:
        """Raise `ProfileError` for an option that it doesn't know, with the near name."""
        ...

    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile a part into the empty folder `out`. Raises `CompileError`, with the library's own words."""
        ...

    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load what `compile` left for this target: `files`, bytes by their paths in the folder `artifact`.

        The compiler has compared each with its digest, and the target with what is here. Raises `RuntimeMissing` or
        `CompileError`; never falls back in silence.
        """
        ...


@runtime_checkable
class Refits(Protocol):
    """An adapter that can also put other weights into an artifact of the same graph."""

    def refits(self, options: Mapping[str, Option]) -> bool:
        """Whether what is built with these options can be refitted."""
        ...

    def refit(self, job: Job, other: Path, out: Path) -> None:
        """Leave in the empty folder `out` what `compile` would, from another artifact and the job's weights.

        Raises `CompileError` where the graphs differ in more than weights, and `RuntimeMissing`.
        """
        ...
