"""Prediction of the time and memory that a build takes and of the memory that its engines hold, before it starts.

Memory follows from the graph: its weights, and the values alive at once at the sizes that are built for; so does the
arithmetic of comparing an engine with its reference. What a runtime adds to that, and how fast it computes, was
measured (`Costs`), and is corrected by the last build of the part, where there was one. Where the builder of an engine
reported the memory that it will hold, that figure is given too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, checked_graph
from ..core.reading import read_plain
from ..core.recipes import RECIPES, Precision
from ..core.shapes import Setting, all_of, filled, shape_of, sizes
from ..core.tensors import Shape
from ..core.units import sized
from ..profiles import ANY, Profile
from ..runtimes import Costs, Runtime, Target, runtime
from ..runtimes.base import MEMORY, TOGETHER, numbered
from ..runtimes.machine import Machine, machine
from ..sampling.draw import decoded_shapes
from .cache import Artifact, artifacts, find
from .cases import REFEREES, needs_referee, shape_referee, stored_cases, stored_shape
from .flops import count_flops
from .memory import activation_bytes, looked_up
from .parity import GRAPH_REFEREES, graph_referee, is_typed_measured
from .targets import Wanted, targets, wanted

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
class BuildPlan:
    """Predictions for all engines of a profile."""

    profile: str
    sequential: bool
    """Whether only one part at a time is in memory."""
    device: str
    measured: bool
    """Whether the runtime was measured; if not, held bytes are weights and activations only, a lower bound."""
    on_host: bool
    engines: tuple[EnginePlan, ...]
    held_bytes: int
    """Memory of all engines that generate an image, loaded at once, or of the largest if the profile is sequential; of
    a denoiser and its variants, and of the decoders, the largest."""
    device_bytes: int | None
    """Memory of the device; None where it is unknown."""
    build_bytes: int | None
    """Peak of the machine's own memory while missing engines are built and compared."""
    free_bytes: int | None
    """Memory that is free on this machine now."""
    disk_bytes: int | None
    """Disk space of missing engines."""
    disk_free_bytes: int
    build_seconds: float | None
    """Time to compile and compare missing engines, on two cores."""
    statement: str | None
    """What does not stand behind the bundle, in sentences."""
    unbuildable: str | None
    """Why it can't be built here, if so; then no key is known, and no engine is looked up in the bundle."""

    @property
    def complaints(self) -> tuple[str, ...]:
        """Sentences that state what doesn't fit."""
        return tuple(_complaints(self))


