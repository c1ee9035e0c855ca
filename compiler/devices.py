"""Which of a machine's devices of one kind a profile uses, such as the second GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.errors import ProfileError, RuntimeMissing
from ..core.units import listed
from ..profiles import Profile
from ..runtimes import runtime
from ..runtimes.base import NUMBERED

ASKED = re.compile(r"(?P<kind>[^:.,]+)(?:[:.](?P<number>\d{1,4}))?", re.ASCII)
"""A kind of device and a number: `cuda:1`, `GPU.1`, `cuda`."""


def with_device(profile: Profile, device: str | None) -> Profile:
    """The profile for one of the devices of its kind, such as `cuda:1`; for None, the profile unchanged.

    Raises `ProfileError` for a device of another kind, for a kind of which there are several, and, with a list of what
    there is, for one that this machine doesn't have.
    """
    if device is None:
        return profile
    names = _named(profile, device)
    if len(names) > 1:
        raise ProfileError(f"{device} may be {listed(names)}. Name one of them.")
    return profile.model_copy(update={"device": names[0]})


def each_device(profile: Profile, devices: str) -> list[Profile]:
    """The profile for each of several devices, separated by commas; a kind without a number means all of it.

    Raises `ProfileError` as `with_device`, and for devices that don't share engines: results would depend on which one
    computes them.
    """
    names = [name for asked in devices.split(",") for name in _named(profile, asked.strip())]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ProfileError(f"{twice} is named twice. Name each device once.")
    adapter = runtime(profile.runtime)
    models = [adapter.device(name) | adapter.model(name) for name in names] if len(names) > 1 else []
    if other := next((name for name, model in zip(names, models, strict=bool(models)) if model != models[0]), None):
        raise ProfileError(
            f"{names[0]} and {other} are different devices, which don't share engines: {_shown(models[0])}, and "
            f"{_shown(models[names.index(other)])}. Name equal ones only."
        )
    return [profile.model_copy(update={"device": name}) for name in names]


def _named(profile: Profile, asked: str) -> Sequence[str]:
    adapter = runtime(profile.runtime)
    kinds = adapter.kinds(profile.device)
    found = ASKED.fullmatch(asked)
    if found is None or found["kind"].casefold() not in {kind.casefold() for kind in kinds}:
        example = f"{kinds[-1]}:1" if found is None else kinds[-1]
        raise ProfileError(
            f"Profile {profile.name} is for {profile.device}, so its device can't be {asked!r}. Write it like "
            f"{example}, or choose a profile of another device."
        )
    try:
        places = adapter.places(profile.device)
    except RuntimeMissing as exc:
        raise ProfileError(f"Profile {profile.name} has no device here: {exc}") from exc
    if places is None:
        number = "" if found["number"] is None else f"{NUMBERED}{int(found['number'])}"
        return [f"{kinds[0]}{number}"]  # whether it is there is known when it is opened
    if found["number"] is None and places:
        return [*places.values()]
    chosen = [name for number, name in places.items() if number == int(found["number"] or 0)]
    if not chosen:
        has = ", ".join(places.values()) or "none"
        raise ProfileError(f"This machine has no {asked} for profile {profile.name}; it has: {has}.")
    return chosen


def _shown(model: dict[str, str]) -> str:
    return " ".join(model.values())
