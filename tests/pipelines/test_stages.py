"""A request is drawn in stages, of which each reads what earlier ones wrote: a task that differs in one swaps it."""

import numpy as np
import pytest

from latentc.core.request import Request
from latentc.sampling import draw as drawing
from latentc.sampling.draw import TASKS, Draft, Drawn, draw, plan_walk, walk_latents
from latentc.sampling.host import load_host
from latentc.sampling.noise import added_noise, initial_noise

REQUEST = Request(prompt="a boat", negative_prompt="fog", width=64, height=64, steps=3, seed=1)


@pytest.fixture
def drafted(sd_bundle, engines):
    """`drafted()`: a request that no stage has touched."""
    host, shape = load_host(sd_bundle), (1, 4, 8, 8)
    return lambda: Draft(
        host, REQUEST, engines.engine, {}, start=initial_noise(1, shape), noise=added_noise(1, shape), on_step=None
    )


def test_stages_one_after_another_are_what_draw_does(drafted):
    draft = drafted()
    for stage in TASKS["text"]:
        stage(draft)
    given = drafted()
    drawn = draw(given.host, REQUEST, given.engine, start=given.start, noise=given.noise)
    assert isinstance(drawn, Drawn)
    assert (drawn.images == draft.images).all()
    assert (drawn.latents == draft.latents).all()


def test_a_stage_that_is_swapped_leaves_the_others_as_they_are(pipeline, engines, monkeypatch):
    def nothing(draft):
        draft.latents = np.zeros_like(draft.start)

    stages = tuple(nothing if stage is walk_latents else stage for stage in TASKS["text"])
    monkeypatch.setitem(drawing.TASKS, "text", stages)
    result = pipeline(REQUEST)
    assert not engines.feeds["unet"]
    assert not engines.feeds["vae_decoder"][0]["latent_sample"].any()
    assert len(engines.feeds["text_encoder"]) == 1
    assert (result.images == 128).all()


def test_what_cannot_be_drawn_is_refused_before_any_engine_works(drafted):
    assert TASKS["text"][0] is plan_walk
    draft = drafted()
    plan_walk(draft)
    assert draft.walk.latents == "sample"
    assert not hasattr(draft, "text")
