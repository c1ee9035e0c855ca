"""Where the replicas of bundles compute, and whether they are predicted to fit in memory there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..compiler.devices import each_device
from ..compiler.plan import BuildPlan, plan
from ..compiler.targets import with_threads
from ..core.bundle import Bundle
from ..core.errors import ProfileError
from ..core.limits import cores
from ..core.units import counted, sized
from ..profiles import Profile
from ..runtimes import runtime


def crowd_notice(profiles: Sequence[Profile]) -> str | None:
    """What is said of more replicas than this machine has cores, where they compute on its CPU; None otherwise."""
    count, held = len(profiles), cores()
    if count <= held or runtime(profiles[0].runtime).threads_option(profiles[0].device) is None:
        return None
    return (
        f"note: {count} replicas share {counted(held, 'core')}, so each image takes longer, and memory is needed "
        f"{count} times. No more than --replicas {held} are of use here."
    )


def with_share(profile: Profile, threads: int) -> Profile:
    """The profile with a replica's share of the cores, at least one thread, where its device computes in threads."""
    option = runtime(profile.runtime).threads_option(profile.device)
    return profile if option is None else with_threads(profile, max(1, threads))


def scaled(profile: Profile, device: str | None, replicas: int | None, most: int | None) -> tuple[int, list[Profile]]:
    """How many replicas there are at first, and the profile of each that there may be. Raises `ProfileError` for fewer
    of these, and as `spread` does.
    """
    first = spread(profile, device, replicas)
    if most is None:
        return len(first), first
    if most < len(first):
        raise ProfileError(f"--most-replicas is {most}, but {len(first)} are started. Raise it, or leave it out.")
    return len(first), spread(profile, device, most)


def needs(bundle: Bundle, profile: Profile, threads: int, gpus: float | None) -> dict[str, float]:
    """What a replica of a bundle needs, by Ray's names: its cores, its share of a GPU, and the memory that is predicted
    for its engines.
    """
    found, in_threads = plan(bundle, profile), runtime(profile.runtime).threads_option(profile.device) is not None
    return {
        "num_cpus": threads if in_threads else 1,
        "num_gpus": 0 if found.on_host else 1 if gpus is None else gpus,
        "memory": found.held_bytes if found.on_host else 0,
    }


def spread(profile: Profile, device: str | None, replicas: int | None) -> list[Profile]:
    """The profile of each replica: those of the devices, in turn. Raises `ProfileError` for more devices than replicas,
    and as `each_device` does.
    """
    each = [profile] if device is None else each_device(profile, device)
    if replicas is not None and replicas < len(each):
        raise ProfileError(f"{counted(replicas, 'replica')} can't use {len(each)} devices. Leave --replicas out.")
    return [each[index % len(each)] for index in range(replicas or len(each))]


def check_memory(
    bundles: Mapping[str, Bundle], profiles: Mapping[str, Sequence[Profile]], *, together: bool = True
) -> dict[str, int]:
    """Predict the bytes of memory that each bundle's engines hold on one device, for the profile of each of its
    replicas.

    Raises `ProfileError` if several, of all bundles if they are loaded `together`, don't fit in the memory of a device.
    Replicas share nothing that the prediction counts: each has its own engines.
    """
    if together and sum(map(len, profiles.values())) < 2:
        return {}
    plans = {name: plan(bundle, profiles[name][0]) for name, bundle in bundles.items()}
    sizes, groups = dict[str, int](), dict[str | None, list[str]]()
    for name, one in plans.items():
        sizes[name] = _replicas_on_one(one, profiles[name]) * one.held_bytes
        groups.setdefault(None if one.on_host else one.device, []).append(name)
    for names in groups.values():
        first, count = plans[names[0]], len(profiles[names[0]])
        held = [sizes[name] for name in names]
        room = first.free_bytes if first.on_host else first.device_bytes
        if room is None or (sum(held) if together else max(held)) <= room:
            continue
        replicas = _replicas_on_one(first, profiles[names[0]])
        of = f"{replicas} replicas{' on a device' if replicas < count else ''} of " if replicas > 1 else ""
        raise ProfileError(
            f"{of or 'These '}{counted(len(names) if together else 1, 'bundle')} are predicted to hold "
            f"{sized(sum(held) if together else max(held))}, but {first.device} has {sized(room)}. Serve fewer "
            f"{'replicas or ' if of else ''}bundles{', or set --memory' if together and len(names) > 1 else ''}."
        )
    return sizes


def _replicas_on_one(found: BuildPlan, profiles: Sequence[Profile]) -> int:
    """How many of a bundle's replicas are on one device."""
    return -(-len(profiles) // (1 if found.on_host else len({one.device for one in profiles})))


def check_beside(
    name: str, bundle: Bundle, profiles: Mapping[str, Sequence[Profile]], beside: Mapping[str, Bundle]
) -> None:
    """Raise `ProfileError` if the engines of a bundle, for the profiles of its replicas, are predicted not to fit on a
    device beside these bundles, which are open: its own predecessor too.
    """
    found = plan(bundle, profiles[name][0])
    size, room = _replicas_on_one(found, profiles[name]) * found.held_bytes, found.free_bytes
    if not found.on_host and (room := found.device_bytes) is not None:
        there = {one: plan(other, profiles[one][0]) for one, other in beside.items()}
        room -= sum(
            _replicas_on_one(other, profiles[one]) * other.held_bytes
            for one, other in there.items()
            if not other.on_host and other.device == found.device
        )
    if room is not None and size > room:
        raise ProfileError(
            f"{name} is predicted to hold {sized(size)}, but {found.device} has {sized(max(0, room))} left beside what "
            "is open. Start the server again instead."
        )
