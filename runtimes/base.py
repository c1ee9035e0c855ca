"""The interface that every runtime adapter implements.

A new runtime is a file in this package, a line in `RUNTIMES`, an extra in `pyproject.toml` and a profile.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field

from ..core.engine import Engine
from ..core.errors import ProfileError, RuntimeMissing
from ..core.manifest import TensorInfo
from ..core.progress import Progress
from ..core.recipes import RECIPES, Precision, Recipe
from ..core.record import Record, suggest
from ..core.references import Case
from ..core.shapes import FREE
from .machine import drivers

MEMORY = "memory.json"
"""In an artifact: bytes that the engine will hold on the device as reported by the compiler, keyed by purpose."""

QUANTIZED = "quantized.json"
"""In an artifact: a `Quantized` record."""

PLACEMENT = "placement.json"
"""In an artifact: counts of nodes by the provider that ran or compiled them, and by operator."""

TIMING = ".timing"
"""Folder beside the artifacts: TensorRT's caches of timings, by version and GPU."""

TOGETHER = "+"
"""Separates the devices in the name of a target of several."""

NUMBERED = ":"
"""Separates a device's name from its number: `CUDA:1` is the second of them."""

Option = bool | int | float | str

MOST_THREADS = 1024


COUNTS = range(1, MOST_THREADS + 1)
"""Valid numbers of threads."""

Kind = type | UnionType | tuple[str, ...] | range
"""Valid values of an option: those of a type, one of several strings, or integers in a range."""


def misfit(value: Option, kind: Kind) -> str | None:
    """A description of the valid values where `value` is not one of them; None where it is."""
    if isinstance(kind, tuple):
        return None if value in kind else f"one of: {', '.join(kind)}"
    if isinstance(kind, range):
        fits = type(value) is int and value in kind
        return None if fits else f"an integer from {kind[0]:,} to {kind[-1]:,}"
    if isinstance(kind, UnionType):
        *first, last = [TYPE_NAMES[one].replace(" or ", ", ") for one in kind.__args__]
        return None if isinstance(value, kind) else f"{', '.join(first)} or {last}"
    return None if type(value) is kind or (kind is float and type(value) is int) else TYPE_NAMES[kind]


