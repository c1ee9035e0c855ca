"""Proof that engines compute what PyTorch computed: measured once on this machine, remembered outside the bundle, and
compared with the profile's parity floors.
"""

from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict

from ..core.bundle import Bundle, verify_files
from ..core.engine import Engine, EngineOf
from ..core.errors import NotFiniteError, ParityError
from ..core.files import sha256
from ..core.progress import Progress, quiet
from ..core.recipes import RECIPES
from ..core.record import Record
from ..core.records import recall, record_key, remember
from ..core.references import DRAWINGS, DRAWN, stored_at
from ..core.request import TINY
from ..core.version import __version__
from ..profiles import Profile
from ..runtimes import Runtime, runtime
from ..runtimes.environment import environment
from ..sampling.host import SCHEDULER, host_files, load_host
from ..sampling.wires import SOURCES
from .cache import Artifact, Parity
from .calibrate import exact_below
from .cases import made_reference, reference, stored_drawings
from .host_check import check_host
from .parity import measure
from .targets import Wanted, device_here, floor_db
from .trial import StepFigures, measure_steps

STEP_LOSS_DB = 10.0
"""How far below the floor of its parts the whole step may be, in dB: guidance multiplies the difference between the two
halves. Correct engines lose at most 6 dB (docs/power.md).
"""

DIFFERENCE_LOSS_DB = 24.0
"""The same for what the prompt changes in the denoiser's output, which is the small difference of two large numbers.
Correct engines lose at most 17 dB.
"""

PICTURE_LOSS_DB = 15.0
"""The same for a complete image of five steps, in which the errors of the steps add up. Correct engines lose at most
12 dB."""

PICTURE_CEILING_DB = 50.0
"""The highest PSNR that is required of an image, which is rounded to 8 bits. Correct engines in f32 reach 86 dB."""

LOOP_DB = 90.0
"""The lowest PSNR of a step on the device, which is computed in f32 in any precision. Correct engines reach 145 dB."""

LEAST_DIFFERENCE_DB = 10.0
LEAST_PICTURE_DB = 20.0
"""The lowest values that are required of both, for any floors that a profile sets: an engine that has half of the
prompt's effect has an SNR of 6 dB."""


class Steps(Record):
    """Figures of a set of engines that generate an image together."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    denoisers: dict[str, StepFigures]
    """Keyed by denoiser: each generates images by itself, and has a floor of its own."""

    @property
    def step_db(self) -> float:
        """The worst PSNR of the next latents."""
        return min(one.step_db for one in self.denoisers.values())

    @property
    def difference_db(self) -> float | None:
        """The lowest SNR of what the prompt changes; None without guidance."""
        return min((db for one in self.denoisers.values() for db, _ in one.differences), default=None)

    @property
    def picture_db(self) -> float | None:
        """The worst PSNR of an image; None where no image was generated."""
        figures = (one.picture_db for one in self.denoisers.values())
        return min((figure for figure in figures if figure is not None), default=None)


class Opened(Protocol):
    """The loaded engines of a bundle for one profile."""

    @property
    def engine(self) -> EngineOf:
        """See `Engines.engine`."""
        ...


Open = Callable[[], AbstractContextManager[Opened]]


def prove_host(bundle: Bundle) -> float:
    """Compare everything that is computed outside engines with diffusers' pipeline; returns `check_host`'s figure.

    It needs no runtime, and is done once per bundle, version of latentc and machine.
    """
    key = record_key("host", {"bundle": bundle.digest, **_code(bundle)})
    if (known := recall(key, _Host)) is None:
        parts = [stored_at(part) for part in bundle.drawing]
        verify_files(bundle, [*host_files(bundle.manifest.model), DRAWINGS, DRAWN, *parts])
        known = _Host(psnr_db=check_host(bundle, load_host(bundle)))
        remember(key, known)
    return known.psnr_db


def unproved(bundle: Bundle) -> tuple[str, ...]:
    """Sentences that state what a proof of this bundle does not cover."""
    stated = (bundle.standing.statement,) if bundle.standing.statement else ()
    drawings, _ = stored_drawings(bundle)
    if any(drawing.request.scheduler is None for drawing in drawings.drawings):
        return stated
    name, verb = bundle.json(SCHEDULER).get("_class_name"), bundle.standing.verb
    other = f"The checkpoint's own scheduler, {name}, is not {verb}: the references were generated with DDIM."
    return (*stated, other)


class _Host(Record):
    psnr_db: float


def engine_key(bundle: Bundle, adapter: Runtime, artifact: Artifact, device: str) -> str:
    """The key of an engine's stored figures: its bytes, its references, and what runs it on a device of this machine.

    The device is the profile's, with its number.
    """
    facts: dict[str, object] = {
        "engine": artifact.key,
        "referee": made_reference(bundle, artifact.part, artifact.fields.fixed),
        "files": {name: info.sha256 for name, info in artifact.files.items()},
        "references": bundle.manifest.files[stored_at(artifact.part)].sha256,
        "here": device_here(adapter, device),
        "drivers": adapter.drivers(device),
        "latents": bundle.manifest.model.latents_input,
        "read": bundle.manifest.model.read_of(artifact.part),
    }
    if variables := environment(adapter, device):
        facts["environment"] = variables
    if code := adapter.compiled(bundle.engines / artifact.name, device):
        facts["compiled"] = code
    return record_key("engine", facts)


def proved_here(bundle: Bundle, adapter: Runtime, artifact: Artifact, device: str) -> Parity | None:
    """An engine's parity on a device of this machine; None where it was never compared there with these drivers."""
    return recall(engine_key(bundle, adapter, artifact, device), Parity)


