"""Whether engines are what PyTorch computed: measured once on this machine, remembered outside the bundle, and held to
the profile's floors.
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
from ..core.record import Record
from ..core.records import recall, record_key, remember
from ..core.references import DRAWINGS, DRAWN, stored_at
from ..core.version import __version__
from ..profiles import Profile
from ..runtimes import Runtime
from ..sampling.draw import SCHEDULER, host_files, load_host
from ..sampling.wires import SOURCES
from .cache import Artifact, Parity
from .cases import made_reference, reference, stored_drawings
from .parity import measure
from .targets import Wanted, device_here
from .trial import StepFigures, check_host, measure_steps

STEP_LOSS_DB = 10.0
"""How much farther off the whole step may be than a part: guidance multiplies what the two halves don't share. Sound
engines lose 6 dB at most (docs/power.md).
"""

DIFFERENCE_LOSS_DB = 24.0
"""And what the prompt changes in the denoiser's answer, which is the small difference of two large numbers: sound
engines lose 17 dB at most.
"""

PICTURE_LOSS_DB = 15.0
"""And a whole picture of five steps, in which the errors of steps add up: sound engines lose 12 dB at most."""

PICTURE_CEILING_DB = 50.0
"""What is asked of a picture at most: it is rounded to 8 bits. Sound engines in f32 reach 86."""

LEAST_DIFFERENCE_DB = 10.0
LEAST_PICTURE_DB = 20.0
"""What is asked of both at least, whatever floors a profile sets: with half of the prompt's effect an SNR is 6 dB."""


class Steps(Record):
    """What a set of engines that draw together came to."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    denoisers: dict[str, StepFigures]
    """By denoiser: each is drawn with by itself, and has a floor of its own."""

    @property
    def step_db(self) -> float:
        """Of the next latents, PSNR: the worst."""
        return min(one.step_db for one in self.denoisers.values())

    @property
    def difference_db(self) -> float | None:
        """The least SNR of what the prompt changes; None where nothing was guided."""
        return min((db for one in self.denoisers.values() for db, _ in one.differences), default=None)

    @property
    def picture_db(self) -> float | None:
        """The worst PSNR of a picture; None where none was drawn."""
        figures = (one.picture_db for one in self.denoisers.values())
        return min((figure for figure in figures if figure is not None), default=None)


class Opened(Protocol):
    """Engines of a bundle under a profile, loaded."""

    @property
    def engine(self) -> EngineOf:
        """As `Engines.engine`."""
        ...


Open = Callable[[], AbstractContextManager[Opened]]


def prove_host(bundle: Bundle) -> float:
    """Hold all that isn't computed by engines against diffusers' pipeline; `check_host`'s figure.

    It needs no library, and is done once for a bundle and a version of latentc on each machine.
    """
    key = record_key("host", {"bundle": bundle.digest, **_code(bundle)})
    if (known := recall(key, _Host)) is None:
        parts = [stored_at(part) for part in bundle.drawing]
        verify_files(bundle, [*host_files(bundle.manifest.model), DRAWINGS, DRAWN, *parts])
        known = _Host(psnr_db=check_host(bundle, load_host(bundle)))
        remember(key, known)
    return known.psnr_db


def unproved(bundle: Bundle) -> tuple[str, ...]:
    """What of a bundle isn't proved, in sentences."""
    drawings, _ = stored_drawings(bundle)
    if all(drawing.request.scheduler is None for drawing in drawings.drawings):
        return ()
    name = bundle.json(SCHEDULER).get("_class_name")
    return (f"The checkpoint's own scheduler, {name}, isn't proved: DDIM drew the references.",)


class _Host(Record):
    psnr_db: float


