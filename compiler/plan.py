"""What a build will take and what its engines will hold, before a minute is spent on it.

Memory follows from the graph: its weights, and the values alive at once at the sizes that are built for; so does the
arithmetic of comparing an engine with its reference. What a runtime adds to that, and how fast it computes, was
measured (`Costs`), and is corrected by what the last build of the part took, where there was one. Where the builder has
said what its engine will hold, that stands beside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, checked_graph
from ..core.reading import read_plain
from ..core.recipes import RECIPES, Precision
from ..core.shapes import Setting, shape_of, sizes
from ..core.units import sized
from ..profiles import Profile
from ..runtimes import Costs, Runtime, Target, runtime
from ..runtimes.base import MEMORY, TOGETHER
from ..runtimes.machine import Machine, machine
from .cache import Artifact, artifacts, find
from .cases import REFEREES, needs_referee, shape_referee, stored_cases, stored_shape
from .flops import count_flops
from .memory import activation_bytes, looked_up
from .parity import GRAPH_REFEREES, graph_referee, is_typed_measured
from .sizes import Shape
from .targets import Wanted, targets, wanted

MOST_READ = 10_000
_READ: dict[tuple[object, ...], int] = {}
"""What graphs were read for, by part digest, what it is, and what it hangs on: reading one takes up to a second."""


@dataclass(frozen=True)
class EnginePlan:
    """One engine; bytes, seconds."""

    part: str
    precision: str
    shape: dict[str, Shape]
    """What it is planned for: where sizes are free, the model's own."""
    weights_bytes: int
    activation_bytes: int
    """Values alive at once, and what the runtime holds beside them to compute."""
    held_bytes: int
    """On the device, once it is loaded and called."""
    disk_bytes: int | None
    build_bytes: int | None
    """The most that building holds."""
    build_seconds: float | None
    """To compile it."""
    compare_seconds: float | None
    """To compare it: its graph compiled and run on the CPU where its device isn't here, references that are made."""
    built: Artifact | None
    """What is there already."""
    reported_bytes: int | None
    """What its builder says that it will hold on the device."""


@dataclass(frozen=True)
class BuildPlan:
    """What a profile asks of a bundle."""

    profile: str
    device: str
    measured: bool
    """Whether the runtime was measured; if not, held bytes are weights and activations only, and it will be more."""
    on_host: bool
    engines: tuple[EnginePlan, ...]
    held_bytes: int
    """By all engines that draw a picture, loaded at once; of a denoiser and its variants, by the largest."""
    device_bytes: int | None
    """What the device has; None where nobody knows."""
    build_bytes: int | None
    """The most that building what isn't there yet will hold, in the machine's own memory, the comparison included."""
    free_bytes: int | None
    """Memory that is free here now."""
    disk_bytes: int | None
    """Of what isn't there yet."""
    disk_free_bytes: int
    build_seconds: float | None
    """To compile and compare what isn't there yet, on two cores."""
    unbuildable: str | None
    """Why it can't be built here, where it can't; then no key is known, and nothing is looked for in the bundle."""

    @property
    def complaints(self) -> tuple[str, ...]:
        """What doesn't fit, in sentences."""
        return tuple(_complaints(self))


def plan(bundle: Bundle, profile: Profile) -> BuildPlan:
    """Predict what building a profile's engines takes, and what they will hold, here or where it can be built.

    Raises `ProfileError` as `wanted` does, and `BundleError` for graphs or references that can't be read.
    """
    adapter = runtime(profile.runtime)
    if unbuildable := adapter.unbuildable(profile.device):
        unknown = [(part, target, None) for part, target in targets(bundle, profile, adapter, tuple(RECIPES))]
        return planned(bundle, profile, adapter, unknown, unbuildable)
    _, engines = wanted(bundle, profile, to_run=False)
    asked = [(want.part, want.target, find(bundle, want.part, want.key)) for want in engines]
    return planned(bundle, profile, adapter, asked)