def prove_engine(bundle: Bundle, adapter: Runtime, want: Wanted, engine: Engine) -> Parity:
    """Compare an engine with the references from PyTorch that fit its shapes."""
    verify_files(bundle, [DRAWINGS, stored_at(want.part)])
    found = reference(bundle, want.part, want.target.shape)
    parity = measure(want.part, engine, found.origin, found.cases, bundle.manifest.model.latents_input)
    return parity.model_copy(update={"compared_on": device_here(adapter, want.target.place)})


def steps_key(bundle: Bundle, profile: Profile, adapter: Runtime, artifacts: Iterable[Artifact]) -> str:
    """The key of the stored figures of a profile's engines."""
    each = sorted(engine_key(bundle, adapter, artifact, profile.device) for artifact in artifacts)
    facts = {"engines": each, "guided": profile.shapes.guided, "bundle": bundle.digest, **_code(bundle)}
    return record_key("steps", facts)


def _code(bundle: Bundle) -> dict[str, object]:
    """The code that computes outside the engines: latentc, by its version, and the sources of wires, by file digest."""
    used = sorted({wire.source for wire in bundle.manifest.model.every_wire} & SOURCES.keys())
    return {"latentc": __version__, "sources": {name: _written_in(SOURCES[name]) for name in used}}


def _written_in(source: Callable[..., object]) -> str:
    """Digest of the file that defines a function; a random value where there is no such file."""
    try:
        path = inspect.getsourcefile(source)
    except TypeError:
        path = None
    return sha256(Path(path)) if path and Path(path).is_file() else secrets.token_hex()


def prove_steps(
    bundle: Bundle, profile: Profile, wants: Iterable[Wanted], opened: Open, on_progress: Progress = quiet
) -> Steps:
    """Repeat diffusers' steps with the engines; returns each denoiser's worst figures over its sizes."""
    verify_files(bundle, [DRAWINGS, DRAWN, *(stored_at(name) for name in bundle.manifest.parts)])
    host = load_host(bundle)
    found: dict[str, list[StepFigures]] = {}
    for want in [want for want in wants if bundle.part(want.part).role == "denoiser"]:
        on_progress("step: compare", None)
        with opened() as loaded:  # only one size is loaded at a time
            try:
                shape, guided = want.target.shape, profile.shapes.guided
                figures = measure_steps(bundle, host.of(want.part), want.part, loaded.engine, shape, guided=guided)
            except NotFiniteError:
                figures = StepFigures(step_db=float("-inf"))
        found.setdefault(want.part, []).append(figures)
    return Steps(denoisers={part: _worst(each) for part, each in found.items()})


