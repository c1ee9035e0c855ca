"""What a tuning run tries and generates, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..compiler.cache import find
from ..compiler.sized import for_size
from ..compiler.targets import wanted
from ..core.bundle import Bundle
from ..core.errors import BundleError, RequestError
from ..core.presets import PRESETS, SOLVER
from ..core.recipes import RECIPES
from ..core.request import Request
from ..core.units import listed
from ..pipelines.complete import check, own_scheduler
from ..profiles import Profile
from ..sampling.host import SCHEDULER
from ..sampling.schedulers import check_name, names
from ..sampling.walks import schedule_of
from .meaning import captions
from .plan import PATIENCE, Plan
from .suite import SUITE, is_scenes, suite_for
from .tuned import Candidate, Purpose
from .tuning import Floor, TuningRequest

OWN = "own"
"""The checkpoint's own scheduler, among those to try."""
STEPS = tuple(sorted({15, 10, *(int(one["steps"]) for one in PRESETS.values())}, reverse=True))
"""Those of the presets, and some between."""
TIMED_STEPS = 10
"""Steps of the generations that are timed. One of them is in the last tenth, which `int8` computes more slowly."""
PICTURES = 16
LEAST = 6
"""Fewest images of a set: fewer have no 95 % interval of the median."""
APART = 1_000_003
"""Distance between the seeds of the two sets, which are shorter."""
MOST_DB = 100.0
"""Images of 8 bits that differ reach less than this, unless they are very large."""

REPORTED = (
    ("a harbour at dawn with fishing boats, watercolour", ""),
    ("a close-up of a green beetle on a leaf, macro photograph", "blurry"),
    ("an empty concert hall, warm light, symmetrical", ""),
    ("a stone bridge over a river in autumn, oil painting", "people"),
    ("a plate of pancakes with blueberries, seen from above", ""),
    ("a mountain hut in deep snow under the stars", "text"),
    ("a yellow tram in a narrow street at noon, film photograph", ""),
    ("a botanical drawing of a fern, black ink on white paper", ""),
)
"""Prompts and negative prompts of the report; those of the choice are the general suite's."""


@dataclass(frozen=True)
class Tuning:
    """What to try, and what is asked of it."""

    profiles: tuple[Profile, ...]
    floor: Floor
    steps: tuple[int, ...] = STEPS
    """The largest number, with the checkpoint's own scheduler, is the best candidate's."""
    schedulers: tuple[str, ...] | None = None
    """None is the checkpoint's own, and `SOLVER` if it fits the model."""
    pictures: int = PICTURES
    """Images of each of the two sets."""
    guidance: float | None = None
    """None is that of the bundle's suite."""
    prompts: tuple[tuple[str, str], ...] = ()
    """Prompts and negative prompts instead of the suite's: every other one for the choice, the rest for the report."""
    minutes: float | None = None
    """Time for this run; None is as long as it takes. The timing of the profiles is not cut short."""
    build: bool = False
    """Whether engines that don't exist are built."""

    def guidance_of(self, bundle: Bundle) -> float:
        """The guidance scale of all images."""
        return suite_for(bundle).guidance if self.guidance is None else self.guidance

    def timing(self, bundle: Bundle) -> Plan:
        """How the profiles are timed. With a limited time, no further rounds wait until the times are stable."""
        return Plan(
            self.profiles,
            steps=TIMED_STEPS,
            guidance=self.guidance_of(bundle),
            patience=PATIENCE if self.minutes is None else 1,
            ceiling=False,
        )


@dataclass(frozen=True)
class Ready:
    """A profile whose engines can run here."""

    profile: Profile
    keys: tuple[str, ...]
    """Of its engines."""
    rounding: float
    """The coarsest `Recipe.rounding` of its engines."""
    is_built: bool


def check_floor(bundle: Bundle, plan: Tuning) -> None:
    """Raise `RequestError` for a floor that nothing meets, and for a bundle whose images can't be compared by it."""
    floor, model = plan.floor, bundle.manifest.model
    if model.tasks[0] != "text" or model.frames is not None:
        raise RequestError(
            f"{bundle.folder} does not generate images from prompts alone, and latentc tune supports nothing else."
        )
    if floor.psnr_db is not None and not 0 < floor.psnr_db <= MOST_DB:
        raise RequestError(
            f"No candidate can meet {floor}: images that differ have between 0 and {MOST_DB:g} dB. Choose a floor "
            "between, such as 35dB."
        )
    if floor.loss is not None and not 0 <= floor.loss < 1:
        raise RequestError(f"No score can be {floor}: it is from 0 to 1. Choose a smaller loss, such as score:0.01.")
    if floor.loss is not None and (plan.prompts or not is_scenes(bundle)):
        what = "other prompts" if plan.prompts else f"images of {bundle.manifest.source.location}"
        raise RequestError(f"scene_score is for captions of scenes, not for {what}. Use a floor in dB, such as 35dB.")
    if plan.pictures < LEAST:
        raise RequestError(f"{plan.pictures} images have no interval of their median. Use {LEAST} or more.")


