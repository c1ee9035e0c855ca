"""From a profile to what each part of a bundle is compiled to on this machine, and its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import ProfileError, RuntimeMissing
from ..core.manifest import ROLE_NAMES, Role
from ..core.recipes import Precision
from ..core.record import suggest
from ..core.shapes import Setting, shape_of, sizes
from ..profiles import OWN, Profile
from ..runtimes import CheckpointOrigin, Job, Runtime, Target, distribution, runtime
from ..runtimes.base import COUNTS, TOGETHER, misfit
from .cache import folder_name
from .key import Key
from .lower import LOWERING_VERSION, weights_of

USUAL_LENGTH = 77
"""Token ids in a row of CLIP's: engines of others have it in their key."""


@dataclass(frozen=True)
class Wanted:
    """One engine that a profile asks for."""

    part: str
    target: Target
    fields: Key
    """All that shapes the artifact."""

    @cached_property
    def key(self) -> str:
        """Digest of the fields."""
        return self.fields.digest

    @property
    def name(self) -> str:
        """Folder of the artifact under `engines/`."""
        return folder_name(self.part, self.key)


def wanted(bundle: Bundle, profile: Profile, *, to_run: bool) -> tuple[Runtime, tuple[Wanted, ...]]:
    """The adapter, and the engines that a profile asks for of a bundle: each part, at each of its sizes.

    `to_run` asks for the device, which some compilers can do without. Raises `RuntimeMissing` where the runtime or its
    device isn't here, `ProfileError` for an option, a part, a precision or an opset that it doesn't have.
    """
    adapter = runtime(profile.runtime)
    reason = adapter.missing(profile.device) if to_run else adapter.unbuildable(profile.device)
    if reason:
        other = " `latentc doctor` says what works here."
        if to_run and adapter.unbuildable(profile.device) is None:
            other = " Its engines can be built here all the same; copy the bundle to a machine that has it."
        raise RuntimeMissing(f"Profile {profile.name} can't be used here: {reason}{other}")
    asked = targets(bundle, profile, adapter, adapter.precisions(profile.device))
    versions = adapter.versions() | distribution(profile.runtime)
    device, length = adapter.device(profile.device), bundle.manifest.model.length
    found: list[Wanted] = []
    for name, target in asked:
        fields = Key(
            part=name,
            part_digest=bundle.part(name).digest,
            runtime=profile.runtime,
            adapter=adapter.facts.revision,
            versions=versions,
            device={"name": profile.device, **device},
            precision=target.precision,
            shape=dict(target.shape) if target.shape else "free",
            options={name: value for name, value in profile.options.items() if name not in adapter.facts.at_load},
            opset=profile.opset if adapter.facts.reads_onnx else None,
            lowering=LOWERING_VERSION if adapter.facts.reads_onnx else None,
            length=length if target.shape is None and length != USUAL_LENGTH else None,  # ranges of free sizes
        )
        found.append(Wanted(name, target, fields))
    return adapter, tuple(found)


def with_threads(profile: Profile, threads: int | None) -> Profile:
    """A profile whose engines compute in this many threads, which acts at load only; of None, the profile as it is.

    Raises `ProfileError` for a device that doesn't compute in this process's threads, and for an impossible number.
    """
    if threads is None:
        return profile
    if wish := misfit(threads, COUNTS):
        raise ProfileError(f"threads is {threads!r}; it must be {wish}.")
    option = runtime(profile.runtime).threads_option(profile.device)
    if option is None:
        raise ProfileError(
            f"{profile.device} through {profile.runtime} doesn't compute in threads of this process, so profile "
            f"{profile.name} takes no number of threads. Leave it out."
        )
    return profile.with_options({option: threads}) if option else profile


