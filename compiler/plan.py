"""What a build will take and what its engines will hold, before a minute is spent on it.

Memory follows from the graph: its weights, and the values alive at once at the sizes that are built for. What a runtime
adds to that was measured (`Costs`). Where the builder has said what its engine will hold, that stands beside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..core.bundle import Bundle
from ..core.shapes import shape_of
from ..core.tensors import Precision
from ..profiles import Profile
from ..runtimes import Costs, Runtime, Target, runtime
from ..runtimes.base import MEMORY
from ..runtimes.machine import Machine, machine
from .cache import Artifact, find
from .memory import activation_bytes
from .parity import GRAPH_REFEREES
from .sizes import Shape
from .targets import GUIDED_ROWS, PROMPT_LENGTH, targets, wanted

WIDTHS: dict[Precision, int] = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of a number."""

DRAWING = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
"""Parts that are loaded to draw a picture from a text."""

_ALIVE: dict[tuple[object, ...], int] = {}
"""Activations by part digest, shapes and what the runtime does with them: reading a graph takes a second."""


@dataclass(frozen=True)
class EnginePlan:
    """One engine; bytes, seconds."""

    part: str
    precision: str
    shape: dict[str, Shape]
    """What it is planned for: where sizes are free, the model's own."""
    weights_bytes: int
    activation_bytes: int
    """Values alive at once."""
    held_bytes: int
    """On the device, once it is loaded and called."""
    disk_bytes: int | None
    build_bytes: int | None
    """The most that building holds."""
    build_seconds: float | None
    built: Artifact | None
    """What is there already."""
    told_bytes: int | None
    """What its builder says that it will hold on the device."""


@dataclass(frozen=True)
class Plan:
    """What a profile asks of a bundle."""

    profile: str
    device: str
    measured: bool
    """Whether the runtime was measured; if not, held bytes are weights and activations only, and it will be more."""
    on_host: bool
    engines: tuple[EnginePlan, ...]
    held_bytes: int
    """By all engines that draw a picture, loaded at once."""
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
    """For what isn't there yet, on two cores."""
    unbuildable: str | None
    """Why it can't be built here, where it can't; then no key is known, and nothing is looked for in the bundle."""

    @property
    def complaints(self) -> tuple[str, ...]:
        """What doesn't fit, in sentences."""
        return tuple(_complaints(self))


def plan(bundle: Bundle, profile: Profile) -> Plan:
    """Predict what building a profile's engines takes, and what they will hold, here or where it can be built.

    Raises `ProfileError` as `wanted` does.
    """
    adapter = runtime(profile.runtime)
    if unbuildable := adapter.unbuildable(profile.device):
        asked = [(part, target, None) for part, target in targets(bundle, profile, adapter, tuple(WIDTHS))]
    else:
        _, engines = wanted(bundle, profile, to_run=False)
        asked = [(want.part, want.target, find(bundle, want.part, want.key)) for want in engines]
    costs, here = adapter.costs(profile.device), machine()
    absent = adapter.missing(profile.device) is not None
    referee = runtime(GRAPH_REFEREES[0]).costs("CPU") if absent else None
    planned = tuple(_plan_one(bundle, adapter, costs, referee, *one) for one in asked)
    missing = [engine for engine in planned if engine.built is None]
    parts = {engine.part for engine in planned if engine.part in DRAWING}
    drawing = [max(one.held_bytes for one in planned if one.part == part) for part in parts]  # one size at a time
    on_host = costs.on_host if costs else profile.device == "CPU"
    return Plan(
        profile=profile.name,
        device=profile.device,
        measured=costs is not None,
        on_host=on_host,
        engines=planned,
        held_bytes=(costs.base if costs else 0) + sum(drawing),
        device_bytes=_room(profile, here, absent=absent, on_host=on_host),
        build_bytes=_all([one.build_bytes for one in missing], max),
        free_bytes=here.available_bytes,
        disk_bytes=_all([one.disk_bytes for one in missing], sum),
        disk_free_bytes=shutil.disk_usage(bundle.folder).free,
        build_seconds=_all([one.build_seconds for one in missing], sum),
        unbuildable=unbuildable,
    )


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
    named = [gpu for gpu in here.gpus if (gpu.architecture or "").replace("_", "") == profile.device]
    sizes = {gpu.memory_bytes for gpu in named or here.gpus}
    return (sizes.pop() if len(sizes) == 1 else None) or said  # of several unlike ones, nobody knows which it will be


