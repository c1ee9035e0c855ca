"""From a profile to the target and the key of each part of a bundle on this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import ProfileError, RuntimeMissing
from ..core.model import ROLE_NAMES, Model, Role
from ..core.recipes import RECIPES, Precision
from ..core.record import suggest
from ..core.shapes import Setting, embedding_length, freed, shape_of, size_complaint, sizes
from ..profiles import ANY, OWN, Profile
from ..runtimes import RUNTIMES, CheckpointOrigin, Job, Runtime, Target, distribution, quantize, runtime
from ..runtimes.base import COUNTS, NUMBERED, TOGETHER, misfit, numbered
from ..runtimes.ranges import CHUNKS
from ..sampling.pixels import frame_chunks
from . import traces
from .cache import Parity, folder_name
from .key import Key
from .looped import REVISION, can_step
from .lower import LOWERING_VERSION, weights_of
from .refused import Refusal, refusal

USUAL_LENGTH = 77
"""Length of the prompt embeddings of one chunk of CLIP: engines for another length have it in their key."""


@dataclass(frozen=True)
class Wanted:
    """One engine that a profile requires."""

    part: str
    target: Target
    fields: Key
    """Everything that the artifact depends on."""
    refused: tuple[Refusal, ...] = ()
    """Engines of the part in precisions that the profile names before this one."""
    is_last: bool = True
    """Whether the profile names no further precision that the device supports."""

    @cached_property
    def key(self) -> str:
        """Digest of the fields."""
        return self.fields.digest

    @property
    def name(self) -> str:
        """Folder of the artifact under `engines/`."""
        return folder_name(self.part, self.key)


def wanted(bundle: Bundle, profile: Profile, *, to_run: bool) -> tuple[Runtime, tuple[Wanted, ...]]:
    """The adapter, and the engines that a profile requires for a bundle: each part, at each of its sizes.

    Each part is in the first of its precisions that the device supports, and in which no engine of it was refused.
    With `to_run` the device must be present; some compilers work without it. Raises `RuntimeMissing` where the runtime
    or its device is missing, `ProfileError` for an option, a part, a precision or an opset that is not supported.
    """
    adapter = runtime(profile.runtime)
    reason = adapter.missing(profile.device) if to_run else adapter.unbuildable(profile.device)
    if reason:
        other = " `latentc doctor` lists what works on this machine."
        if to_run and adapter.unbuildable(profile.device) is None:
            other = " Its engines can still be built here: build, then copy the bundle to a machine with the device."
        raise RuntimeMissing(f"Profile {profile.name} cannot be used on this machine: {reason}{other}")
    has = adapter.precisions(profile.device)
    asked = targets(bundle, profile, adapter, has)
    versions = adapter.versions() | distribution(profile.runtime)
    device, length = adapter.device(profile.device), embedding_length(bundle.manifest.model, 1)

    def want(name: str, target: Target) -> Wanted:
        fields = Key(
            part=name,
            part_digest=bundle.part(name).digest,
            runtime=profile.runtime,
            adapter=adapter.facts.revision,
            versions=versions,
            device={"name": adapter.kinds(target.device)[0], **device},
            precision=target.precision,
            shape=dict(target.shape) if target.shape else "free",
            options={name: value for name, value in target.options.items() if name not in adapter.facts.at_load},
            opset=profile.opset if adapter.facts.reads_onnx else None,
            lowering=LOWERING_VERSION if adapter.facts.reads_onnx else None,
            calibration=_calibration(profile, target) if target.recipe.calibrated else None,
            loop=REVISION if target.loop else None,
            length=length if target.shape is None and length != USUAL_LENGTH else None,  # ranges of free sizes
        )
        return Wanted(name, target, fields)

    found: list[Wanted] = []
    for name in dict.fromkeys(part for part, _ in asked):
        wishes = choices(_upcast(bundle, profile, has), name, bundle.part(name).role, has)
        own = [target for part, target in asked if part == name]
        found += _accepted(bundle, profile, wishes, own, partial(want, name))
    return adapter, tuple(found)


def _calibration(profile: Profile, target: Target) -> dict[str, str | float]:
    """What an engine of a recipe that is calibrated depends on; see `Key.calibration`."""
    floor = profile.parity_db[target.precision]
    return {"traces": traces.digest(), "layers": quantize.digest(), "floor_db": floor}


def _accepted(
    bundle: Bundle,
    profile: Profile,
    wishes: tuple[Precision, ...],
    asked: list[Target],
    want: Callable[[Target], Wanted],
) -> list[Wanted]:
    """The engines of a part in the first precision in which none of them was refused; the last one is always tried."""
    refused: tuple[Refusal, ...] = ()
    for precision in wishes:
        each = [want(replace(target, precision=precision)) for target in asked]
        if precision == wishes[-1]:
            return [replace(one, refused=refused) for one in each]
        recorded = ((one, refusal(bundle, one.fields)) for one in each)
        known = [
            found for one, found in recorded if found and found.holds(floor_db(bundle, profile, one, found.parity))
        ]
        if not known:
            return [replace(one, refused=refused, is_last=False) for one in each]
        refused += (known[0],)
    raise AssertionError("a part has at least one precision")


def floor_db(bundle: Bundle, profile: Profile, want: Wanted, parity: Parity | None = None) -> float:
    """The PSNR in dB that an engine must reach: the profile's floor.

    In bf16 it is higher where PyTorch's own modules reach more and the profile sets no floor of its own. The graph of
    an absent device's engine, of which `parity` has the figures, was run in its own types, and is held to their floor.
    """
    floor, recipe = profile.parity_db[want.target.precision], want.target.recipe
    if recipe.module_margin_db is not None and floor == recipe.floor_db:
        floor = max(floor, bundle.part(want.part).bf16_db - recipe.module_margin_db)
    if parity is not None and parity.graph_run_by is not None:
        floor = max(floor, profile.parity_db[recipe.graph])
    return floor


def with_threads(profile: Profile, threads: int | None) -> Profile:
    """A profile whose engines use this many threads, a load-time setting; for None, the profile unchanged.

    Raises `ProfileError` for a device that doesn't compute in this process's threads, and for an impossible number.
    """
    if threads is None:
        return profile
    if allowed := misfit(threads, COUNTS):
        raise ProfileError(f"threads is {threads!r}; it must be {allowed}.")
    option = runtime(profile.runtime).threads_option(profile.device)
    if option is None:
        raise ProfileError(
            f"{profile.device} through {profile.runtime} does not compute in threads of this process, so profile "
            f"{profile.name} does not accept a number of threads. Leave it out."
        )
    return profile.with_options({option: threads}) if option else profile


def targets(
    bundle: Bundle, profile: Profile, adapter: Runtime, precisions: tuple[Precision, ...]
) -> list[tuple[str, Target]]:
    """The target of each part, at each of the profile's sizes, for a device that computes in `precisions`.

    Works without the runtime and its device. Raises `ProfileError` as `wanted` does.
    """
    for options in (profile.options, *profile.part_options.values()):
        adapter.check(options, profile.device)
    _check_parts(bundle, profile)
    device, number = numbered(profile.device) if adapter.facts.numbered else (profile.device, None)
    chosen = {name: profile.options_for(name, part.role) for name, part in bundle.manifest.parts.items()}
    free = {name: adapter.takes_free_sizes(profile.device, options) for name, options in chosen.items()}
    if ANY in (profile.shapes.sizes or (ANY,)) and not all(free.values()):
        raise ProfileError(
            f"On {profile.device} with these options, {profile.runtime} compiles for fixed sizes only. Write "
            f'sizes = ["own"] under [shapes] of {profile.name}.'
        )
    if (
        static_sizes(bundle.manifest.model, profile)
        and profile.shapes.free
        and profile.device not in adapter.facts.partial
    ):
        raise ProfileError(
            f"Profile {profile.name} keeps axes free with fixed sizes, which {profile.runtime} does not support on "
            f"{profile.device}. Leave free out of [shapes], and set images and guided there."
        )
    if adapter.facts.reads_onnx and profile.opset > adapter.facts.newest_opset:
        newest = adapter.facts.newest_opset
        raise ProfileError(
            f"Profile {profile.name} sets opset {profile.opset}, but {profile.runtime} supports none newer than "
            f"{newest}. {adapter.facts.newer_opset or f'Write opset = {newest}.'}"
        )
    if profile.loop == "device" and not set(device.split(TOGETHER)) <= adapter.facts.chains:
        raise ProfileError(
            f'Profile {profile.name} has loop = "device", which {profile.runtime} does not support on '
            f"{profile.device}. Leave loop out."
        )
    _check_adopted(bundle, profile, adapter)
    shortest, typical, longest = (embedding_length(bundle.manifest.model, chunks) for chunks in CHUNKS)
    asked: list[tuple[str, Target]] = []
    sample = bundle.manifest.model.latents_input
    for name, part in bundle.manifest.parts.items():
        loop = sample if profile.loop == "device" and can_step(part, sample) else None
        precision = choices(_upcast(bundle, profile, precisions), name, part.role, precisions)[0]
        for shape in shapes(bundle, profile, name, free=free[name]):
            about = (profile.runtime, device, precision, chosen[name], part.inputs, part.outputs, shape)
            asked.append((name, Target(*about, lengths=(shortest, typical, longest), number=number, loop=loop)))
    return asked


def _check_adopted(bundle: Bundle, profile: Profile, adapter: Runtime) -> None:
    """Raise `ProfileError` where a runtime can't take a bundle that was adopted from other tools' graphs."""
    if bundle.manifest.source.adopted is None:
        return
    if adapter.facts.needs_checkpoint:
        raise ProfileError(
            f"{adapter.facts.title} runs the modules of a checkpoint, but {bundle.folder} was adopted from ONNX graphs "
            f"and has none. Use another profile than {profile.name}."
        )
    for name, part in bundle.manifest.parts.items():
        if lacking := adapter.unsupported(profile.device, part.operators):
            able = ", ".join(takers(part.operators)) or "none that latentc knows"
            raise ProfileError(
                f"{name} uses {', '.join(lacking)}, which {profile.runtime} does not support on {profile.device}. "
                f"Runtimes that do: {able}. Use a profile of one of them, or export the model to ONNX again without "
                "these operators."
            )


def takers(operators: Collection[str]) -> tuple[str, ...]:
    """Names of latentc's runtimes that support all of these operators, which ONNX does not define."""
    adapters = {name: runtime(name) for name in RUNTIMES}
    return tuple(
        name
        for name, one in adapters.items()
        if one.facts.reads_onnx and not one.unsupported(one.facts.devices[0], operators)
    )