def planned(
    bundle: Bundle,
    profile: Profile,
    adapter: Runtime,
    asked: Iterable[tuple[str, Target, Artifact | None]],
    unbuildable: str | None = None,
) -> BuildPlan:
    """As `plan`, of engines that are known: each part and target, and the artifact where there is one."""
    costs = adapter.costs(profile.device, profile.options, free=not profile.shapes.sizes)
    here = machine()
    absent = adapter.missing(profile.device) is not None
    earlier = artifacts(bundle)
    planned = tuple(_plan_one(bundle, adapter, *one, earlier, absent=absent) for one in asked)
    missing = [engine for engine in planned if engine.built is None]
    # A picture has one size. What a builder reports of its own engine goes before the prediction.
    drawing = {
        part: max(one.reported_bytes or one.held_bytes for one in planned if one.part == part)
        for part in bundle.drawing
    }
    on_host = costs.on_host if costs else profile.device == "CPU"
    return BuildPlan(
        profile=profile.name,
        device=profile.device,
        measured=costs is not None,
        on_host=on_host,
        engines=planned,
        held_bytes=(costs.base if costs else 0) + _at_once(bundle, drawing),
        device_bytes=_room(profile, here, absent=absent, on_host=on_host),
        build_bytes=_all([one.build_bytes for one in missing], max),
        free_bytes=here.available_bytes,
        disk_bytes=_all([one.disk_bytes for one in missing], sum),
        disk_free_bytes=shutil.disk_usage(bundle.folder).free,
        build_seconds=_all([each for one in missing for each in (one.build_seconds, one.compare_seconds)], sum),
        unbuildable=unbuildable,
    )


def _at_once(bundle: Bundle, held: Mapping[str, int]) -> int:
    """What parts that draw hold together, from each one's own: a picture is drawn by one denoiser."""
    denoisers = bundle.variants("denoiser").values()
    others = sum(size for part, size in held.items() if part not in denoisers)
    return others + max((held[part] for part in denoisers if part in held), default=0)


def _all(figures: list[Any], combine: Callable[[list[Any]], Any]) -> Any:
    """Figures combined; None where one isn't known, 0 where there is none."""
    return None if None in figures else combine([0, *figures])


def _room(profile: Profile, here: Machine, *, absent: bool, on_host: bool) -> int | None:
    """The device's memory: by the machine where it is here, else by the profile."""
    said = round(profile.memory_gb * 1e9) if profile.memory_gb else None
    if on_host:
        return min(filter(None, (said, here.memory_bytes)), default=None)
    if absent:
        return said
    devices = profile.device.split(TOGETHER)
    named = [gpu for gpu in here.gpus if (gpu.architecture or "").replace("_", "") in devices]
    sizes = {gpu.memory_bytes for gpu in named or here.gpus}
    return (sizes.pop() if len(sizes) == 1 else None) or said  # of several unlike ones, nobody knows which it will be


def drawing_bytes(bundle: Bundle, wanted_: Iterable[Wanted], rows: int, height: int, width: int) -> int | None:
    """What drawing holds in the machine's own memory, with engines of free sizes that are all loaded.

    `rows`, `height` and `width` are those of the denoiser's sample, in latents. None where it is held elsewhere, or
    was never measured.
    """
    base, held, model = 0, dict[str, int](), bundle.manifest.model
    drawn = Setting(width * model.downscale, height * model.downscale)
    for want in wanted_:
        if want.part not in bundle.drawing or want.target.shape is not None:
            continue
        adapter, target = runtime(want.target.runtime), want.target
        costs = adapter.costs(target.device, target.options, free=True)
        if costs is None or not costs.on_host:
            return None
        role = bundle.part(want.part).role
        free = sizes(model, role, drawn) | ({"batch": rows} if role == "denoiser" else {})
        shape = {tensor.name: shape_of(tensor.shape, free) for tensor in target.inputs}
        base = max(base, costs.base)
        held[want.part] = _Priced(bundle, want.part, adapter, costs, target.precision, shape).held
    return base + _at_once(bundle, held) or None


