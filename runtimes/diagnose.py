"""Diagnosis of which runtimes work on this machine, and what the others need."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ..core.errors import LatentcError, RuntimeMissing
from ..core.recipes import Precision
from ..profiles import Profile, load_profile, profile_names
from . import known_runtimes, runtime
from .base import numbered
from .cuda import capabilities
from .machine import Machine, machine

DEFAULT_DEVICE = "CPU"


@dataclass(frozen=True)
class RuntimeState:
    """The state of one runtime on this machine."""

    name: str
    works: bool
    """Whether it works on at least one device."""
    versions: dict[str, str]
    devices: dict[str, tuple[Precision, ...]]
    """Precisions of each device on this machine."""
    builds: tuple[str, ...]
    """Devices of shipped profiles that this machine doesn't have, but that it can build for."""
    missing: str | None
    """Why it doesn't work, and what to install."""


def diagnose() -> tuple[RuntimeState, ...]:
    """Try every runtime; errors of a runtime are reported in its state."""
    shipped = [load_profile(name) for name in profile_names()]
    return tuple(_state(name, [one.device for one in shipped if one.runtime == name]) for name in known_runtimes())


def advise(here: Machine) -> Profile | None:
    """The recommended shipped profile for a machine; None where no runtime works."""
    for profile in sorted(map(load_profile, profile_names()), key=lambda one: -one.rank):
        suits = not profile.instructions or set(profile.instructions) & set(here.instructions)
        has = not profile.gpus or set(profile.gpus) & opened(profile, here)
        real = profile.device == DEFAULT_DEVICE or here.gpus or not here.system.startswith("Linux")
        if profile.rank and suits and has and real:  # a GPU emulated in software is not preferred to the CPU
            with suppress(LatentcError):  # `diagnose` reports what is missing
                adapter = runtime(profile.runtime)
                if adapter.missing(profile.device) is None and _has(profile, adapter.precisions(profile.device)):
                    return profile
    return None


def opened(profile: Profile, here: Machine) -> set[str]:
    """Architectures of the GPUs that a profile's device may open: NVIDIA's by CUDA's number, where CUDA can be asked
    (it orders GPUs in its own way, and processes can hide some); else those of all GPUs.
    """
    number = numbered(profile.device)[1] or 0
    with suppress(RuntimeMissing):
        if any(one.startswith("sm_") for one in profile.gpus):
            return {one.replace("sm", "sm_") for one in capabilities()[number : number + 1]}
    return {gpu.architecture for gpu in here.gpus if gpu.architecture}


def advised() -> Profile:
    """The recommended shipped profile for this machine; raises `RuntimeMissing` where no runtime works."""
    found = advise(machine())
    if found is None:
        raise RuntimeMissing("No profile works on this machine yet. `latentc doctor` shows what to install.")
    return found


def _has(profile: Profile, precisions: tuple[Precision, ...]) -> bool:
    return all(any(wish in precisions for wish in wishes) for wishes in profile.precision.values())


def _state(name: str, wanted: list[str]) -> RuntimeState:
    try:
        adapter = runtime(name)
        devices = adapter.devices()
        absent = [device for device in dict.fromkeys(wanted) if adapter.missing(device)]
        builds = tuple(device for device in absent if adapter.unbuildable(device) is None)
        if devices or builds:
            precisions = {device: adapter.precisions(device) for device in devices}
            missing = None if devices else adapter.missing(builds[0])
            return RuntimeState(name, bool(devices), adapter.versions(), precisions, builds, missing)
        missing = adapter.missing(wanted[0] if wanted else DEFAULT_DEVICE) or "No supported device was found."
    except LatentcError as exc:
        missing = str(exc)
    return RuntimeState(name, works=False, versions={}, devices={}, builds=(), missing=missing)