def job_of(bundle: Bundle, part: str, graph: Path, target: Target) -> Job:
    """The job with which a runtime compiles a part's lowered graph."""
    manifest, info = bundle.manifest, bundle.part(part)
    return Job(
        part=part,
        graph=graph,
        weights=graph.parent if graph == bundle.folder / info.path else weights_of(graph),
        target=target,
        digest=info.digest,
        usual=sizes(manifest.model, info.role, Setting(*manifest.model.own_size)),
        shared=bundle.engines,
        origin=origin_of(bundle),
    )


def origin_of(bundle: Bundle) -> CheckpointOrigin:
    """The checkpoint that a bundle was exported from."""
    manifest, source = bundle.manifest, bundle.manifest.source
    return CheckpointOrigin(
        location=source.argument,
        family=manifest.family,
        variant=source.variant,
        left_out=manifest.left_out,
        components={name: other.argument for name, other in manifest.components.items()},
        embeddings=tuple(one.argument for one in manifest.embeddings),
        adapters={one.argument: one.strength for one in source.adapters},
    )


def device_here(adapter: Runtime, device: str) -> str | None:
    """For an engine of several devices, the one that this machine opens; None where it has none, or it is for one."""
    name, number = numbered(device) if adapter.facts.numbered else (device, None)
    each = [one if number is None else f"{one}{NUMBERED}{number}" for one in name.split(TOGETHER)]
    return next((one for one in each if adapter.missing(one) is None), None) if len(each) > 1 else None