@dataclass(frozen=True)
class _Priced:
    """One engine, as the costs of its runtime predict it."""

    bundle: Bundle
    part: str
    adapter: Runtime
    costs: Costs
    precision: Precision
    shape: dict[str, Shape]

    @property
    def weights(self) -> int:
        return _weights(self.bundle, self.part, self.costs, self.precision)

    @property
    def whole(self) -> int:
        """Weights in f32."""
        return self.bundle.part(self.part).parameters * RECIPES["f32"].weight_bytes

    @property
    def alive(self) -> int:
        return _alive(self.bundle, self.adapter, self.costs, self.part, self.precision, self.shape)

    @property
    def held(self) -> int:
        costs, parameters = self.costs, self.bundle.part(self.part).parameters
        touched = 1 - _read(self.bundle, self.part, looked_up) / parameters if costs.maps else 1.0
        weights = touched * (costs.per_weight * self.weights + costs.per_f32 * self.whole)
        return round(costs.per_engine + weights) + self.alive

    @property
    def disk(self) -> int:
        costs = self.costs
        return 0 if not costs.per_weight + costs.per_f32 else self.whole if costs.writes_f32 else self.weights

    @property
    def build(self) -> int:
        costs = self.costs
        compiling = costs.build_base + costs.build_per_weight * self.weights
        return max(round(compiling), costs.base + self.held if costs.on_host else 0)  # it is called, to be compared

    @property
    def build_seconds(self) -> float:
        return self.costs.build_seconds + self.costs.build_seconds_per_gb * self.weights / 1e9

    @property
    def call_seconds(self) -> float:
        rate = self.costs.flop_per_second.get(self.precision)
        return _flops(self.bundle, self.part, self.shape) / rate if rate else 0.0


def _plan_one(
    bundle: Bundle,
    adapter: Runtime,
    part: str,
    target: Target,
    artifact: Artifact | None,
    earlier: Sequence[Artifact],
    *,
    absent: bool,
) -> EnginePlan:
    costs = adapter.costs(target.device, target.options, free=target.shape is None)
    shape = _shape(bundle, part, target)
    if costs is None:
        weights = _weights(bundle, part, None, target.precision)
        alive = _alive(bundle, adapter, None, part, target.precision, shape)
        return EnginePlan(
            *(part, target.precision, shape, weights, alive, weights + alive),
            *(None, None, None, None, artifact, _told(bundle, artifact)),
        )
    engine = _Priced(bundle, part, adapter, costs, target.precision, shape)
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
        reported_bytes=_told(bundle, artifact),
    )


def _learned(engine: _Priced, target: Target, earlier: Sequence[Artifact]) -> tuple[float, float, float]:
    """What the last build of a part took, over what its costs predict: held, on disk, and seconds.

    The last by the same runtime for the same device in the same type, whatever its size and options; 1 where there is
    none, or it says nothing of that.
    """
    about = (engine.part, target.runtime, target.device, target.precision)
    alike = [one for one in earlier if _about(one) == about and one.refitted_from is None]
    if not alike:
        return 1.0, 1.0, 1.0
    last = max(alike, key=lambda one: (engine.bundle.engines / one.name).stat().st_mtime)
    shape = _shape(engine.bundle, engine.part, replace(target, shape=last.fields.fixed))
    then = replace(engine, shape={name: tuple(sides) for name, sides in shape.items()})
    pairs = ((_told(engine.bundle, last), then.held), (last.bytes, then.disk), (last.seconds, then.build_seconds))
    held, disk, seconds = (took / foretold if took and foretold else 1.0 for took, foretold in pairs)
    return held, disk, seconds


