"""Predictions for one engine: memory, size on disk, and seconds, from its graph and the costs of its runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.bundle import Bundle, checked_graph
from ..core.reading import read_plain
from ..core.recipes import RECIPES, Precision
from ..core.shapes import Setting, all_of, filled, shape_of, sizes
from ..core.tensors import Shape
from ..core.wires import TIMESTEP
from ..runtimes import Costs, Runtime, Target, runtime
from ..runtimes.base import MEMORY, Option
from .cache import Artifact
from .cases import REFEREES, needs_referee, shape_referee, stored_cases, stored_shape
from .flops import count_flops
from .memory import activation_bytes, looked_up
from .parity import GRAPH_REFEREES, graph_referee, is_typed_measured
from .traces import CALIBRATED_MODELS, CALIBRATED_ROWS, CALIBRATED_SECONDS

MOST_READ = 10_000
_READ: dict[tuple[object, ...], int] = {}
"""Results of reading graphs, keyed by part digest, function and arguments: reading a graph takes up to a second."""


@dataclass(frozen=True)
class EnginePlan:
    """Predictions for one engine, in bytes and seconds."""

    part: str
    precision: str
    shape: dict[str, Shape]
    """Input shapes that it is planned for: where sizes are free, the model's own size."""
    weights_bytes: int
    activation_bytes: int
    """Memory of the values alive at once, and of what the runtime holds beside them to compute."""
    held_bytes: int
    """Memory on the device, once it is loaded and called."""
    disk_bytes: int | None
    build_bytes: int | None
    """Peak memory of building."""
    build_seconds: float | None
    """Time to compile it."""
    compare_seconds: float | None
    """Time to compare it, including missing references, and its graph on the CPU where the device is absent."""
    built: Artifact | None
    """The engine that already exists, if any."""
    reported_bytes: int | None
    """Memory on the device as reported by its builder."""


@dataclass(frozen=True)
class Priced:
    """Predictions for one engine from the costs of its runtime."""

    bundle: Bundle
    part: str
    adapter: Runtime
    costs: Costs
    precision: Precision
    shape: dict[str, Shape]

    @property
    def weights(self) -> int:
        """Bytes of the weights in the engine's own type."""
        return _weights(self.bundle, self.part, self.costs, self.precision)

    @property
    def whole(self) -> int:
        """Bytes of the weights in f32."""
        return self.bundle.part(self.part).parameters * RECIPES["f32"].weight_bytes

    @property
    def alive(self) -> int:
        """Bytes of the values that are alive at once."""
        return _alive(self.bundle, self.adapter, self.costs, self.part, self.precision, self.shape)

    @property
    def late(self) -> Priced | None:
        """The second model of a calibrated denoiser, at most in f32; see `Quantized.exact_below`."""
        paired = RECIPES[self.precision].calibrated and self.bundle.part(self.part).takes(TIMESTEP)
        return replace(self, precision="f32") if paired else None

    @property
    def held(self) -> int:
        """Bytes in memory once it is loaded and called."""
        costs, parameters = self.costs, self.bundle.part(self.part).parameters
        touched = 1 - _read(self.bundle, self.part, looked_up) / parameters if costs.maps else 1.0
        weights = touched * (costs.per_weight * self.weights + costs.per_f32 * self.whole)
        return round(costs.per_engine + weights) + self.alive + (self.late.held - self.late.alive if self.late else 0)

    @property
    def disk(self) -> int:
        """Bytes on disk."""
        costs = self.costs
        own = 0 if not costs.per_weight + costs.per_f32 else self.whole if costs.writes_f32 else self.weights
        return own + (self.late.disk if self.late else 0)

    @property
    def build(self) -> int:
        """Peak memory in bytes of building it."""
        costs = self.costs
        compiling = costs.build_base + costs.build_per_weight * self.weights
        return max(round(compiling), costs.base + self.held if costs.on_host else 0)  # comparing it calls it

    @property
    def build_seconds(self) -> float:
        """Seconds to compile it, with the calibration of a recipe that takes one."""
        seconds = self.costs.build_seconds + self.costs.build_seconds_per_gb * self.weights / 1e9
        if RECIPES[self.precision].calibrated:
            rows, exact = max(sides[0] for sides in self.shape.values() if sides), replace(self, precision="f32")
            seconds += CALIBRATED_SECONDS + CALIBRATED_ROWS / rows * exact.call_seconds
            seconds += CALIBRATED_MODELS * exact.build_seconds
        return seconds + (self.late.build_seconds if self.late else 0.0)

    @property
    def call_seconds(self) -> float:
        """Seconds of a call; 0 where the rate was not measured."""
        rate = self.costs.flop_per_second.get(self.precision)
        return _flops(self.bundle, self.part, self.shape) / rate if rate else 0.0