def _worst(found: list[StepFigures]) -> StepFigures:
    return StepFigures(
        step_db=min(one.step_db for one in found),
        differences=tuple(one for each in found for one in each.differences),
        picture_db=min((one.picture_db for one in found if one.picture_db is not None), default=None),
        tiny_db=min((one.tiny_db for one in found if one.tiny_db is not None), default=None),
        call_db=min((one.call_db for one in found if one.call_db is not None), default=None),
        loop_db=min((one.loop_db for one in found if one.loop_db is not None), default=None),
    )


def check_floor(bundle: Bundle, profile: Profile, want: Wanted, parity: Parity, built: Parity | None = None) -> None:
    """Raise `ParityError` where a part is below its floor; `built` is the figure of an engine's header."""
    floor, precision = floor_db(bundle, profile, want, parity), want.target.precision
    if parity.psnr_db >= floor:
        if parity.text_db is not None and parity.text_share >= want.target.recipe.rounding:
            check_change(want.part, profile, bundle.manifest.model.condition, parity.text_db, floor)
        if parity.control_db is not None and (parity.control_share or 0) >= want.target.recipe.rounding:
            check_change(want.part, profile, "ControlNet image", parity.control_db, floor)
        if parity.style_db is not None and (parity.style_share or 0) >= want.target.recipe.rounding:
            check_change(want.part, profile, "style image", parity.style_db, floor)
        return
    what = f"{want.part} in {precision} through {profile.runtime}"
    advice = _advice(profile, want)
    if not math.isfinite(parity.psnr_db):
        raise ParityError(
            f"{what} outputs NaN or infinity: a value is outside the range of {precision}. The engine will not be "
            f"used. {advice}."
        )
    agrees = f"{what} agrees with the reference to {parity.psnr_db:.1f} dB ({parity.worst})"
    if built is not None and built.psnr_db >= floor:
        raise ParityError(
            f"{agrees}, but its header says {built.psnr_db:.1f} dB: it was changed since it was built, or computes "
            f"differently on this device. The engine will not be used. Remove {bundle.engines / want.name} and build "
            "it again."
        )
    raise ParityError(
        f"{agrees}; profile {profile.name} requires {floor:.0f} dB.{_exact_call(bundle, want, parity)} The engine "
        f"will not be used. {advice}, or lower [parity_db] if this accuracy is enough."
    )


def _exact_call(bundle: Bundle, want: Wanted, parity: Parity) -> str:
    """A sentence on the worst call of an int8 engine, where that call is not in int8; else nothing."""
    below = exact_below(bundle, want.part) if want.target.recipe.calibrated else None
    if below is None or parity.worst_timestep is None or parity.worst_timestep >= below:
        return ""
    return (
        f" That call, at timestep {parity.worst_timestep:g}, is below {below:g}, where an engine in "
        f"{want.target.precision} computes exactly, so more exact layers would not help."
    )


def _advice(profile: Profile, want: Wanted) -> str:
    """What to do about an engine that is not accurate enough."""
    recipe, device = want.target.recipe, want.target.device
    if recipe.floor_db == max(one.floor_db for one in RECIPES.values()):
        return f"Use another profile for {want.part}"
    if runtime(profile.runtime).precisions(device) == (want.target.precision,):
        return (
            f"{device} computes in {want.target.precision} only: export again with a component made for it (for SDXL: "
            "--vae madebyollin/sdxl-vae-fp16-fix), or without the part (for T5 of Stable Diffusion 3: --without-t5), "
            "or use another device"
        )
    return f"Give {want.part} a wider type under [precision]"