def _plan_one(
    bundle: Bundle,
    adapter: Runtime,
    costs: Costs | None,
    referee: Costs | None,
    part: str,
    target: Target,
    artifact: Artifact | None,
) -> EnginePlan:
    parameters = bundle.part(part).parameters
    width = WIDTHS[target.precision]
    weights, whole = parameters * width, parameters * WIDTHS["f32"]
    shape = _shape(bundle, part, target)
    alive = _alive(bundle, adapter, costs, part, target.precision, shape)
    if costs is None:
        return EnginePlan(
            *(part, target.precision, shape, weights, alive, weights + alive),
            *(None, None, None, artifact, _told(bundle, artifact)),
        )
    held = round(costs.engine + costs.per_weight * weights + costs.per_f32 * whole + costs.activations * alive)
    build = round(costs.build_base + costs.build_per_weight * weights + costs.build_per_f32 * whole)
    seconds = costs.build_seconds + costs.build_seconds_per_gb * weights / 1e9
    if costs.on_host:  # it is called, to be compared
        build = max(build, costs.base + held)
    if referee:  # its graph is compiled and called on the CPU
        build = max(build, round(referee.build_base + referee.build_per_weight * weights))
        seconds += referee.build_seconds + referee.build_seconds_per_gb * weights / 1e9
    return EnginePlan(
        part=part,
        precision=target.precision,
        shape=shape,
        weights_bytes=weights,
        activation_bytes=alive,
        held_bytes=held,
        disk_bytes=round(costs.disk_per_weight * weights + costs.disk_per_f32 * whole),
        build_bytes=build,
        build_seconds=seconds,
        built=artifact,
        told_bytes=_told(bundle, artifact),
    )


def _shape(bundle: Bundle, part: str, target: Target) -> dict[str, Shape]:
    if target.shape is not None:
        return dict(target.shape)
    model = bundle.manifest.model
    side = model.default_size if part == "vae_encoder" else model.default_size // model.downscale
    rows = GUIDED_ROWS if part == "unet" else 1
    sizes = {"batch": rows, "height": side, "width": side, "length": PROMPT_LENGTH}
    return {tensor.name: shape_of(tensor.shape, sizes) for tensor in target.inputs}


def _alive(
    bundle: Bundle, adapter: Runtime, costs: Costs | None, part: str, precision: Precision, shape: dict[str, Shape]
) -> int:
    if not adapter.reads_onnx or (costs is not None and not costs.activations):
        return 0
    width, unrolls = WIDTHS[precision], costs is not None and costs.unrolls
    scores = 0 if costs is None or precision in costs.fuses else costs.scores
    key = (bundle.part(part).digest, tuple(shape.items()), width, scores, unrolls)
    if key not in _ALIVE:
        _ALIVE[key] = activation_bytes(bundle.graph(part), shape, width, scores=scores, unrolls=unrolls)
    return _ALIVE[key]


def _told(bundle: Bundle, artifact: Artifact | None) -> int | None:
    """Weights and activations by the builder's own account."""
    if artifact is None or MEMORY not in artifact.files:
        return None
    try:
        held: dict[str, int] = json.loads((bundle.engines / artifact.name / MEMORY).read_text(encoding="utf-8"))
        return sum(held.values()) if "activation_bytes" in held else None
    except (OSError, ValueError):  # damaged: `verify` says so
        return None


def _complaints(found: Plan) -> Iterable[str]:
    least = "" if found.measured else "at least "
    if found.device_bytes is not None and found.held_bytes > found.device_bytes:
        yield (
            f"Drawing a picture holds {least}{_gb(found.held_bytes)} on {found.device}, which has "
            f"{_gb(found.device_bytes)}: narrower types under [precision], or a smaller size under [shapes]"
        )
    if found.unbuildable:
        return
    if found.build_bytes and found.free_bytes is not None and found.build_bytes > found.free_bytes:
        yield f"Building holds {_gb(found.build_bytes)}, and {_gb(found.free_bytes)} are free here"
    if found.disk_bytes and found.disk_bytes > found.disk_free_bytes:
        yield f"The engines take {_gb(found.disk_bytes)} on disk, where {_gb(found.disk_free_bytes)} are free"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
