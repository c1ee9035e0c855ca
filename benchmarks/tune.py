"""Find the fastest profile, scheduler and number of steps whose images stay close to the bundle's best ones.

Call times are measured by the benchmark harness, all profiles in turn, and give predicted times of whole images. Then
candidates generate images, fastest first, until one meets the floor and no other one ties with it. They are chosen by
one set of prompts and seeds, and reported on with another one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from ..compiler.build import Build, build
from ..core.bundle import Bundle
from ..core.errors import LatentcError
from ..core.files import sha256_json
from ..core.progress import Progress, quiet
from ..core.recipes import RECIPES
from ..core.request import Request
from ..core.units import counted
from ..pipelines.pipeline import Pipeline
from ..profiles import Profile
from ..runtimes.machine import machine
from ..sampling.host import drawing_digest
from ..scenes.judge import Pixels
from .bench import bench
from .meaning import open_judge, read
from .plan import Plan, requests_of
from .quality import picture_psnr_db
from .reading import OTHERS, machine_title, seconds_shown
from .records import Measurement
from .summary import Summary, summarize
from .tune_plan import Tuning, best_of, candidates_of, check_floor, ready, sets_of
from .tuned import Candidate, Purpose, TimedProfile, TunedPicture, TuningLog, as_png, open_log
from .tuning import Floor, Quality, Tried, TuningRequest, choice, faster, is_lost, nearest, predicted, quality_of, ties

TIMES_APART = 0.15
"""Share by which the seconds of images may differ from what was predicted, without a note."""


def drawn(bundle: Bundle, profile: Profile, asked: Sequence[Request]) -> Generator[tuple[Pixels, float]]:
    """Generate the image of each request with the engines of a profile, which are loaded meanwhile.

    Yields uint8 [height, width, 3], and its seconds. Raises what the pipeline raises.
    """
    with Pipeline.open(bundle, profile) as pipeline:
        for request in asked:
            result = pipeline(request)
            yield result.images[0], result.seconds["total"]


class _NotDrawn(LatentcError):
    """A candidate's image could not be generated."""


@dataclass(frozen=True)
class Instruments:
    """What builds, measures and generates; a test has its own."""

    measure: Callable[[Bundle, Plan, Path, Progress], list[Measurement]] = bench
    draw: Callable[[Bundle, Profile, Sequence[Request]], Generator[tuple[Pixels, float]]] = drawn
    build: Callable[[Bundle, Profile, Progress], Build | None] = build
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Tuned:
    """What a run found."""

    bundle: Bundle
    plan: Tuning
    best: Tried
    """The candidate whose images the others are compared with."""
    tried: tuple[Tried, ...]
    """The candidates that are faster than it beyond the noise, fastest first."""
    chosen: Tried | None
    """None if no candidate meets the floor."""
    nearest: Tried | None
    """The candidate that comes closest to the floor."""
    report: Quality | None
    """The chosen candidate by the images of the report."""
    sets: Mapping[Purpose, tuple[TuningRequest, ...]]
    log: TuningLog
    left: int
    """Candidates for which there was no time."""
    notes: tuple[str, ...]

    @property
    def floor(self) -> Floor:
        """What was asked for."""
        return self.plan.floor

    @property
    def holds(self) -> bool:
        """Whether the chosen candidate also meets the floor by the images of the report."""
        return self.report is not None and self.report.meets(self.floor)

    @property
    def best_seconds(self) -> Summary | None:
        """Seconds of the best candidate's images of the report; None if there are none."""
        found = self.log.of("report", self.best.candidate)
        return summarize([one.seconds for one in found[1:] or found]) if found else None

    def peak_bytes(self, one: Tried) -> int | None:
        """Peak resident memory of the process that timed a candidate's profile; None if unknown."""
        return self.log.times[one.candidate.profile].peak_bytes


@dataclass(frozen=True)
class _Run:
    """A run in progress."""

    bundle: Bundle
    plan: Tuning
    profiles: Mapping[str, Profile]
    best: Candidate
    sets: Mapping[Purpose, tuple[TuningRequest, ...]]
    log: TuningLog
    tools: Instruments
    on_progress: Progress
    until: float
    """When the time is up, by `Instruments.now`."""

    @property
    def seconds_left(self) -> float:
        return self.until - self.tools.now()

    def cost(self, one: Tried, *purposes: Purpose) -> float:
        """Predicted seconds of the images that a candidate still needs: for the choice none if it is lost."""
        lacking = sum(
            len(self.sets[purpose]) - len(self.log.of(purpose, one.candidate))
            for purpose in purposes
            if purpose != "choice" or not self.is_lost(one.candidate)
        )
        return lacking * one.predicted.median

    def quality(self, purpose: Purpose, candidate: Candidate) -> Quality | None:
        """How a candidate's images compare with the best one's."""
        log = self.log
        return quality_of(log.of(purpose, candidate), log.of(purpose, self.best), self.sets[purpose])

    def is_lost(self, candidate: Candidate) -> bool:
        """Whether a candidate can't meet the floor any more."""
        pictures, best = (self.log.of("choice", one) for one in (candidate, self.best))
        return candidate != self.best and is_lost(self.plan.floor, pictures, best, self.sets["choice"])