def targets(
    bundle: Bundle, profile: Profile, adapter: Runtime, precisions: tuple[Precision, ...]
) -> list[tuple[str, Target]]:
    """What a profile asks of each part, at each of its sizes, for a device that computes in `precisions`.

    Neither the runtime nor its device need be here. Raises `ProfileError` as `wanted` does.
    """
    adapter.check(profile.options)
    _check_parts(bundle, profile)
    free = adapter.takes_free_sizes(profile.device, profile.options)
    if not (profile.shapes.sizes or free):
        raise ProfileError(
            f"{profile.runtime} compiles for fixed sizes only, on {profile.device} with these options. Write "
            f'sizes = ["own"] under [shapes] of {profile.name}.'
        )
    if adapter.facts.reads_onnx and profile.opset > adapter.facts.newest_opset:
        raise ProfileError(
            f"Profile {profile.name} asks for opset {profile.opset}, and {profile.runtime} takes no newer one than "
            f"{adapter.facts.newest_opset}. Write opset = {adapter.facts.newest_opset}."
        )
    asked: list[tuple[str, Target]] = []
    for name, part in bundle.manifest.parts.items():
        precision = choose(profile, name, part.role, precisions)
        for shape in shapes(bundle, profile, name, free=free):
            about = (profile.runtime, profile.device, precision, profile.options, part.inputs, part.outputs, shape)
            asked.append((name, Target(*about, length=bundle.manifest.model.length)))
    return asked


def job_of(bundle: Bundle, part: str, graph: Path, target: Target) -> Job:
    """What a runtime is given to compile a part's lowered graph."""
    manifest, info = bundle.manifest, bundle.part(part)
    source = manifest.source
    return Job(
        part=part,
        graph=graph,
        weights=graph.parent if graph == bundle.folder / info.path else weights_of(graph),
        target=target,
        digest=info.digest,
        usual=sizes(manifest.model, info.role, Setting(*manifest.model.own_size)),
        shared=bundle.engines,
        origin=CheckpointOrigin(
            location=source.argument,
            family=manifest.family,
            variant=source.variant,
            components={name: other.argument for name, other in manifest.components.items()},
        ),
    )


def device_here(adapter: Runtime, device: str) -> str | None:
    """Of the devices that one engine is for, the first that is here; None where there is none, or it is for one."""
    each = device.split(TOGETHER)
    return next((one for one in each if adapter.missing(one) is None), None) if len(each) > 1 else None


def _check_parts(bundle: Bundle, profile: Profile) -> None:
    known = sorted({*ROLE_NAMES, *bundle.manifest.parts})
    for name in profile.precision:
        base = name.rstrip("0123456789").removesuffix("_")  # text_encoder_2, in a bundle of one text encoder
        if not {name, base} & {"default", *known}:
            raise ProfileError(
                f"Profile {profile.name} gives a precision for {name!r}, which is no role, and no part of "
                f"{bundle.folder}. {suggest(name, known)}"
            )


def choose(profile: Profile, part: str, role: Role, has: tuple[Precision, ...]) -> Precision:
    """The first precision that the profile wishes for a part and the device has."""
    wishes = profile.wishes(part, role)
    for wish in wishes:
        if wish in has:
            return wish
    raise ProfileError(
        f"Profile {profile.name} wants {part} in {' or '.join(wishes)}; this {profile.device} has "
        f"{', '.join(has)} through {profile.runtime}. Add one of those to [precision]."
    )


def shapes(bundle: Bundle, profile: Profile, part: str, *, free: bool) -> list[Mapping[str, tuple[int, ...]] | None]:
    """Input shapes to build a part for; None is the engine for every shape, where the runtime takes `free` sizes.

    Text encoders have no picture size, so their rows stay free; or are one prompt of one chunk, and, where guided,
    another engine takes it with the negative one. The UNet sees twice the pictures where guided; the VAE is called with
    one picture at a time.
    """
    model, info = bundle.manifest.model, bundle.part(part)
    images, guided = profile.shapes.images, profile.shapes.guided
    if info.role == "text_encoder":
        prompts = (False, True) if guided else (False,)
        settings = [] if free else [Setting(*model.own_size, guided=both) for both in prompts]
    else:
        sides = [model.own_size if size == OWN else _sides(size) for size in profile.shapes.sizes]
        settings = [Setting(width, height, images, guided) for width, height in sides]
    return [
        {tensor.name: shape_of(tensor.shape, sizes(model, info.role, one)) for tensor in info.inputs}
        for one in settings
    ] or [None]


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)
