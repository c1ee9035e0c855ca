"""What a tuning run decides, from scores made by hand."""

import math
from dataclasses import replace

import pytest

from latentc.benchmarks.summary import summarize
from latentc.benchmarks.tuned import Candidate, TunedPicture
from latentc.benchmarks.tuning import Floor, Tried, TuningRequest, is_lost, nearest, quality_of
from latentc.core.request import Request


def scored(said, *each):
    """Images whose attributes a judge recognized, of requests whose captions say these."""
    asked = [TuningRequest(Request(prompt="a", seed=1), words) for words in said]
    one = Candidate(profile="a", steps=1)
    made = [
        [
            TunedPicture(purpose="choice", candidate=one, number=i, seconds=1.0, psnr_db=40.0, attributes=attributes)
            for i, attributes in enumerate(rows)
        ]
        for rows in each
    ]
    return asked, *made


def test_scores_are_compared_with_those_of_the_best():
    said = [{"sky": "day", "place": "sea"}, {"sky": "night"}, {"light": "sun", "place": "forest"}]
    asked, best, mine = scored(
        said,
        [{"sky": "day", "place": "sea"}, {"sky": "night"}, {"light": "rain", "place": "forest"}],
        [{"sky": "day", "place": "city"}, {"sky": "day"}, {"light": "sun", "place": "forest"}],
    )
    found = quality_of(mine, best, asked)
    assert (found.score, found.best_score) == (3 / 5, 4 / 5)
    assert found.loss == pytest.approx(0.2)
    assert found.noise == pytest.approx(1.96 * math.sqrt(4 / 3) * math.sqrt(3) / 5), "differences of -1, -1 and 1"
    assert found.meets(Floor(loss=0.2))
    assert not found.meets(Floor(loss=0.19))
    assert not found.is_sure(Floor(loss=0.1))
    tried = [
        Tried(Candidate(profile=name, steps=1), summarize([1.0]), quality)
        for name, quality in (("a", found), ("b", replace(found, score=0.5, best_score=0.6)))
    ]
    assert nearest(tried, Floor(loss=0.01)) == tried[1], "by its loss, not by its score"
    assert not is_lost(Floor(loss=0.2), mine[:2], best, asked), "the last one may show all of its caption"
    assert is_lost(Floor(loss=0.19), mine[:2], best, asked)