def plan(bundle: Bundle, profile: Profile) -> BuildPlan:
    """Predict what building a profile's engines takes, and the memory that they hold, on this machine or elsewhere.

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
    """`plan` for known engines: each part and target, and the artifact where one exists."""
    costs = adapter.costs(profile.device, profile.options, free=ANY in (profile.shapes.sizes or (ANY,)))
    here = machine()
    absent = adapter.missing(profile.device) is not None
    earlier = artifacts(bundle)
    frames = profile.shapes.decode_frames
    planned = tuple(_plan_one(bundle, adapter, *one, earlier, absent=absent, frames=frames) for one in asked)
    missing = [engine for engine in planned if engine.built is None]
    # An image has one size. What a builder reports of its own engine takes precedence over the prediction.
    drawing = {
        part: max(one.reported_bytes or one.held_bytes for one in planned if one.part == part)
        for part in bundle.drawing
    }
    on_host = costs.on_host if costs else profile.device == "CPU"
    return BuildPlan(
        profile=profile.name,
        sequential=profile.sequential,
        device=profile.device,
        measured=costs is not None,
        on_host=on_host,
        engines=planned,
        held_bytes=(costs.base if costs else 0) + _at_once(bundle, drawing, sequential=profile.sequential),
        device_bytes=_room(profile, here, absent=absent, on_host=on_host),
        build_bytes=_all([one.build_bytes for one in missing], max),
        free_bytes=here.available_bytes,
        disk_bytes=_all([one.disk_bytes for one in missing], sum),
        disk_free_bytes=shutil.disk_usage(bundle.folder).free,
        build_seconds=_all([each for one in missing for each in (one.build_seconds, one.compare_seconds)], sum),
        statement=bundle.standing.statement,
        unbuildable=unbuildable,
    )


def _at_once(bundle: Bundle, held: Mapping[str, int], *, sequential: bool) -> int:
    """Total memory of the parts that generate an image, from each part's own: only one denoiser and one decoder are
    used, and only one part at a time if the profile is sequential.
    """
    if sequential:
        return max(held.values(), default=0)
    alternatives = (bundle.variants("denoiser").values(), bundle.decoders.values())
    others = sum(size for part, size in held.items() if not any(part in each for each in alternatives))
    return others + sum(max((held[part] for part in each if part in held), default=0) for each in alternatives)


def _all(figures: list[Any], combine: Callable[[list[Any]], Any]) -> Any:
    """Combine figures; None where one is unknown, 0 without figures."""
    return None if None in figures else combine([0, *figures])


def _room(profile: Profile, here: Machine, *, absent: bool, on_host: bool) -> int | None:
    """The device's memory: as the machine reports it where the device is present, else from the profile."""
    stated = round(profile.memory_gb * 1e9) if profile.memory_gb else None
    if on_host:
        return min(filter(None, (stated, here.memory_bytes)), default=None)
    if absent:
        return stated
    devices = numbered(profile.device)[0].split(TOGETHER)
    named = [gpu for gpu in here.gpus if (gpu.architecture or "").replace("_", "") in devices]
    sizes = {gpu.memory_bytes for gpu in named or here.gpus}
    return (sizes.pop() if len(sizes) == 1 else None) or stated  # GPUs differ: which one will be used is unknown


Asked = tuple[str, Target, Artifact | None]
"""A part, its target, and the artifact where one exists."""


@dataclass(frozen=True)
class Predicted:
    """Memory that generating an image takes, on the device of the engines."""

    bytes: int
    measured: bool
    """Whether the runtime was measured; if not, the bytes are a lower bound."""
    on_host: bool
    engines: tuple[int, ...]
    """Indices of the engines that are used, in what was asked."""


def predict(
    bundle: Bundle,
    asked: Iterable[Asked],
    parts: Collection[str],
    rows: int,
    height: int,
    width: int,
    *,
    sequential: bool = False,
    tile: int | None = None,
    decoder: str | None = None,
    spare: bool = False,
) -> Predicted | None:
    """Predict the memory that generation takes, with all engines loaded, or if `sequential` the largest one; None where
    a part has no engine for these sizes.

    `parts` are those that generate it (`Bundle.used_by`); `rows`, `height` and `width` are those of the denoiser's
    sample, in latents; `tile` is the side in latents of the tiles that the VAE decodes, and `decoder` that of the
    request. With `spare`, the VAE's decoder is loaded although another decodes.
    """
    asked, model = list(asked), bundle.manifest.model
    used = bundle.decoders[decoder]
    base, more, measured, on_host, held = 0, 0, True, True, dict[str, int]()
    engines = list[int]()
    for part in parts:
        role = bundle.part(part).role
        latents = (1, model.latent_channels, height, width)
        cut = [shape[-2:] for shape in decoded_shapes(latents, None, tile)] if role == "decoder" else [(height, width)]
        mine = [(index, one) for index, one in enumerate(asked) if one[0] == part]
        needed: list[int] = []
        for tall, wide in cut if mine else ():
            free = sizes(model, role, Setting(wide * model.downscale, tall * model.downscale))
            free |= {"batch": rows} if role in ("denoiser", "control") else {}
            found = _fitting(mine, free)
            if found is None and role in ("text_encoder", "image_encoder") and mine:  # for other numbers of rows
                found = *mine[-1], _shape(bundle, part, mine[-1][1][1])
            if found is None and role == "decoder" and part != used:  # not called
                break
            if found is None:
                return None
            index, (_, target, artifact), shape = found
            adapter = runtime(target.runtime)
            costs = adapter.costs(target.device, target.options, free=target.shape is None)
            measured, on_host = measured and costs is not None, on_host and costs is not None and costs.on_host
            base = max(base, costs.base if costs else 0)
            priced = _Priced(bundle, part, adapter, costs or Costs(), target.precision, shape)
            reported = _reported(bundle, artifact) if target.shape is not None else None
            needed.append(reported or priced.held)
            if role == "decoder" and part != used:  # the VAE's own is loaded all the same, but not called
                more += priced.held - priced.alive if spare and part != model.tiny_decoder and not sequential else 0
                needed.clear()
            else:
                engines.append(index)
            if target.shape is None:  # one engine serves all, and the first is the largest
                break
        if needed:
            held[part] = max(needed) if sequential else sum(needed)
    total = base + more + _at_once(bundle, held, sequential=sequential)
    return Predicted(total, measured, on_host, tuple(engines))