def _about(artifact: Artifact) -> tuple[str, str, str, str]:
    fields = artifact.fields
    return artifact.part, fields.runtime, fields.device_name, fields.precision


def _compared(engine: _Priced, target: Target, *, absent: bool) -> tuple[list[_Priced], float]:
    """What is built for the CPU to prove an engine, and the seconds that proving takes."""
    part, at = engine.part, stored_shape(engine.bundle, engine.part)
    if absent and is_typed_measured(engine.bundle, part, target):
        return [], 0.0
    seconds, referees = 0.0, list[_Priced]()
    if target.shape is not None and dict(target.shape) != at:
        at = dict(target.shape)
        if needs_referee(engine.bundle, part, at):
            referees.append(_on_cpu(engine, shape_referee() or next(iter(REFEREES)), "f32", at, free=True))
    if absent:
        name = graph_referee(engine.precision) or next(reversed(GRAPH_REFEREES))
        referees.append(_on_cpu(engine, name, engine.precision, at, free=False))
    else:
        calls = len(stored_cases(engine.bundle, part)) * (
            2 if engine.bundle.part(part).role == "denoiser" else 1
        )  # by itself, and in steps
        seconds += calls * replace(engine, shape=at).call_seconds
    return referees, seconds + sum(one.build_seconds + one.call_seconds for one in referees)


def _on_cpu(engine: _Priced, name: str, precision: Precision, shape: dict[str, Shape], *, free: bool) -> _Priced:
    """A part as a referee runs it, which was measured there."""
    adapter = runtime(name)
    costs = adapter.costs("CPU", {}, free=free) or Costs()
    return replace(engine, adapter=adapter, costs=costs, precision=precision, shape=shape)


def _weights(bundle: Bundle, part: str, costs: Costs | None, precision: Precision) -> int:
    info = bundle.part(part)
    width = RECIPES[precision].weight_bytes
    return info.parameters * (min(width, RECIPES[info.weights].weight_bytes) if costs and costs.stores else width)


def _shape(bundle: Bundle, part: str, target: Target) -> dict[str, Shape]:
    if target.shape is not None:
        return dict(target.shape)
    model = bundle.manifest.model
    free = sizes(model, bundle.part(part).role, Setting(*model.own_size))
    return {tensor.name: shape_of(tensor.shape, free) for tensor in target.inputs}


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
    """What a graph is read for, once; `by` says what it is where the function alone doesn't."""
    key = (bundle.part(part).digest, *(by or (count,)))
    if key not in _READ:
        if len(_READ) >= MOST_READ:  # a long-lived process meets many sizes
            _READ.clear()
        _READ[key] = count(checked_graph(bundle, part))
    return _READ[key]


def _told(bundle: Bundle, artifact: Artifact | None) -> int | None:
    """Weights and activations by the builder's own account."""
    if artifact is None or MEMORY not in artifact.files:
        return None
    try:
        held = read_plain(bundle.engines / artifact.name / MEMORY, dict[str, int])
        return sum(held.values()) if "activation_bytes" in held else None
    except (OSError, ValueError):  # damaged: `verify` says so
        return None


def _complaints(found: BuildPlan) -> Iterable[str]:
    least = "" if found.measured else "at least "
    if found.device_bytes is not None and found.held_bytes > found.device_bytes:
        yield (
            f"Drawing a picture holds {least}{sized(found.held_bytes)} on {found.device}, which has "
            f"{sized(found.device_bytes)}: narrower types under [precision], or a smaller size under [shapes]"
        )
    if found.unbuildable:
        return
    if found.build_bytes and found.free_bytes is not None and found.build_bytes > found.free_bytes:
        yield f"Building holds {sized(found.build_bytes)}, and {sized(found.free_bytes)} are free here"
    if found.disk_bytes and found.disk_bytes > found.disk_free_bytes:
        yield f"The engines take {sized(found.disk_bytes)} on disk, where {sized(found.disk_free_bytes)} are free"