def _check_parts(bundle: Bundle, profile: Profile) -> None:
    known = sorted({*ROLE_NAMES, *bundle.manifest.parts})
    named = [("a precision", name) for name in profile.precision if name != "default"]
    for what, name in (*named, *(("options", name) for name in profile.part_options)):
        base = name.rstrip("0123456789").removesuffix("_")  # text_encoder_2, in a bundle of one text encoder
        if not {name, base} & set(known):
            raise ProfileError(
                f"Profile {profile.name} gives {what} for {name!r}, which is neither a role nor a part of "
                f"{bundle.folder}. {suggest(name, known)}"
            )


def choices(profile: Profile, part: str, role: Role, has: tuple[Precision, ...]) -> tuple[Precision, ...]:
    """The profile's precisions for a part, best first, without those that the device doesn't support."""
    wishes = profile.wishes(part, role)
    found: list[Precision] = [wish for wish in wishes if wish in has]
    if found:
        return tuple(dict.fromkeys(found))
    exact = " ".join(RECIPES[one].exact_instead for one in has)
    raise ProfileError(
        f"Profile {profile.name} requires {part} in {' or '.join(wishes)}, but {profile.device} supports "
        f"{', '.join(has)} through {profile.runtime} on this machine. Add one of those to [precision]. {exact}".rstrip()
    )