def ready(bundle: Bundle, plan: Tuning) -> list[Ready]:
    """The profiles, with engines for the model's own size.

    Raises `BundleError` for engines that don't exist, unless they may be built, and the errors of
    `compiler.targets.wanted` for a profile that doesn't work here.
    """
    found = list[Ready]()
    for one in plan.profiles:
        profile = for_size(bundle.manifest.model, one, *bundle.manifest.model.own_size)
        _, engines = wanted(bundle, profile, to_run=True)
        is_built = all(find(bundle, engine.part, engine.key) for engine in engines)
        rounding = max(RECIPES[engine.target.precision].rounding for engine in engines)
        found.append(Ready(profile, tuple(engine.key for engine in engines), rounding, is_built))
    absent = [one for one, each in zip(plan.profiles, found, strict=True) if not each.is_built]
    if absent and not plan.build:
        each = ",".join(one.argument for one in absent)
        raise BundleError(
            f"Engines are not built for {listed(one.name for one in absent)}. Run: latentc build {bundle.argument} "
            f"--profile {each}   (or pass --build)"
        )
    return found


def best_of(plan: Tuning, found: Sequence[Ready]) -> Candidate:
    """The candidate whose images the others are compared with: the most exact profile, and the most steps."""
    exact = min(found, key=lambda one: one.rounding)
    return Candidate(profile=exact.profile.name, steps=max(plan.steps))


def sets_of(bundle: Bundle, plan: Tuning) -> dict[Purpose, tuple[TuningRequest, ...]]:
    """The requests of the choice and of the report: no prompt and no seed is in both.

    Raises `RequestError` for prompts that can't be divided so.
    """
    width, height = bundle.manifest.model.own_size
    settings: dict[str, Any] = {"width": width, "height": height, "guidance": plan.guidance_of(bundle)}
    count, chosen = plan.pictures, plan.prompts
    if is_scenes(bundle) and not chosen:
        each = [
            TuningRequest(Request(prompt=one.text, seed=one.number, **settings), one.said)
            for one in captions(2 * count)
        ]
        return {"choice": tuple(each[:count]), "report": tuple(each[count:])}
    if chosen and (len(chosen) < 2 or len({prompt for prompt, _ in chosen}) < len(chosen)):
        raise RequestError(
            "Every other prompt is for the choice and the rest for the report, so at least two are needed, each once."
        )
    choice, report = (chosen[::2], chosen[1::2]) if chosen else (SUITE.prompts, REPORTED)
    return {
        "choice": tuple(_asked(choice, index, 1 + index, settings) for index in range(count)),
        "report": tuple(_asked(report, index, 1 + index + APART, settings) for index in range(count)),
    }


def _asked(texts: Sequence[tuple[str, str]], index: int, seed: int, settings: Mapping[str, Any]) -> TuningRequest:
    prompt, negative = texts[index % len(texts)]
    return TuningRequest(Request(prompt=prompt, negative_prompt=negative, seed=seed, **settings))


def candidates_of(bundle: Bundle, plan: Tuning, best: Candidate, asked: TuningRequest) -> dict[Candidate, int]:
    """The best candidate and those to try, each with the number of its denoiser calls.

    Raises `RequestError` or `ProfileError` for a scheduler or a number of steps that the model doesn't support, and
    `RequestError` if there is nothing to try.
    """
    model, config = bundle.manifest.model, bundle.json(SCHEDULER)
    own, asked_for = own_scheduler(config), plan.schedulers
    if asked_for is None:
        asked_for = (OWN, SOLVER) if SOLVER in names(config, model.align_your_steps) else (OWN,)
    for name in asked_for:
        if name != OWN:
            check_name(name)
    chosen = dict.fromkeys(None if name in (OWN, own) else name for name in asked_for)
    each = (
        Candidate(profile=one.name, scheduler=name, steps=steps)
        for one, name, steps in product(plan.profiles, chosen, dict.fromkeys(plan.steps))
    )
    found: dict[Candidate, int] = {}
    for one in (best, *each):
        request = asked.by(one)
        check(request, model, config)
        found[one] = len(schedule_of(model, config, request).timesteps)
    if len(found) == 1:
        raise RequestError(
            f"There is nothing to compare with {best.title}: name more profiles, or more numbers with --steps."
        )
    return found