def engine_key(bundle: Bundle, adapter: Runtime, artifact: Artifact) -> str:
    """What the figures of an engine are remembered under: its bytes, its references, and the device that is here."""
    facts = {
        "engine": artifact.key,
        "referee": made_reference(bundle, artifact.part, artifact.fields.fixed),
        "files": {name: info.sha256 for name, info in artifact.files.items()},
        "references": bundle.manifest.files[stored_at(artifact.part)].sha256,
        "here": device_here(adapter, artifact.fields.device_name),
        "latents": bundle.manifest.model.latents_input,
        "read": bundle.manifest.model.read_of(artifact.part),
    }
    return record_key("engine", facts)


def proved_here(bundle: Bundle, adapter: Runtime, artifact: Artifact) -> Parity | None:
    """What an engine came to on this machine; None where it was never compared here."""
    return recall(engine_key(bundle, adapter, artifact), Parity)


def prove_engine(bundle: Bundle, adapter: Runtime, want: Wanted, engine: Engine) -> Parity:
    """Compare an engine with PyTorch's answers that fit it."""
    verify_files(bundle, [DRAWINGS, stored_at(want.part)])
    found = reference(bundle, want.part, want.target.shape)
    parity = measure(want.part, engine, found.origin, found.cases, bundle.manifest.model.latents_input)
    return parity.model_copy(update={"compared_on": device_here(adapter, want.target.device)})


def steps_key(bundle: Bundle, adapter: Runtime, artifacts: Iterable[Artifact], *, guided: bool) -> str:
    """What the figures of a set of engines are remembered under."""
    each = sorted(engine_key(bundle, adapter, artifact) for artifact in artifacts)
    return record_key("steps", {"engines": each, "guided": guided, "bundle": bundle.digest, **_code(bundle)})


def _code(bundle: Bundle) -> dict[str, object]:
    """What computes beside the engines: latentc, by its version, and the sources of wires, by their files."""
    used = sorted({wire.source for wire in bundle.manifest.model.wires} & SOURCES.keys())
    return {"latentc": __version__, "sources": {name: _written_in(SOURCES[name]) for name in used}}


def _written_in(source: Callable[..., object]) -> str:
    """Digest of the file that a function is in; never the same twice where it is in none."""
    try:
        path = inspect.getsourcefile(source)
    except TypeError:
        path = None
    return sha256(Path(path)) if path and Path(path).is_file() else secrets.token_hex()


def prove_steps(
    bundle: Bundle, profile: Profile, wants: Iterable[Wanted], opened: Open, on_progress: Progress = quiet
) -> Steps:
    """Take diffusers' steps with the engines: of each denoiser the worst over its sizes."""
    verify_files(bundle, [DRAWINGS, DRAWN, *(stored_at(name) for name in bundle.manifest.parts)])
    host = load_host(bundle)
    found: dict[str, list[StepFigures]] = {}
    for want in [want for want in wants if bundle.part(want.part).role == "denoiser"]:
        on_progress("step: compare", None)
        with opened() as loaded:  # of one size at a time
            try:
                shape, guided = want.target.shape, profile.shapes.guided
                figures = measure_steps(bundle, host, want.part, loaded.engine, shape, guided=guided)
            except NotFiniteError:
                figures = StepFigures(step_db=float("-inf"))
        found.setdefault(want.part, []).append(figures)
    return Steps(denoisers={part: _worst(each) for part, each in found.items()})


def _worst(found: list[StepFigures]) -> StepFigures:
    return StepFigures(
        step_db=min(one.step_db for one in found),
        differences=tuple(one for each in found for one in each.differences),
        picture_db=min((one.picture_db for one in found if one.picture_db is not None), default=None),
    )


def floor_db(bundle: Bundle, profile: Profile, want: Wanted) -> float:
    """What an engine has to come to: the profile's floor.

    In bf16 it is more where PyTorch's own modules reach more, and the profile states no floor of its own.
    """
    floor, recipe = profile.parity_db[want.target.precision], want.target.recipe
    if recipe.module_margin_db is not None and floor == recipe.floor_db:
        return max(floor, bundle.part(want.part).bf16_db - recipe.module_margin_db)
    return floor