def _fitting(asked: Sequence[tuple[int, Asked]], free: Mapping[str, int]) -> tuple[int, Asked, dict[str, Shape]] | None:
    """The engine for these sizes, of fixed sizes if there is one, with its index and its input shapes."""
    for index, one in sorted(asked, key=lambda one: one[1][1].shape is None):
        target = one[1]
        shape = {tensor.name: shape_of(tensor.shape, free) for tensor in target.inputs}
        if target.shape is None or all_of(shape, target.shape):
            return index, one, shape
    return None


def drawing_bytes(
    bundle: Bundle,
    wanted_: Iterable[Wanted],
    rows: int,
    height: int,
    width: int,
    *,
    sequential: bool = False,
    tile: int | None = None,
    decoder: str | None = None,
    parts: Collection[str] = (),
) -> int | None:
    """`predict` for engines in the machine's own memory, of all parts that draw unless some are named; None where a
    device has memory of its own, the runtime was never measured, or no engine takes the size.
    """
    asked = [(want.part, want.target, None) for want in wanted_]
    found = predict(
        bundle,
        asked,
        parts or bundle.drawing,
        rows,
        height,
        width,
        sequential=sequential,
        tile=tile,
        decoder=decoder,
        spare=True,
    )
    return found.bytes or None if found and found.measured and found.on_host else None


@dataclass(frozen=True)
class _Priced:
    """Predictions for one engine from the costs of its runtime."""

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
        """Bytes of the weights in f32."""
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
        return max(round(compiling), costs.base + self.held if costs.on_host else 0)  # comparing it calls it

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
    frames: int | None = None,
) -> EnginePlan:
    costs = adapter.costs(target.device, target.options, free=target.shape is None)
    shape = _shape(bundle, part, target, frames)
    if costs is None:
        weights = _weights(bundle, part, None, target.precision)
        alive = _alive(bundle, adapter, None, part, target.precision, shape)
        return EnginePlan(
            *(part, target.precision, shape, weights, alive, weights + alive),
            *(None, None, None, None, artifact, _reported(bundle, artifact)),
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
        reported_bytes=_reported(bundle, artifact),
    )


def _learned(engine: _Priced, target: Target, earlier: Sequence[Artifact]) -> tuple[float, float, float]:
    """Ratios of the last build of a part to what its costs predict: bytes held, bytes on disk, and seconds.

    The last build is the one with the same runtime, device and type, in any size and with any options. A ratio is 1
    where there is no such build, or it doesn't state the figure.
    """
    about = (engine.part, target.runtime, target.device, target.precision)
    alike = [one for one in earlier if _about(one) == about and one.refitted_from is None]
    if not alike:
        return 1.0, 1.0, 1.0
    last = max(alike, key=lambda one: (engine.bundle.engines / one.name).stat().st_mtime)
    shape = _shape(engine.bundle, engine.part, replace(target, shape=last.fields.fixed))
    then = replace(engine, shape={name: tuple(sides) for name, sides in shape.items()})
    pairs = ((_reported(engine.bundle, last), then.held), (last.bytes, then.disk), (last.seconds, then.build_seconds))
    held, disk, seconds = (actual / predicted if actual and predicted else 1.0 for actual, predicted in pairs)
    return held, disk, seconds


