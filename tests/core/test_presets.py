"""Presets stand for fields of a request; what a request states itself is kept."""

import pytest

from latentc.cli.ask import _stripped, ask
from latentc.core.errors import RequestError
from latentc.core.presets import PRESETS
from latentc.core.request import Request
from latentc.pipelines.png import Shown
from latentc.sampling.schedulers import check_name


def fields(request):
    return request.scheduler, request.steps


def test_presets_take_fewer_steps_one_after_the_other():
    made = [Request(prompt="a", preset=name) for name in PRESETS]
    assert [one.steps for one in made] == sorted({one.steps for one in made}, reverse=True)
    for one in made:
        assert one.scheduler is None or check_name(one.scheduler) is None


def test_what_a_request_states_itself_is_kept():
    scheduler, steps = fields(Request(prompt="a", preset="fast"))
    assert (scheduler, steps) == ("dpm++2m", 8)
    assert fields(Request(prompt="a", preset="fast", steps=9)) == (scheduler, 9)
    assert fields(Request(prompt="a", preset="fast", scheduler="euler")) == ("euler", steps)
    assert fields(Request(prompt="a", preset="fast", timesteps=[900, 500, 100])) == (scheduler, 3)
    assert fields(Request(prompt="a", preset="fast", sigmas=[9.0, 2.0, 0.0])) == (scheduler, 2)


def test_a_record_with_a_preset_is_read_as_it_was():
    asked = Request(prompt="a", preset="draft")
    assert asked.preset == "draft"
    assert Request.model_validate(asked.model_dump()) == asked
    assert Request.model_validate_json(asked.model_dump_json()) == asked
    assert "preset" not in Request(prompt="a").model_dump()


@pytest.mark.parametrize(
    "more",
    [
        {"steps": 7},
        {"scheduler": "ddim"},
        {"timesteps": [900, 500, 100]},
        {"sigmas": [9.0, 2.0, 0.0]},
        {"timestep_spacing": "trailing"},
    ],
)
def test_a_request_that_states_something_else_is_no_preset(more):
    assert Request(prompt="a", preset="fast", **more).preset is None
    assert Request(prompt="a", preset="exact", **more).preset is None


@pytest.mark.parametrize("left_out", [["scheduler"], ["preset"]])
def test_what_is_left_out_of_an_image_is_not_filled_by_its_preset(left_out):
    made = Shown(Request(prompt="a", preset="fast", seed=3), "", {}, None, 64, 64)
    found = _stripped(made, left_out).request
    assert (found.preset, found.steps, found.seed) == (None, 8, 3)
    assert found.scheduler == (None if left_out == ["scheduler"] else "dpm++2m")


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"preset.*exact.*balanced.*fast.*draft"):
        Request(prompt="a", preset="fastest")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"preset": "draft"}, ("dpm++2m", 6, None)),
        ({"preset": "draft", "steps": 5}, ("dpm++2m", 5, None)),
        ({"preset": "exact"}, (None, 20, None)),
        ({"steps": 5}, ("euler", 5, "trailing")),
    ],
)
def test_a_preset_replaces_the_steps_of_an_image(given, expected):
    made = Request(prompt="a", scheduler="euler", steps=30, timestep_spacing="trailing", seed=3)
    (found,) = ask([], None, Shown(made, "", {}, None, 64, 64), given)
    assert (found.scheduler, found.steps, found.timestep_spacing) == expected
    assert found.seed == 3
