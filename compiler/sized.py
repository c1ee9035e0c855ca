"""Engines of further sizes than a profile's own, which `build` made when it was asked for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..core.bundle import Bundle
from ..core.model import Model
from ..profiles import ANY, Profile
from .cache import HEADER, Artifact, find
from .targets import fixed_sizes, static_sizes, wanted


def with_built_sizes(bundle: Bundle, profile: Profile) -> Profile:
    """The profile with the sizes for which the bundle has all of its engines.

    Raises the errors of `targets.wanted`.
    """
    found = _names(bundle)
    if len(found) == len({name.rpartition("-")[0] for name in found}):  # at most one engine of each denoiser
        return profile
    for size in _other_sizes(bundle, profile, found):
        more = profile.with_sizes([size])
        _, engines = wanted(bundle, more, to_run=False)
        if all(find(bundle, want.part, want.key) for want in engines):
            profile = more
    return profile


def with_known_sizes(bundle: Bundle, profile: Profile, known: Collection[str] = ()) -> Profile:
    """The profile with every size that was built for it, also where engines are missing by now: a build renews them.

    All sizes of a part have one precision, so a size may need another engine because another one was refused. `known`
    are names of engines that the profile itself requires, which are not read.
    """
    found = _other_sizes(bundle, profile, [name for name in _names(bundle) if name not in known])
    return profile.with_sizes(found) if found else profile


def _names(bundle: Bundle) -> list[str]:
    """Names of the engines of denoisers."""
    denoisers = [name for name, part in bundle.manifest.parts.items() if part.role == "denoiser"]
    found = (path.parent.name for path in sorted(bundle.engines.glob(f"*/{HEADER}")))
    return [name for name in found if name.rpartition("-")[0] in denoisers]


def _other_sizes(bundle: Bundle, profile: Profile, names: Iterable[str]) -> list[str]:
    """Sizes of those engines that were built for the profile, without its own."""
    model, seen = bundle.manifest.model, set[str]()
    has = {*_named(static_sizes(model, profile)), *(() if fixed_sizes(model, profile) else (ANY,))}
    for name in names:
        part, _, key = name.rpartition("-")
        artifact = find(bundle, part, key)
        if artifact and profile.name in artifact.profiles and _is_for(artifact, profile, bundle.part(part).digest):
            seen.add(_size(model, artifact))
    return sorted(seen - has)


def _is_for(artifact: Artifact, profile: Profile, digest: str) -> bool:
    """Whether an engine is of this part, and of the profile's runtime and device."""
    fields = artifact.fields
    here = fields.runtime == profile.runtime and profile.device.startswith(fields.device_name)
    return here and fields.part_digest == digest


def for_size(model: Model, profile: Profile, width: int, height: int) -> Profile:
    """The profile with an engine for a size in pixels, which is added unless it has one."""
    sizes = fixed_sizes(model, profile)
    return profile.with_sizes(_named([(width, height)])) if sizes and (width, height) not in sizes else profile


def _named(sizes: Iterable[tuple[int, int]]) -> list[str]:
    return [f"{width}x{height}" for width, height in sizes]


def _size(model: Model, artifact: Artifact) -> str:
    fixed = artifact.fields.fixed
    if fixed is None:
        return ANY
    height, width = (side * model.downscale for side in fixed[model.latents_input][-2:])
    return f"{width}x{height}"