def tune(
    bundle: Bundle, plan: Tuning, state: Path, on_progress: Progress = quiet, tools: Instruments | None = None
) -> Tuned:
    """Measure the profiles, choose a candidate, and report on it. `state` is the file in which a run goes on.

    Before anything is measured, raises `RequestError` for a floor that nothing can meet, and for a bundle or prompts
    that can't be used; the errors of `candidates_of`; `BundleError` for engines that don't exist; the errors of
    `compiler.targets.wanted` for profiles that don't work here, and those of `compiler.build.build` for engines that
    are to be built. Afterwards raises `LatentcError` where a profile can't be measured, the best images can't be
    generated, the file can't be written, or the time is too short.
    """
    tools = tools or Instruments()
    until = tools.now() + 60 * plan.minutes if plan.minutes is not None else float("inf")
    check_floor(bundle, plan)
    sets, timing = sets_of(bundle, plan), plan.timing(bundle)
    list(requests_of([bundle], timing))
    found = ready(bundle, plan)
    candidates_of(bundle, plan, best_of(plan, found), sets["choice"][0])
    if absent := [one.profile for one in found if not one.is_built]:
        for profile in absent:
            tools.build(bundle, profile, on_progress)
        found = ready(bundle, plan)  # a part whose engine was refused has another precision now
    best = best_of(plan, found)
    calls = candidates_of(bundle, plan, best, sets["choice"][0])
    facts = {
        "bundle": drawing_digest(bundle),
        "engines": sha256_json([one.keys for one in found]),
        "profiles": sha256_json([one.profile.model_dump(mode="json") for one in found]),
        "best candidate": best.title,
        "prompts": sha256_json([one.request.model_dump(mode="json") for each in sets.values() for one in each]),
        "machine": machine_title(machine()),
    }
    profiles = {one.profile.name: one.profile for one in found}
    run = _Run(bundle, plan, profiles, best, sets, open_log(state, facts), tools, on_progress, until)
    notes = _measure(run, timing)
    if bundle.manifest.source.random:
        notes.append("The weights are random: times are valid, images are noise.")
    if min(one.rounding for one in found) > RECIPES["f32"].rounding:
        notes.append(f"No profile computes all in f32: the best images are those of {best.profile}.")
    timed = {one: Tried(one, predicted(run.log.times[one.profile], count)) for one, count in calls.items()}
    tried, left = _try(run, faster([one for one in timed.values() if one.candidate != best], timed[best]), timed[best])
    chosen, report = choice(tried, plan.floor), None
    if chosen is not None:
        for one in (timed[best], chosen):
            _generate(run, one, "report", run.cost(timed[best], "report") + run.cost(chosen, "report"))
        report = run.quality("report", chosen.candidate)
        notes += _off(chosen, report)
    near = nearest(tried, plan.floor)
    return Tuned(bundle, plan, timed[best], tuple(tried), chosen, near, report, sets, run.log, left, tuple(notes))


def _measure(run: _Run, timing: Plan) -> list[str]:
    """Time all profiles in turn, unless they are; returns notes on how far the times can be trusted."""
    if not run.profiles.keys() <= run.log.times.keys():
        with tempfile.TemporaryDirectory() as scratch:
            rows = run.tools.measure(run.bundle, timing, Path(scratch, "times.jsonl"), run.on_progress)
        own = {row.subject.name: row for row in rows if row.subject.name in run.profiles}
        if failed := next((row for row in own.values() if row.error), None):
            raise LatentcError(f"Profile {failed.subject.name} could not be measured: {failed.error} Leave it out.")
        for name, row in own.items():
            peak = row.memory.peak_bytes if row.memory else None
            stable, others = bool(row.stable), row.other_cores
            run.log.add(TimedProfile(profile=name, draws=row.draws, stable=stable, other_cores=others, peak_bytes=peak))
    times = [run.log.times[name] for name in run.profiles]
    notes: list[str] = []
    if shaky := [one.profile for one in times if not one.stable]:
        notes.append(f"The times are not stable: {', '.join(shaky)}.")
    if (most := max(one.other_cores or 0.0 for one in times)) > OTHERS:
        notes.append(f"Other processes used {most:.1f} cores while times were measured.")
    return notes