def check_floor(bundle: Bundle, profile: Profile, want: Wanted, parity: Parity) -> None:
    """Raise `ParityError` where a part is below its floor."""
    floor, precision = floor_db(bundle, profile, want), want.target.precision
    if parity.psnr_db >= floor:
        if parity.text_db is not None and parity.text_share >= want.target.recipe.rounding:
            _check_text(want.part, profile, parity.text_db, floor)
        return
    what = f"{want.part} in {precision} through {profile.runtime}"
    if not math.isfinite(parity.psnr_db):
        raise ParityError(
            f"{what} outputs NaN or infinity: something in it is larger than {precision} holds. It won't be used. Give "
            f"{want.part} a wider type under [precision]."
        )
    raise ParityError(
        f"{what} agrees with the reference to {parity.psnr_db:.1f} dB ({parity.worst}); profile {profile.name} asks "
        f"for {floor:.0f} dB. It won't be used. Give {want.part} a wider type under [precision], or lower [parity_db] "
        "if that is what you want."
    )


def check_steps(bundle: Bundle, profile: Profile, wants: Iterable[Wanted], steps: Steps) -> None:
    """Hold the whole step of each denoiser to the floor of the parts that make it, less what guidance may multiply;
    what the prompt changes, and the picture, likewise.
    """
    drawing = [want for want in wants if want.part in bundle.drawing]
    denoisers = {want.part for want in drawing if bundle.part(want.part).role == "denoiser"}
    for denoiser in sorted(denoisers):
        own = [want for want in drawing if want.part == denoiser or want.part not in denoisers]
        _check_steps(bundle, profile, own, denoiser, steps.denoisers[denoiser])


def _check_steps(bundle: Bundle, profile: Profile, drawing: list[Wanted], denoiser: str, steps: StepFigures) -> None:
    decoder = bundle.one("decoder")
    stepping = [want for want in drawing if want.part != decoder]
    floor = min(floor_db(bundle, profile, want) for want in stepping)
    advice = f"It won't be used. Give the {denoiser} a wider type under [precision]."
    if not math.isfinite(steps.step_db):
        raise ParityError(
            f"The whole step of {denoiser} through profile {profile.name} outputs NaN or infinity, though no part does "
            f"by itself. {advice}"
        )
    if not steps.step_db >= floor - STEP_LOSS_DB:
        raise ParityError(
            f"The whole step of {denoiser} through profile {profile.name} agrees with the reference to "
            f"{steps.step_db:.1f} dB; {floor - STEP_LOSS_DB:.0f} dB was expected, though each part is within its own "
            f"floor. {advice}"
        )
    rounding = max(want.target.recipe.rounding for want in stepping)
    for figure in (db for db, share in steps.differences if share >= rounding):
        _check_text(denoiser, profile, figure, floor)
    whole = min(floor_db(bundle, profile, want) for want in drawing)
    least = max(min(whole - PICTURE_LOSS_DB, PICTURE_CEILING_DB), LEAST_PICTURE_DB) if whole > 0 else whole
    if steps.picture_db is not None and not steps.picture_db >= least:
        raise ParityError(
            f"A picture drawn by {denoiser} through profile {profile.name} agrees with diffusers' to "
            f"{steps.picture_db:.1f} dB; {least:.0f} dB was expected, though each step is within its own floor. It "
            f"won't be used. Give the {denoiser} and the {decoder} a wider type under [precision]."
        )


def _check_text(part: str, profile: Profile, figure: float, floor: float) -> None:
    """Raise `ParityError` where what the text changes in a denoiser's answer isn't what it changes in PyTorch's."""
    least = max(floor - DIFFERENCE_LOSS_DB, LEAST_DIFFERENCE_DB) if floor > 0 else floor
    if not figure >= least:
        raise ParityError(
            f"What the prompt changes in the {part}'s answer has an SNR of {figure:.1f} dB through profile "
            f"{profile.name}, where 0 dB is a prompt that changes nothing; {least:.0f} dB was expected. It won't be "
            f"used. Give the {part} a wider type under [precision]."
        )