def plan_engine(
    bundle: Bundle,
    adapter: Runtime,
    part: str,
    target: Target,
    artifact: Artifact | None,
    earlier: Sequence[Artifact],
    *,
    absent: bool,
    frames: int | None = None,
) -> EnginePlan:
    """Predict an engine, corrected by the last build of the part. `absent` says that its device is not here."""
    costs = adapter.costs(target.device, target.options, free=target.shape is None)
    shape = shape_in(bundle, part, target, frames)
    if costs is None:
        weights = _weights(bundle, part, None, target.precision)
        alive = _alive(bundle, adapter, None, part, target.precision, shape)
        return EnginePlan(
            *(part, target.precision, shape, weights, alive, weights + alive),
            *(None, None, None, None, artifact, reported(bundle, artifact)),
        )
    engine = Priced(bundle, part, adapter, costs, target.precision, shape)
    referees, seconds = _compared(engine, target, absent=absent)
    held, disk, build = _learned(engine, target, earlier) if artifact is None else (1.0, 1.0, 1.0)
    return EnginePlan(
        part=part,
        precision=target.precision,
        shape=shape,
        weights_bytes=engine.weights,
        activation_bytes=engine.alive,
        held_bytes=round(held * engine.held),
        disk_bytes=round(disk * engine.disk),
        build_bytes=max(one.build for one in (engine, *referees)),
        build_seconds=build * engine.build_seconds,
        compare_seconds=seconds,
        built=artifact,
        reported_bytes=reported(bundle, artifact),
    )


def _learned(engine: Priced, target: Target, earlier: Sequence[Artifact]) -> tuple[float, float, float]:
    """Ratios of the last build of a part to what its costs predict: bytes held, bytes on disk, and seconds.

    The last build is the one with the same runtime, device and type, in any size and with any options. A ratio is 1
    where there is no such build, or it doesn't state the figure.
    """
    about = (engine.part, target.runtime, target.device, target.precision)
    alike = [one for one in earlier if _about(one) == about and one.refitted_from is None]
    if not alike:
        return 1.0, 1.0, 1.0
    last = max(alike, key=lambda one: (engine.bundle.engines / one.name).stat().st_mtime)
    shape = shape_in(engine.bundle, engine.part, replace(target, shape=last.fields.fixed))
    then = replace(engine, shape={name: tuple(sides) for name, sides in shape.items()})
    pairs = ((reported(engine.bundle, last), then.held), (last.bytes, then.disk), (last.seconds, then.build_seconds))
    held, disk, seconds = (actual / predicted if actual and predicted else 1.0 for actual, predicted in pairs)
    return held, disk, seconds


def _about(artifact: Artifact) -> tuple[str, str, str, str]:
    fields = artifact.fields
    return artifact.part, fields.runtime, fields.device_name, fields.precision


