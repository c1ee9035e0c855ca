"""Which family a file of adapters is for, and which checkpoints take it."""

import pytest

from latentc.checkpoints.adapters.kinship import alike, widths_of_prompts
from latentc.checkpoints.families import FAMILIES


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.name.endswith("_inpainting")], ids=lambda one: one.name
)
def test_models_for_inpainting_take_what_their_family_takes(family):
    base = next(one for one in FAMILIES if one.name == family.shares)
    assert alike(base.title, family.title)
    others = [one for one in FAMILIES if one.shares is None and one is not base]
    assert not any(alike(one.title, family.title) for one in others)


def test_the_widths_of_prompts_name_plain_families():
    assert widths_of_prompts() == {
        768: "Stable Diffusion 1",
        1024: "Stable Diffusion 2",
        1280: "Stable Diffusion XL Refiner",
        2048: "Stable Diffusion XL",
    }
