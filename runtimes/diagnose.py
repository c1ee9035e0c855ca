"""Which runtimes work here, and what the others need."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import LatentcError
from ..core.tensors import Precision
from ..profiles import Profile, load_profile, profile_names
from . import RUNTIMES, runtime
from .machine import Machine

DEFAULT_DEVICE = "CPU"


@dataclass(frozen=True)
class RuntimeState:
    """One runtime on this machine."""

    name: str
    works: bool
    """On one device at least."""
    versions: dict[str, str]
    devices: dict[str, tuple[Precision, ...]]
    """Each device, and what it computes in."""
    missing: str | None
    """Why it doesn't work, and what to install."""


def diagnose() -> tuple[RuntimeState, ...]:
    """Try every runtime; none of them makes this fail."""
    return tuple(_state(name) for name in RUNTIMES)


def advise(here: Machine) -> Profile | None:
    """The shipped profile to take on this machine; None where no runtime works."""
    for profile in sorted(map(load_profile, profile_names()), key=lambda one: -one.rank):
        suits = not profile.instructions or set(profile.instructions) & set(here.instructions)
        has = not profile.gpus or set(profile.gpus) & {gpu.architecture for gpu in here.gpus}
        real = profile.device == DEFAULT_DEVICE or here.gpus or not here.system.startswith("Linux")
        if profile.rank and suits and has and real:  # a GPU in software is no reason to leave the CPU
            adapter = runtime(profile.runtime)
            if adapter.missing(profile.device) is None and _has(profile, adapter.precisions(profile.device)):
                return profile
    return None


def _has(profile: Profile, precisions: tuple[Precision, ...]) -> bool:
    return all(any(wish in precisions for wish in wishes) for wishes in profile.precision.values())


def _state(name: str) -> RuntimeState:
    adapter = runtime(name)
    devices = adapter.devices()
    if not devices:
        reason = adapter.missing(DEFAULT_DEVICE) or "It finds no device here."
        return RuntimeState(name, works=False, versions={}, devices={}, missing=reason)
    try:
        precisions = {device: adapter.precisions(device) for device in devices}
        return RuntimeState(name, works=True, versions=adapter.versions(), devices=precisions, missing=None)
    except LatentcError as exc:
        return RuntimeState(name, works=False, versions={}, devices={}, missing=str(exc))