def _off(chosen: Tried, report: Quality | None) -> list[str]:
    """A note where images took another time than was predicted."""
    if report is None or abs(report.seconds.median / chosen.predicted.median - 1) <= TIMES_APART:
        return []
    took, was = seconds_shown(report.seconds.median), seconds_shown(chosen.predicted.median)
    return [f"Images of {chosen.candidate.title} took {took}; {was} was predicted. The machine may be busy."]


def _try(run: _Run, found: Sequence[Tried], best: Tried) -> tuple[list[Tried], int]:
    """Generate the images of candidates, fastest first; those that lose to one that meets the floor are left out.

    Also returns for how many there was no time.
    """
    if not found:
        return [], 0
    need = run.cost(best, "choice", "report") + run.cost(found[0], "choice", "report")
    if need > run.seconds_left:
        raise LatentcError(
            f"The images need about {need / 60:.1f} minutes or more, and {max(0.0, run.seconds_left) / 60:.1f} are "
            "left. Run the same command with more --minutes: what was measured is kept."
        )
    bound = sum(run.cost(one, "choice") for one in found) + run.cost(found[-1], "report")
    _generate(run, best, "choice", bound + run.cost(best, "choice", "report"))
    tried, left, fastest = list[Tried](), 0, None
    for index, one in enumerate(found):
        reserve = run.cost(best, "report") + run.cost(fastest or one, "report")
        if fastest is not None and not ties(one, fastest):
            seen = len(run.log.of("choice", one.candidate)) == len(run.sets["choice"])  # by a run with another floor
            tried.append(replace(one, quality=run.quality("choice", one.candidate)) if seen else one)
            continue
        if run.cost(one, "choice") + reserve > run.seconds_left:
            left += 1
            tried.append(one)
            continue
        try:
            _generate(run, one, "choice", sum(run.cost(each, "choice") for each in found[index:]) + reserve)
        except _NotDrawn as exc:
            tried.append(replace(one, error=str(exc)))
            continue
        one = replace(one, quality=run.quality("choice", one.candidate))
        tried.append(one)
        if one.quality is not None:
            psnr = one.quality.psnr_db
            run.on_progress(f"{one.candidate.title}: {psnr.median:.1f} dB, worst {psnr.minimum:.1f} dB", None)
        if fastest is None and one.quality is not None and one.quality.meets(run.plan.floor):
            fastest = one
    return tried, left


def _generate(run: _Run, one: Tried, purpose: Purpose, bound: float) -> None:
    """Generate the images of a candidate that are missing, until it can't meet the floor any more.

    `bound` is the most that the rest of the run is predicted to take, in seconds. Raises `_NotDrawn` for an image that
    can't be generated, and `LatentcError` for a damaged image of the best candidate or a file that can't be written.
    """
    asked, done = run.sets[purpose], run.log.of(purpose, one.candidate)
    if len(done) >= len(asked) or (purpose == "choice" and run.is_lost(one.candidate)):
        return
    missing = counted(len(asked) - len(done), "image")
    minutes = min(bound, run.seconds_left) / 60
    run.on_progress(f"{one.candidate.title}: {missing} for the {purpose}, about {minutes:.1f} min left", None)
    best = None if one.candidate == run.best else run.log.of(purpose, run.best)
    requests = [each.by(one.candidate) for each in asked[len(done) :]]
    with ExitStack() as stack:
        judge = None if asked[0].said is None else stack.enter_context(open_judge())
        for image, seconds in stack.enter_context(closing(_images(run, one.candidate, requests))):
            picture = TunedPicture(
                purpose=purpose,
                candidate=one.candidate,
                number=len(done),
                seconds=seconds,
                psnr_db=None if best is None else picture_psnr_db(best[len(done)].image, image),
                attributes=None if judge is None else dict(read(judge, image[None]).attributes[0]),
                png=as_png(image) if best is None or purpose == "report" else None,
            )
            run.log.add(picture)
            if purpose == "choice" and run.is_lost(one.candidate):
                return


def _images(run: _Run, candidate: Candidate, asked: Sequence[Request]) -> Generator[tuple[Pixels, float]]:
    """As `Instruments.draw`, with its errors as `_NotDrawn`: those of what is done with the images stay as they are."""
    try:
        yield from run.tools.draw(run.bundle, run.profiles[candidate.profile], asked)
    except LatentcError as exc:
        raise _NotDrawn(str(exc)) from exc