def _about(artifact: Artifact) -> tuple[str, str, str, str]:
    fields = artifact.fields
    return artifact.part, fields.runtime, fields.device_name, fields.precision


def _compared(engine: _Priced, target: Target, *, absent: bool) -> tuple[list[_Priced], float]:
    """Engines that are built for the CPU to prove an engine, and the seconds that the proof takes."""
    part, at = engine.part, stored_shape(engine.bundle, engine.part)
    if absent and is_typed_measured(engine.bundle, part, target):
        return [], 0.0
    seconds, referees = 0.0, list[_Priced]()
    if target.shape is not None:
        at = at if all_of(at, target.shape) else filled(target.shape, at)
        if needs_referee(engine.bundle, part, target.shape):
            referees.append(_on_cpu(engine, shape_referee(engine.bundle) or next(iter(REFEREES)), "f32", at, free=True))
    if absent:
        name = graph_referee(RECIPES[engine.precision].graph) or next(reversed(GRAPH_REFEREES))
        referees.append(_on_cpu(engine, name, engine.precision, at, free=False))
    else:
        calls = len(stored_cases(engine.bundle, part)) * (
            2 if engine.bundle.part(part).role == "denoiser" else 1
        )  # by itself, and in whole steps
        seconds += calls * replace(engine, shape=at).call_seconds
    return referees, seconds + sum(one.build_seconds + one.call_seconds for one in referees)


def _on_cpu(engine: _Priced, name: str, precision: Precision, shape: dict[str, Shape], *, free: bool) -> _Priced:
    """A part as a referee (see `cases`) runs it on the CPU."""
    adapter = runtime(name)
    costs = adapter.costs("CPU", {}, free=free) or Costs()
    return replace(engine, adapter=adapter, costs=costs, precision=precision, shape=shape)


def _weights(bundle: Bundle, part: str, costs: Costs | None, precision: Precision) -> int:
    info = bundle.part(part)
    width = RECIPES[precision].weight_bytes
    return info.parameters * (min(width, RECIPES[info.weights].weight_bytes) if costs and costs.stores else width)


def _shape(bundle: Bundle, part: str, target: Target, frames: int | None = None) -> dict[str, Shape]:
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


def _reported(bundle: Bundle, artifact: Artifact | None) -> int | None:
    """Bytes of weights and activations, as the builder reported them."""
    if artifact is None or MEMORY not in artifact.files:
        return None
    try:
        held = read_plain(bundle.engines / artifact.name / MEMORY, dict[str, int])
        return sum(held.values()) if "activation_bytes" in held else None
    except (OSError, ValueError):  # damaged: `verify` reports it
        return None


def _complaints(found: BuildPlan) -> Iterable[str]:
    least = "" if found.measured else "at least "
    if found.device_bytes is not None and found.held_bytes > found.device_bytes:
        yield (
            f"Generating an image takes {least}{sized(found.held_bytes)} on {found.device}, which has "
            f"{sized(found.device_bytes)}: {'' if found.sequential else 'use --sequential, '}set narrower types under "
            "[precision], or a smaller size under [shapes]"
        )
    if found.unbuildable:
        return
    if found.build_bytes and found.free_bytes is not None and found.build_bytes > found.free_bytes:
        yield f"Building takes {sized(found.build_bytes)} of memory, and only {sized(found.free_bytes)} are free"
    if found.disk_bytes and found.disk_bytes > found.disk_free_bytes:
        yield f"The engines take {sized(found.disk_bytes)} on disk, where only {sized(found.disk_free_bytes)} are free"
