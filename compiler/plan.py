"""Prediction of the time and memory that a build takes and of the memory that its engines hold, before it starts.

Memory follows from the graph: its weights, and the values alive at once at the sizes that are built for; so does the
arithmetic of comparing an engine with its reference. What a runtime adds to that, and how fast it computes, was
measured (`Costs`), and is corrected by the last build of the part, where there was one. Where the builder of an engine
reported the memory that it will hold, that figure is given too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..core.bundle import Bundle
from ..core.recipes import RECIPES
from ..core.units import sized
from ..profiles import ANY, Profile
from ..runtimes import Runtime, Target, runtime
from ..runtimes.base import TOGETHER, numbered
from ..runtimes.machine import Machine, machine
from .cache import Artifact, artifacts, find
from .predict import at_once
from .priced import EnginePlan, plan_engine
from .targets import targets, wanted


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
    planned = tuple(plan_engine(bundle, adapter, *one, earlier, absent=absent, frames=frames) for one in asked)
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
        held_bytes=(costs.base if costs else 0) + at_once(bundle, drawing, sequential=profile.sequential),
        device_bytes=_room(profile, here, absent=absent, on_host=on_host),
        build_bytes=_all([one.build_bytes for one in missing], max),
        free_bytes=here.available_bytes,
        disk_bytes=_all([one.disk_bytes for one in missing], sum),
        disk_free_bytes=shutil.disk_usage(bundle.folder).free,
        build_seconds=_all([each for one in missing for each in (one.build_seconds, one.compare_seconds)], sum),
        statement=bundle.standing.statement,
        unbuildable=unbuildable,
    )


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