TYPE_NAMES: Mapping[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def numbered(device: str) -> tuple[str, int | None]:
    """A device's name, and its number from 0 on; None where it has none."""
    name, _, number = device.rpartition(NUMBERED)
    return (name, int(number)) if name and number.isdecimal() and number.isascii() else (device, None)


def files_in(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the files of an engine that was just compiled, keyed by path in its folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


@dataclass(frozen=True)
class Target:
    """A profile applied to one part on this machine, with every choice made."""

    runtime: str
    device: str
    precision: Precision
    options: Mapping[str, Option]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    shape: Mapping[str, tuple[int, ...]] | None = None
    """Shape of each input, for an engine of fixed height and width, with `FREE` for other free sizes; None where all
    are free."""
    lengths: tuple[int, int, int] = (77, 77, 4 * 77)
    """Smallest, typical and largest length of prompt embeddings (`ranges.CHUNKS`), for an engine of free sizes."""
    number: int | None = None
    """Which device of that name, from 0 on; None for the first. Not part of the key."""
    loop: str | None = None
    """For a denoiser's engine that also takes the scheduler's step (`core.looped`): the input for the sample."""

    @property
    def place(self) -> str:
        """The device with its number, as in the profile."""
        return self.device if self.number is None else f"{self.device}{NUMBERED}{self.number}"

    @property
    def returned(self) -> tuple[TensorInfo, ...]:
        """The outputs that a call returns. Those of the scheduler's step are for the next call, and stay on the device:
        a denoiser has one output, the first.
        """
        return self.outputs if self.loop is None else self.outputs[:1]

    @property
    def rows_free(self) -> bool:
        """Whether the engine takes any number of rows."""
        return self.shape is None or any(shape and shape[0] == FREE for shape in self.shape.values())

    @property
    def recipe(self) -> Recipe:
        """The recipe of the target's precision."""
        return RECIPES[self.precision]


@dataclass(frozen=True)
class CheckpointOrigin:
    """The checkpoint that a bundle was exported from, for a runtime that runs its modules."""

    location: str
    family: str
    variant: str | None = None
    components: Mapping[str, str] = field(default_factory=dict[str, str])
    """Locations of components that come from elsewhere, keyed by component."""
    left_out: tuple[str, ...] = ()
    """Optional components that were left out."""
    embeddings: tuple[str, ...] = ()
    """Files of textual inversions that were added, with their tokens."""
    adapters: Mapping[str, float] = field(default_factory=dict[str, float])
    """Files of adapters that its weights are fused with, and their strengths."""


class Quantized(Record):
    """How an engine was quantized in int8."""

    by: str
    """The library, with its version."""
    exact: tuple[str, ...]
    """Groups of layers that stay exact, because the part is below its parity floor otherwise: those that cost most."""
    layers: int
    """Number of layers in int8."""
    psnr_db: float
    """The worst PSNR on recorded calls, which decided about them. It is no proof."""
    exact_below: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    """The timestep below which a second model computes all layers exactly; None where one model takes all calls."""

    @property
    def statement(self) -> str:
        """A sentence on what is in int8."""
        late = "" if self.exact_below is None else f"; calls at timesteps below {self.exact_below:g} are exact"
        kept = f"; to reach the parity floor, these stay exact: {', '.join(self.exact)}" if self.exact else ""
        return f"{self.layers} layers are in int8{late}{kept}."


@dataclass(frozen=True)
class Calibration:
    """What int8 ranges are calibrated with, and which layers stay exact is decided by."""

    calls: tuple[Case, ...]
    """Calls of the part, with what f32 engines returned."""
    judged: tuple[Case, ...]
    """Those on which the accuracy is measured."""
    floor_db: float
    """The PSNR in dB to reach on them: the engine's parity floor, or more where that was not enough for its proof."""
    exact_below: float | None = None
    """For a denoiser: calls at timesteps below this one are computed exactly, and none of them is recorded."""


@dataclass(frozen=True)
class Job:
    """One part to compile."""

    part: str
    graph: Path
    """The lowered ONNX graph: in the target's precision and shapes."""
    weights: Path
    """The folder of the graph's external data, which may differ from the graph's folder. ONNX, onnx-ir, ONNX Runtime,
    OpenVINO and IREE refuse external data that is a link, so their adapters pass this folder to the library."""
    target: Target
    digest: str = ""
    """Digest of the part's graph and weights, as exported."""
    usual: Mapping[str, int] = field(default_factory=dict[str, int])
    """Typical values of the free sizes."""
    shared: Path | None = None
    """A folder for data that speeds up later builds, such as timing caches; None where nothing is stored."""
    origin: CheckpointOrigin | None = None
    calibration: Calibration | None = None
    """Set where the target's recipe is calibrated."""


@dataclass(frozen=True)
class Costs:
    """Measured memory (in bytes) and time of a runtime's engines (benchmarks/results/2026-11-26-plan.md).

    Weights are counted in the engine's own precision. Figures of an earlier build of the part take precedence.
    """

    base: int = 0
    """Memory independent of the engines."""
    per_engine: int = 0
    """Memory per engine, independent of the part."""
    per_weight: float = 1.0
    """Memory per byte of weights."""
    per_f32: float = 0.0
    """Additional memory per byte of the same weights in f32."""
    per_value: float = 1.0
    """Memory per byte of values that are alive at once."""
    scores: Mapping[Precision, int] = field(default_factory=dict[Precision, int])
    """Copies of the attention scores that are held at once, by precision; none where attention is fused."""
    stores: bool = False
    """Whether weights stay as narrow as the bundle stores them, in any precision."""
    maps: bool = False
    """Whether weights are a memory-mapped file, so that only the used rows of an embedding table are read."""
    writes_f32: bool = False
    """Whether weights are f32 on disk, in any precision."""
    build_base: int = 0
    """Memory during a build, independent of the part."""
    build_per_weight: float = 0.0
    """Memory during a build, per byte of weights."""
    build_seconds: float = 0.0
    """Build time on two cores, independent of the part."""
    build_seconds_per_gb: float = 0.0
    """Build time per 10^9 bytes of weights."""
    flop_per_second: Mapping[Precision, float] = field(default_factory=dict[Precision, float])
    """Speed of a call on two cores, by precision; calls in other precisions are counted as no time."""
    on_host: bool = True
    """Whether engines are held in the machine's own memory."""


@dataclass(frozen=True)
class Facts:
    """Properties of a runtime: plain data, most of it with defaults."""

    title: str
    """Name of the library in messages."""
    revision: int = 1
    """Increased when the adapter compiles or loads graphs in another way; part of the key."""
    devices: tuple[str, ...] = ("CPU",)
    """Names of all devices that it may support."""
    numbered: bool = False
    """Whether `NAME:1` chooses the second device of a name. The adapter's methods are called with that name;
    `Target.device` is without the number."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions affect the artifact."""
    variables: tuple[str, ...] = ()
    """Names of variables in the environment that change what its libraries compute, or what these begin with; those of
    kinds of devices are in `environment`."""
    precisions: tuple[Precision, ...] = ("f32",)
    """Precisions in which its devices compute."""
    options: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    """Valid values of each option."""
    at_load: frozenset[str] = frozenset()
    """Options that act at load only and change no result: artifacts don't depend on them, and keys don't have them."""
    threads: str | None = None
    """The option that sets the number of CPU threads, one of `at_load`. Unless it is set, `load` uses
    `core.limits.threads`. None where it doesn't compute in this process's threads, empty where nothing is computed."""
    reads_onnx: bool = True
    """Whether it compiles the lowered graph; if not, no graph is lowered."""
    newest_opset: int = 23
    """The newest ONNX operator set that it supports."""
    newer_opset: str = ""
    """A sentence on how to get support for a newer one; empty where a profile has to set an older one."""
    typed: bool = False
    """Whether it computes in the types of the graph, which is then lowered to the target's precision."""
    infers_shapes: bool = True
    """Whether it evaluates what follows from fixed shapes by itself; if not, the compiler does (`fold`)."""
    reads_bf16: bool = True
    """Whether it supports weights that are stored in bf16 and cast where they are used; if not, they are widened."""
    free_sizes: bool = True
    """Whether one engine can serve every size."""
    partial: frozenset[str] = frozenset()
    """Devices for which batch and prompt length may stay free in an engine of fixed height and width."""
    sums_in_a_row: frozenset[str] = frozenset()
    """Devices on which long sums in f32 lose accuracy, because they are sequential: group norms are then expanded
    (`core.norms`)."""
    sums_in_f32: frozenset[str] = frozenset()
    """Devices whose norms sum f16 values in f32, by the library's source or by measurement. ONNX requires it
    (`stash_type`), but not every library follows. On other devices the norms of a part in f16 are computed in f32."""
    whole_norms: frozenset[str] = frozenset()
    """Devices that compute f32 in f16, where squares of large values overflow, except inside one operator: norms that
    opset 18 doesn't have are then InstanceNormalization and ONNX Runtime's SimplifiedLayerNormalization."""
    others: frozenset[str] = frozenset()
    """Operators that ONNX does not define and that it supports, such as `com.microsoft.GroupNorm`."""
    inline_numbers: int = 0
    """Weights with fewer numbers are compiled into its programs, so `Opens.open` can't replace them."""
    needs_checkpoint: bool = False
    """Whether it runs the modules of the checkpoint that a bundle was exported from."""
    transposes: frozenset[str] = frozenset()
    """Devices on which a transposed convolution is faster than nearest upsampling and a convolution
    (`compiler.upsample`)."""
    page: bool = False
    """Whether it is the library of a page for browsers. The harness then measures the page."""
    chains: frozenset[str] = frozenset()
    """Devices whose engines implement `core.engine.Chains`."""
    lacks: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """Operators without a kernel, by device: the compiler replaces them (`compiler.kernels`)."""


class Runtime(Protocol):
    """An adapter to one library that compiles and runs graphs: facts, and three methods. An adapter inherits from this
    class, and overrides other methods only where the facts are not enough.
    """

    facts: Facts

    @abstractmethod
    def missing(self, device: str) -> str | None:
        """Why it doesn't work on this machine and what to install, in one or two sentences; None where it works."""
        ...

    @abstractmethod
    def compile(self, job: Job, out: Path, on_progress: Progress) -> None:
        """Compile a part into the empty folder `out`. Raises `CompileError` with the library's own message."""
        ...

    @abstractmethod
    def load(self, artifact: Path, target: Target, files: Mapping[str, int]) -> Engine:
        """Load the engine that `compile` wrote to the folder `artifact`. `files` are sizes in bytes, keyed by path.

        The caller has checked the digest of each file, and that the target matches this machine. Raises
        `RuntimeMissing` or `CompileError`; never falls back silently.
        """
        ...

    def devices(self) -> tuple[str, ...]:
        """Names of the devices on which it works on this machine; may be empty. Raises nothing."""
        return tuple(device for device in self.facts.devices if self.missing(device) is None)

    def kinds(self, device: str) -> tuple[str, ...]:
        """Words for the devices of this one's kind, such as `TensorRT` and `cuda`: its name without a number first."""
        return (numbered(device)[0] if self.facts.numbered else device,)

    def places(self, device: str) -> dict[int, str] | None:
        """This machine's devices of this one's kind by number, with the names that open them: `{1: "CUDA:1"}`. None
        where the library doesn't list them.

        Raises `RuntimeMissing` where there can be none.
        """
        return None if self.facts.numbered else {0: device}

    def model(self, device: str) -> dict[str, str]:
        """What tells a device's model from others where `device` doesn't: such as the name of a GPU."""
        del device
        return {}

    def unbuildable(self, device: str) -> str | None:
        """Why it can't compile for a device on this machine, as in `missing`; None where it can, with or without it."""
        return self.missing(device)

    def uncompilable(self, target: Target) -> str | None:
        """Why a target can't be compiled here although its device can be used, and what to install; None where it can.
        Loading doesn't need what is missing.
        """
        del target
        return None

    def extra(self, device: str) -> str | None:
        """The extra of latentc that names libraries which engines load without importing them; None where none does."""
        del device
        return None

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that affect the artifact; part of its key."""
        try:
            return {name: metadata.version(name) for name in self.facts.libraries}
        except metadata.PackageNotFoundError as exc:
            raise RuntimeMissing(f"{self.facts.title} is not installed ({exc}).") from exc

    def device(self, device: str) -> dict[str, str]:
        """Properties of the device that affect the artifact (instruction set, architecture); part of its key."""
        del device
        return {}

    def drivers(self, device: str) -> dict[str, str]:
        """Versions of what compiles or runs an engine on the device when it is loaded, such as the GPU's driver.

        They are not part of the artifact's key: when they change, engines stay, and are proved again.
        """
        return {} if device == "CPU" else drivers()

    def compiled(self, artifact: Path, device: str) -> str:
        """Digest of code that was compiled for the device when an engine was loaded, and that is kept outside of its
        folder `artifact`; empty where there is none. With other code, the engine is proved again.
        """
        del artifact, device
        return ""

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """Precisions in which the device computes natively through this runtime."""
        del device
        return self.facts.precisions

    def takes_free_sizes(self, device: str, options: Mapping[str, Option]) -> bool:
        """Whether one engine can serve every size, with these options."""
        del device, options
        return self.facts.free_sizes

    def costs(self, device: str, options: Mapping[str, Option], *, free: bool) -> Costs | None:
        """Costs of engines for a device, of `free` or fixed sizes; None where they were never measured."""
        del device, options, free
        return None

    def threads_option(self, device: str) -> str | None:
        """`Facts.threads` on the CPU; None on other devices."""
        return self.facts.threads if device == "CPU" else None

    def remark(self, artifacts: Iterable[Path], device: str) -> str | None:
        """What a user should know about a profile's built engines, and what to do about it, in one or two sentences;
        None where there is nothing.
        """
        del artifacts, device
        return None

    def unsupported(self, device: str, operators: Iterable[str]) -> tuple[str, ...]:
        """Those of these operators, which ONNX does not define, that it doesn't support on a device; sorted."""
        del device
        return tuple(sorted(set(operators) - self.facts.others)) if self.facts.reads_onnx else ()

    def check(self, options: Mapping[str, Option], device: str | None = None) -> None:
        """Raise `ProfileError` for an option that is unknown, with the nearest name, for an invalid value, and for one
        that the device doesn't have. None stands for any device.
        """
        del device
        known = self.facts.options
        for name, value in options.items():
            if name not in known:
                raise ProfileError(f"{self.facts.title} has no option {name!r}. {suggest(name, list(known))}")
            if allowed := misfit(value, known[name]):
                raise ProfileError(f"{name} is {value!r}; it must be {allowed}. Correct it under [options].")


@runtime_checkable
class Inspects(Protocol):
    """An adapter whose library can say what it made of a part, and how it runs it."""

    def inspect(self, artifact: Path, job: Job) -> dict[str, Any]:
        """Load an engine in its folder `artifact`, call it a few times with zeros, and return what its library says, in
        JSON's types. `replayed` is whether the last call replayed a recorded graph. The artifact is not changed.

        Raises `RuntimeMissing` or `CompileError`.
        """
        ...


@runtime_checkable
class Opens(Protocol):
    """An adapter that can also make an engine with other weights in seconds, without storing it."""

    def fixed(self, device: str) -> str | None:
        """Why it can't for this device, in a sentence; None where it can."""
        ...

    def open(self, job: Job, artifact: Callable[[], Path]) -> Engine:
        """The engine that `load` returns for what `compile` makes of the job. Nothing is written.

        The job's graph is a part's own, except for the values of its weights. `artifact` returns the folder of the
        part's own engine, after checking its files. The files of the job's weights must exist for as long as the engine
        does. Raises `RuntimeMissing` or `CompileError`, and `CheckpointError` where `load` does.
        """
        ...


@runtime_checkable
class Refits(Protocol):
    """An adapter that can also replace the weights of an artifact of the same graph."""

    def refits(self, options: Mapping[str, Option]) -> bool:
        """Whether engines that are built with these options can be refitted."""
        ...

    def refit(self, job: Job, other: Path, out: Path) -> None:
        """Write to the empty folder `out` the artifact `other` with the job's weights.

        Raises `CompileError` where the graphs differ in more than weights, and `RuntimeMissing`.
        """
        ...
