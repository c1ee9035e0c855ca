"""What a runtime is: the one contract that every adapter fulfils.

A new runtime is a file beside this one, a line in `RUNTIMES`, an extra in `pyproject.toml` and a profile.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Protocol, runtime_checkable

from ..core.engine import Engine
from ..core.errors import ProfileError, RuntimeMissing
from ..core.manifest import TensorInfo
from ..core.progress import Progress
from ..core.recipes import RECIPES, Precision, Recipe
from ..core.record import suggest

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


COUNTS = range(1, MOST_THREADS + 1)
"""Of threads."""

Kind = type | UnionType | tuple[str, ...] | range
"""What an option takes: values of a type, one of some words, or whole numbers in a range."""


def misfit(value: Option, kind: Kind) -> str | None:
    """What an option takes, in words, where a value isn't such; else None."""
    if isinstance(kind, tuple):
        return None if value in kind else f"one of: {', '.join(kind)}"
    if isinstance(kind, range):
        fits = type(value) is int and value in kind
        return None if fits else f"a whole number from {kind[0]:,} to {kind[-1]:,}"
    if isinstance(kind, UnionType):
        *first, last = [SAID[one].replace(" or ", ", ") for one in kind.__args__]
        return None if isinstance(value, kind) else f"{', '.join(first)} or {last}"
    return None if type(value) is kind or (kind is float and type(value) is int) else SAID[kind]


SAID: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


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
class CheckpointOrigin:
    """The checkpoint that a bundle was exported from, for a runtime that runs its modules."""

    location: str
    family: str
    variant: str | None = None
    components: Mapping[str, str] = field(default_factory=dict[str, str])
    """From elsewhere, by name: from where."""


@dataclass(frozen=True)
class Job:
    """One part to compile."""

    part: str
    graph: Path
    """The lowered ONNX graph: in the target's precision and shapes."""
    weights: Path
    """The folder of the graph's external data, which may be another one than the graph's. ONNX, onnx-ir, ONNX Runtime,
    OpenVINO and IREE refuse external data that is a link, so their adapters name this folder to the library."""
    target: Target
    digest: str = ""
    """Of the part's graph and weights, as exported."""
    usual: Mapping[str, int] = field(default_factory=dict[str, int])
    """Free sizes that it is called with most."""
    shared: Path | None = None
    """A folder for what helps later builds, such as timings of kernels; None where nothing is to be kept."""
    origin: CheckpointOrigin | None = None


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


@dataclass(frozen=True)
class Facts:
    """What a runtime is like: plain data, of which most runtimes state a few."""

    title: str
    """As messages call the library."""
    revision: int = 1
    """Raised when what it makes of a graph changes, or how it is loaded; part of the key."""
    devices: tuple[str, ...] = ("CPU",)
    """Devices that it knows by name."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions shape the artifact."""
    precisions: tuple[Precision, ...] = ("f32",)
    """What its devices compute in."""
    options: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    at_load: frozenset[str] = frozenset()
    """Options that act at load only, and change no answer: no artifact hangs on them, and no key has them."""
    threads: str | None = None
    """The option that says in how many threads the CPU computes, one of `at_load`: unless it is set, `load` takes
    `core.limits.threads`. None where it doesn't compute in this process's threads, empty where nothing is computed."""
    reads_onnx: bool = True
    """Whether it compiles the lowered graph; if not, the compiler doesn't make one."""
    newest_opset: int = 23
    """The newest ONNX operator set that it is given whole."""
    typed: bool = False
    """Whether it computes in the types that the graph states, which the compiler then lowers to the precision."""
    infers_shapes: bool = True
    """Whether it works out by itself what follows from fixed shapes; if not, the compiler writes it down."""
    reads_bf16: bool = True
    """Whether it takes weights that lie in bf16 and are cast where they are used; if not, the compiler widens them."""
    free_sizes: bool = True
    """Whether one engine can serve every size."""
    sums_in_a_row: frozenset[str] = frozenset()
    """Devices on which sums of many numbers in f32 lose accuracy: group norms are then written out (`core.norms`)."""
    lacks: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """By device, operators that it has no kernel for: the compiler writes them in Microsoft's (`compiler.kernels`)."""


class Runtime(Protocol):
    """An adapter to one library that compiles and runs graphs: facts, and three methods. It inherits from this class,
    and writes another method only where the facts don't say enough.
    """

    facts: Facts

    @abstractmethod
    def missing(self, device: str) -> str | None:
        """None where it works here; else one sentence: why not, and what to install."""
        ...

    @abstractmethod
    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile a part into the empty folder `out`. Raises `CompileError`, with the library's own words."""
        ...

    @abstractmethod
    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load what `compile` left for this target: `files`, bytes by their paths in the folder `artifact`.

        The compiler has compared each with its digest, and the target with what is here. Raises `RuntimeMissing` or
        `CompileError`; never falls back silently.
        """
        ...

    def devices(self) -> tuple[str, ...]:
        """Names of the devices that it works on here; none where it doesn't work. Raises nothing."""
        return tuple(device for device in self.facts.devices if self.missing(device) is None)

    def unbuildable(self, device: str) -> str | None:
        """None where it can compile for a device here, which need not be here; else one sentence as `missing`'s."""
        return self.missing(device)

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that shape the artifact; part of its key."""
        try:
            return {name: metadata.version(name) for name in self.facts.libraries}
        except metadata.PackageNotFoundError as exc:
            raise RuntimeMissing(f"{self.facts.title} isn't installed here ({exc}).") from exc

    def device(self, device: str) -> dict[str, str]:
        """What of the device shapes the artifact (instruction set, architecture); part of its key."""
        del device
        return {}

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """What the device computes in natively, through this runtime."""
        del device
        return self.facts.precisions

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Whether one engine can serve every size, with these options."""
        del device, options
        return self.facts.free_sizes

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """What engines for a device take, of free or fixed sizes; None where nobody has measured it."""
        del device, options, free
        return None

    def threads_option(self, device: str) -> str | None:
        """As `Facts.threads`, which is the CPU's."""
        return self.facts.threads if device == "CPU" else None

    def check(self, options: Mapping[str, Option]) -> None:
        """Raise `ProfileError` for an unknown option, with the near name, and for a value that it doesn't take."""
        known = self.facts.options
        for name, value in options.items():
            if name not in known:
                raise ProfileError(f"{self.facts.title} has no option {name!r} here. {suggest(name, list(known))}")
            if wish := misfit(value, known[name]):
                raise ProfileError(f"{name} is {value!r}; it must be {wish}. Correct it under [options].")


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