def _upcast(bundle: Bundle, profile: Profile, has: tuple[Precision, ...]) -> Profile:
    """The profile with the VAE's encoder in f32, for a model whose images diffusers encodes so. A profile that names
    the encoder's precision keeps it, and so does a device without f32: parity decides.
    """
    named = {"encoder", *(name for name, part in bundle.manifest.parts.items() if part.role == "encoder")}
    exact = max(RECIPES, key=lambda name: RECIPES[name].floor_db)
    if not bundle.manifest.model.encodes_in_f32 or exact not in has or named & profile.precision.keys():
        return profile
    return profile.model_copy(update={"precision": {**profile.precision, "encoder": (exact,)}})


def shapes(bundle: Bundle, profile: Profile, part: str, *, free: bool) -> list[Mapping[str, tuple[int, ...]] | None]:
    """Input shapes to build a part for; None is the engine for every shape, where the runtime takes `free` sizes.

    Text encoders have no image size, so their rows stay free. Otherwise one engine takes one prompt of one chunk, and,
    with guidance, another takes it together with the negative prompt. With guidance the UNet is called with two rows
    per image. The VAE and the image encoder are called with one image at a time; the decoder of a video with all
    frames, or with `decode_frames` of them, and those that are left.
    """
    model, info = bundle.manifest.model, bundle.part(part)
    images, guided = profile.shapes.images, profile.shapes.guided
    if info.role == "text_encoder":
        prompts = (False, True) if guided else (False,)
        settings = [] if free else [Setting(*model.own_size, guided=both) for both in prompts]
    else:
        sides = static_sizes(model, profile)
        if wrong := next(filter(None, (size_complaint(model, *side) for side in sides)), None):
            raise ProfileError(f"Profile {profile.name} has a size under [shapes] that {bundle.folder} lacks: {wrong}")
        chunks: Iterable[int | None] = (None,)
        if info.role == "decoder" and model.frames is not None:
            chunks = dict.fromkeys(len(one) for one in frame_chunks(model.frames, profile.shapes.decode_frames))
        settings = [Setting(*side, images, guided, frames=frames) for side in sides for frames in chunks]
    axes = profile.shapes.free if info.role in ("denoiser", "control") else ()
    found = [
        {
            tensor.name: freed(tensor.shape, shape_of(tensor.shape, sizes(model, info.role, one)), axes)
            for tensor in info.inputs
        }
        for one in settings
    ]
    if info.role == "image_encoder":  # which sees every size of image resized to its own
        found = found[:1]
    dynamic = ANY in profile.shapes.sizes and info.role not in ("text_encoder", "image_encoder")
    return [*found, *([None] if dynamic or not found else [])]


def fixed_sizes(model: Model, profile: Profile) -> tuple[tuple[int, int], ...]:
    """Widths and heights in pixels that the engines of a profile are built for; empty for every size."""
    return () if ANY in profile.shapes.sizes else static_sizes(model, profile)


def static_sizes(model: Model, profile: Profile) -> tuple[tuple[int, int], ...]:
    """Widths and heights in pixels that a profile has static engines for."""
    sides = (model.own_size if size == OWN else _sides(size) for size in profile.shapes.sizes if size != ANY)
    return tuple(dict.fromkeys(sides))


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)
