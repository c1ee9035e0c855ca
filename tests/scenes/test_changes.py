"""Inpainting with `scenes`, read by the judge: what a mask selects becomes what the prompt says."""

from dataclasses import replace

import numpy as np
import pytest

from latentc import Request
from latentc.benchmarks.meaning import open_judge, read

from .changes import GUIDANCE, STEPS, changed_outside, painted, shares, swaps

ASKED = swaps(8)


@pytest.fixture(scope="module")
def plain(opened):
    return opened("scenes", "cpu-onnxruntime")


def unguided_by_the_prompt(pipeline):
    return painted(pipeline, [replace(one, prompt="") for one in ASKED])


def without_the_mask(pipeline):
    requests = [
        Request(prompt=one.prompt, seed=one.number, steps=STEPS, guidance=GUIDANCE, strength=1) for one in ASKED
    ]
    return np.stack([pipeline(asked, image=one.picture).images[0] for asked, one in zip(requests, ASKED, strict=True)])


@pytest.mark.parametrize(
    ("drawn", "says", "keeps"),
    [(lambda pipeline: painted(pipeline, ASKED), True, True), (unguided_by_the_prompt, False, True),
     (without_the_mask, True, False)],
    ids=["as it is", "a prompt that is ignored", "a mask that is ignored"],
)  # fmt: skip
def test_a_masked_thing_becomes_what_the_prompt_says_and_the_rest_is_kept(plain, drawn, says, keeps):
    pictures = drawn(plain)
    with open_judge() as judge:
        new, _, rest = shares(read(judge, pictures), ASKED)
    assert (new > 0.6) is says
    assert (changed_outside(pictures, ASKED) == 0) is keeps
    assert (rest > 0.9) is keeps