def _compared(engine: Priced, target: Target, *, absent: bool) -> tuple[list[Priced], float]:
    """Engines that are built for the CPU to prove an engine, and the seconds that the proof takes."""
    part, at = engine.part, stored_shape(engine.bundle, engine.part)
    if absent and is_typed_measured(engine.bundle, part, target):
        return [], 0.0
    seconds, referees = 0.0, list[Priced]()
    if target.shape is not None:
        at = at if all_of(at, target.shape) else filled(target.shape, at)
        if needs_referee(engine.bundle, part, target.shape):
            name = shape_referee(engine.bundle) or next(iter(REFEREES))
            referees.append(_on_cpu(engine, name, REFEREES[name], "f32", at, free=True))
    if absent:
        name = graph_referee(RECIPES[engine.precision].graph) or next(reversed(GRAPH_REFEREES))
        referees.append(_on_cpu(engine, name, {}, engine.precision, at, free=False))
    else:
        calls = len(stored_cases(engine.bundle, part)) * (
            2 if engine.bundle.part(part).role == "denoiser" else 1
        )  # by itself, and in whole steps
        seconds += calls * replace(engine, shape=at).call_seconds
    return referees, seconds + sum(one.build_seconds + one.call_seconds for one in referees)


def _on_cpu(
    engine: Priced,
    name: str,
    options: Mapping[str, Option],
    precision: Precision,
    shape: dict[str, Shape],
    *,
    free: bool,
) -> Priced:
    """A part as a referee (see `cases`) runs it on the CPU."""
    adapter = runtime(name)
    costs = adapter.costs("CPU", options, free=free) or Costs()
    return replace(engine, adapter=adapter, costs=costs, precision=precision, shape=shape)


def _weights(bundle: Bundle, part: str, costs: Costs | None, precision: Precision) -> int:
    info = bundle.part(part)
    width = RECIPES[precision].weight_bytes
    return info.parameters * (min(width, RECIPES[info.weights].weight_bytes) if costs and costs.stores else width)


def shape_in(bundle: Bundle, part: str, target: Target, frames: int | None = None) -> dict[str, Shape]:
    """Input shapes of a target; free sizes are those of the model's own."""
    model = bundle.manifest.model
    free = sizes(model, bundle.part(part).role, Setting(*model.own_size, frames=frames))
    shape = {tensor.name: shape_of(tensor.shape, free) for tensor in target.inputs}
    return shape if target.shape is None else filled(target.shape, shape)


def _alive(
    bundle: Bundle, adapter: Runtime, costs: Costs | None, part: str, precision: Precision, shape: dict[str, Shape]
) -> int:
    if not adapter.facts.reads_onnx or (costs is not None and not costs.per_value):
        return 0
    width, per_value = RECIPES[precision].activation_bytes, costs.per_value if costs else 1.0
    scores = costs.scores.get(precision, 0) if costs else 0

    def count(graph: Path) -> int:
        return activation_bytes(graph, shape, width, per_value=per_value, scores=scores)

    return _read(bundle, part, count, activation_bytes, *shape.items(), width, per_value, scores)


def _flops(bundle: Bundle, part: str, shape: dict[str, Shape]) -> int:
    return _read(bundle, part, lambda graph: count_flops(graph, shape), count_flops, *shape.items())


def _read(bundle: Bundle, part: str, count: Callable[[Path], int], *by: object) -> int:
    """The result of `count` for a part's graph, cached; `by` is the cache key where `count` alone isn't enough."""
    key = (bundle.part(part).digest, *(by or (count,)))
    if key not in _READ:
        if len(_READ) >= MOST_READ:  # a long-running process sees many sizes
            _READ.clear()
        _READ[key] = count(checked_graph(bundle, part))
    return _READ[key]


def reported(bundle: Bundle, artifact: Artifact | None) -> int | None:
    """Bytes of weights and activations, as the builder reported them."""
    if artifact is None or MEMORY not in artifact.files:
        return None
    try:
        held = read_plain(bundle.engines / artifact.name / MEMORY, dict[str, int])
        return sum(held.values()) if "activation_bytes" in held else None
    except (OSError, ValueError):  # damaged: `verify` reports it
        return None
