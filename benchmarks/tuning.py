"""What a tuning run decides: predicted times, quality against the best images, and the choice among candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from ..core.request import Request
from ..core.tensors import PERFECT_DB
from ..scenes.judge import scene_score
from .reading import overlap
from .summary import Summary, summarize
from .tuned import Candidate, TimedProfile, TunedPicture

SURE = 1.96
"""Standard errors on each side of a mean: 95 % confidence."""


@dataclass(frozen=True)
class Floor:
    """The least quality that is accepted: one of the two."""

    psnr_db: float | None = None
    """Median PSNR of the images against those of the best candidate."""
    loss: float | None = None
    """How much lower the scene_score may be than the best candidate's."""

    def __str__(self) -> str:
        return f"{self.psnr_db:g} dB" if self.psnr_db is not None else f"a scene_score {self.loss:g} below the best"


@dataclass(frozen=True)
class TuningRequest:
    """A request of the run, without scheduler and steps."""

    request: Request
    """With size and seed."""
    said: Mapping[str, str] | None = None
    """The attributes that its caption names, for `scenes`."""

    def by(self, candidate: Candidate) -> Request:
        """The request of a candidate."""
        return self.request.model_copy(update={"scheduler": candidate.scheduler, "steps": candidate.steps})


@dataclass(frozen=True)
class Quality:
    """The images of a candidate beside those of the best one."""

    psnr_db: Summary
    seconds: Summary
    """Of generating an image, alone, without the first one."""
    worst: int
    """Index of the image with the lowest PSNR."""
    score: float | None = None
    """scene_score of the images, 0 to 1; None for checkpoints that the judge doesn't know."""
    best_score: float | None = None
    """The same of the best candidate's images."""
    noise: float | None = None
    """Half the 95 % interval of the difference between the two scores, from the captions' own differences."""

    @property
    def loss(self) -> float | None:
        """How much lower the score is than the best candidate's."""
        return None if self.score is None or self.best_score is None else self.best_score - self.score

    def meets(self, floor: Floor) -> bool:
        """Whether the median, or the score, reaches the floor."""
        if floor.psnr_db is not None:
            return self.psnr_db.median >= floor.psnr_db
        return self.loss is not None and floor.loss is not None and self.loss <= floor.loss + 1e-9

    def is_sure(self, floor: Floor) -> bool:
        """Whether the floor is outside of the 95 % interval of the figure that `meets` compares."""
        if floor.psnr_db is not None:
            low, high = self.psnr_db.interval
            return not low < floor.psnr_db <= high
        return self.noise is None or self.loss is None or abs(self.loss - (floor.loss or 0.0)) > self.noise


@dataclass(frozen=True)
class Tried:
    """A candidate, and what is known of it."""

    candidate: Candidate
    predicted: Summary
    """Seconds of a whole image, from the measured calls."""
    quality: Quality | None = None
    """None if its images weren't generated."""
    error: str | None = None
    """Why its images could not be generated."""


def predicted(times: TimedProfile, calls: int) -> Summary:
    """Seconds of an image of so many denoiser calls, from generations with another number of calls.

    The host's share grows with the calls. Each call takes as long as the one at its place among those that were
    measured: the last ones of an int8 engine are exact, and take longer.
    """
    return summarize(
        [
            (draw.text_encoder or 0.0)
            + (draw.image_encoder or 0.0)
            + sum(draw.denoiser[place] for place in _places(len(draw.denoiser), calls))
            + calls * max(draw.host, 0.0) / len(draw.denoiser)
            + draw.vae_decoder
            for draw in times.draws
        ]
    )


def _places(measured: int, calls: int) -> list[int]:
    """For each of so many calls, the index of the one that was measured at its place, from the first to the last."""
    return [round(call * (measured - 1) / max(1, calls - 1)) for call in range(calls)]


def quality_of(
    pictures: Sequence[TunedPicture], best: Sequence[TunedPicture], asked: Sequence[TuningRequest]
) -> Quality | None:
    """Compare a candidate's images with the best candidate's of the same requests; None without images."""
    found = [one.psnr_db for one in pictures if one.psnr_db is not None]
    if not found:
        return None
    score, theirs, noise = _scores(pictures, best, asked)
    return Quality(
        psnr_db=summarize(found),
        seconds=summarize([one.seconds for one in pictures[1:] or pictures]),
        worst=found.index(min(found)),
        score=score,
        best_score=theirs,
        noise=noise,
    )


def _scores(
    pictures: Sequence[TunedPicture], best: Sequence[TunedPicture], asked: Sequence[TuningRequest]
) -> tuple[float | None, float | None, float | None]:
    """scene_score of both, and the noise of their difference."""
    each = [
        (one.attributes, other.attributes, ask.said)
        for one, other, ask in zip(pictures, best, asked, strict=False)
        if one.attributes is not None and other.attributes is not None and ask.said
    ]
    if not each:
        return None, None, None
    said = [words for _, _, words in each]
    mine, theirs = scene_score([one for one, _, _ in each], said), scene_score([other for _, other, _ in each], said)
    gaps = [sum((one.get(k) == v) - (other.get(k) == v) for k, v in words.items()) for one, other, words in each]
    named = sum(map(len, said))
    noise = SURE * stdev(gaps) * math.sqrt(len(gaps)) / named if len(gaps) > 1 else None
    return mine, theirs, noise


def is_lost(
    floor: Floor, pictures: Sequence[TunedPicture], best: Sequence[TunedPicture], asked: Sequence[TuningRequest]
) -> bool:
    """Whether a candidate can't meet the floor, whatever its further images are."""
    if not pictures:
        return False
    missing = range(len(pictures), len(asked))
    perfect = [
        pictures[0].model_copy(update={"psnr_db": PERFECT_DB, "attributes": dict(asked[index].said or {})})
        for index in missing
    ]
    found = quality_of([*pictures, *perfect], best, asked)
    return found is None or not found.meets(floor)


def faster(candidates: Sequence[Tried], best: Tried) -> list[Tried]:
    """The candidates that are faster than the best one beyond the noise, fastest first."""
    found = [one for one in candidates if one.predicted.interval[1] < best.predicted.interval[0]]
    return sorted(found, key=lambda one: (one.predicted.median, -one.candidate.steps))


def ties(one: Tried, other: Tried) -> bool:
    """Whether the intervals of their predicted times overlap."""
    return overlap(one.predicted.interval, other.predicted.interval)


def choice(tried: Sequence[Tried], floor: Floor) -> Tried | None:
    """The fastest candidate that meets the floor; of those that tie with it, the one closest to the best images."""
    met = [one for one in tried if one.quality is not None and one.quality.meets(floor)]
    if not met:
        return None
    fastest = min(met, key=lambda one: one.predicted.median)
    return max((one for one in met if ties(one, fastest)), key=_closeness)


def nearest(tried: Sequence[Tried], floor: Floor) -> Tried | None:
    """The candidate that comes closest to the floor; None if no image could be compared."""
    seen = [one for one in tried if one.quality is not None]
    if floor.psnr_db is not None:
        return max(seen, key=_closeness, default=None)
    return min(seen, key=_loss, default=None)


def _closeness(one: Tried) -> float:
    return one.quality.psnr_db.median if one.quality else -math.inf


def _loss(one: Tried) -> float:
    return one.quality.loss if one.quality and one.quality.loss is not None else math.inf
