"""Fields of a file or an image, and the options that override them."""

from latentc.cli.ask import over


def test_steps_replace_one_another():
    stored = {"timesteps": (900, 20), "steps": 2, "prompt": "a"}
    assert over(stored, {"steps": 5}) == {"prompt": "a", "steps": 5}
    assert over({"steps": 20, "timestep_spacing": "trailing"}, {"sigmas": (5.0, 0.0)}) == {"sigmas": (5.0, 0.0)}
    assert over(stored, {"seed": 1}) == {**stored, "seed": 1}


def test_the_decoder_of_an_image_can_be_left():
    assert over({"decoder": "tiny", "seed": 1}, {"decoder": "vae"}) == {"decoder": None, "seed": 1}
    assert over({"seed": 1}, {"decoder": "tiny"}) == {"seed": 1, "decoder": "tiny"}