def check_steps(bundle: Bundle, profile: Profile, wants: Iterable[Wanted], steps: Steps) -> None:
    """Raise `ParityError` where the whole step of a denoiser is below the floor of its parts, less `STEP_LOSS_DB`;
    what the prompt changes and the image are checked in the same way.
    """
    drawing = [want for want in wants if want.part in bundle.drawing]
    denoisers = {want.part for want in drawing if bundle.part(want.part).role == "denoiser"}
    for denoiser in sorted(denoisers):
        own = [want for want in drawing if want.part == denoiser or want.part not in denoisers]
        _check_steps(bundle, profile, own, denoiser, steps.denoisers[denoiser])


def _check_steps(bundle: Bundle, profile: Profile, drawing: list[Wanted], denoiser: str, steps: StepFigures) -> None:
    decoders = bundle.decoders
    stepping = [want for want in drawing if want.part not in decoders.values()]
    floor = min(floor_db(bundle, profile, want) for want in stepping)
    advice = f"The engines will not be used. Give the {denoiser} a wider type under [precision]."
    if not math.isfinite(steps.step_db):
        raise ParityError(
            f"The whole step of {denoiser} through profile {profile.name} outputs NaN or infinity, although no part "
            f"does so by itself. {advice}"
        )
    if not steps.step_db >= floor - STEP_LOSS_DB:
        raise ParityError(
            f"The whole step of {denoiser} through profile {profile.name} agrees with the reference to "
            f"{steps.step_db:.1f} dB, but {floor - STEP_LOSS_DB:.0f} dB is required. Each part by itself reaches its "
            f"floor. {advice}"
        )
    if any(want.target.loop for want in stepping):
        _check_loop(profile, denoiser, steps, floor - STEP_LOSS_DB)
    rounding = max(want.target.recipe.rounding for want in stepping)
    for figure in (db for db, share in steps.differences if share >= rounding):
        check_change(denoiser, profile, bundle.manifest.model.condition, figure, floor)
    for name, picture_db in ((None, steps.picture_db), (TINY, steps.tiny_db)):
        if picture_db is None:
            continue
        decoder = decoders[name]
        decoding = [want for want in drawing if want.part == decoder]
        whole = min(floor_db(bundle, profile, want) for want in (*stepping, *decoding))
        least = max(min(whole - PICTURE_LOSS_DB, PICTURE_CEILING_DB), LEAST_PICTURE_DB) if whole > 0 else whole
        if not picture_db >= least:
            drawn = bundle.standing.pipeline.removesuffix("'s pipeline")
            raise ParityError(
                f"An image generated by {denoiser} and {decoder} through profile {profile.name} agrees with the one "
                f"from {drawn} to {picture_db:.1f} dB, but {least:.0f} dB is required. Each step by itself reaches its "
                f"floor. The engines will not be used. Give the {denoiser} and the {decoder} a wider type under "
                "[precision]."
            )


def _check_loop(profile: Profile, denoiser: str, steps: StepFigures, least: float) -> None:
    """Raise `ParityError` where a walk on the device differs from the host's; `least` is required of its calls."""
    advice = f'The engines will not be used. Leave loop = "device" out of profile {profile.name}.'
    if steps.call_db is None or steps.loop_db is None:
        raise ParityError(f"No reference of {denoiser} fits a walk on the device, so it cannot be compared. {advice}")
    for what, figure, floor in (("calls", steps.call_db, least), ("steps", steps.loop_db, LOOP_DB)):
        if not figure >= floor:
            raise ParityError(
                f"The {what} of {denoiser} in a walk on the device through profile {profile.name} agree with those "
                f"from the host to {figure:.1f} dB, but {floor:.0f} dB is required. {advice}"
            )


def check_change(part: str, profile: Profile, what: str, figure: float, floor: float) -> None:
    """Raise `ParityError` where the prompt, or an image, changes a denoiser's output otherwise than PyTorch's."""
    least = max(floor - DIFFERENCE_LOSS_DB, LEAST_DIFFERENCE_DB) if floor > 0 else floor
    if not figure >= least:
        raise ParityError(
            f"The change that the {what} makes to the {part}'s output has an SNR of {figure:.1f} dB through profile "
            f"{profile.name} (0 dB: the {what} has no effect), but {least:.0f} dB is required. The engine will not be "
            f"used. Give the {part} a wider type under [precision]."
        )
