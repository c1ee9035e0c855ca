"""Fields, keys, flags and schedulers by the names that other tools have for them."""

import pytest

from latentc.core.errors import ProfileError, RequestError
from latentc.core.request import Request
from latentc.profiles import load_profile
from latentc.profiles.profile import Profile, Shapes
from latentc.sampling.schedulers import schedule

FIELDS = {
    "guidance_scale": "guidance",  # difflib's nearest is guidance_rescale, which draws another picture
    "guidanceScale": "guidance",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "num_inference_steps": "steps",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "negative": "negative_prompt",
    "num_images_per_prompt": "count",
    "batch_size": "count",
    "n_iter": "count",
    "generator": "seed",
    "cfg_rescale": "guidance_rescale",
    "stepz": "steps",
}
FLAGS = {
    "--guidance-scale": "--guidance)",
    "--cfg-scale": "--guidance)",
    "--num-inference-steps": "--steps)",
    "--num_inference_steps": "--steps)",
    "--sampler": "--scheduler)",
    "--negative-prompt": "--negative)",
    "--width": "--size)",
    "--batch-size": "--count)",
    "--dtype": "--profile)",
    "--outdir": "--output)",
    "--step": "--steps",
}


@pytest.mark.parametrize(("name", "field"), FIELDS.items())
def test_fields_of_a_request(name, field):
    with pytest.raises(RequestError, match=f"unknown key '{name}': did you mean '{field}'"):
        Request.model_validate({"prompt": "a", name: 1})
    with pytest.raises(RequestError, match=f"did you mean '{field}'"):
        Request.model_validate_json(f'{{"prompt": "a", "{name}": 1}}')


def test_size_and_what_isnt_there_yet():
    with pytest.raises(RequestError, match="did you mean 'width' and 'height'"):
        Request.model_validate({"prompt": "a", "size": "512x512"})
    with pytest.raises(RequestError, match="'subseed': latentc does not support this setting yet; omit it"):
        Request.model_validate({"prompt": "a", "subseed": 2})
    with pytest.raises(RequestError, match="'CLIP_stop_at_last_layers': use 'clip_skip', which is 1 less"):
        Request.model_validate({"prompt": "a", "CLIP_stop_at_last_layers": 2})


@pytest.mark.parametrize("model", [Request, Profile, Shapes])
def test_every_hint_is_a_field(model):
    hints = [hint for hint in model.other_names.values() if " " not in hint]
    assert set(hints) <= model.model_fields.keys()
    assert not model.other_names.keys() & {name.replace("_", "") for name in model.model_fields}


@pytest.mark.parametrize(("flag", "meant"), FLAGS.items())
def test_flags(flag, meant, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = command("run", "x.bundle", "a cat", flag, "3")
    assert code == 2
    assert f"No such option: {flag}" in err
    assert meant in err


def test_commands(command):
    for name, meant in (("txt2img", "run"), ("convert", "export"), ("compile", "build"), ("rn", "run")):
        code, _, err = command(name, "x")
        assert code == 2
        assert f"'{meant}'" in err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("euler_a", "euler-ancestral"),  # difflib's nearest is euler
        ("Euler a", "euler-ancestral"),
        ("dpmpp_2m_karras", "dpm++2m-karras"),
        ("DPM++ 2M SDE Karras", "dpm++2m-sde-karras"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral"),
        ("unpc", "unipc"),
        ("uler-karras", "euler"),
    ],
)
def test_schedulers(name, meant):
    with pytest.raises(RequestError, match=rf"Did you mean '{meant}'\?".replace("+", r"\+")):
        schedule({}, 10, name)


def test_a_scheduler_that_others_have_has_no_near_name():
    """DPM fast is another algorithm than DPM2, however near its letters are."""
    with pytest.raises(RequestError, match="Other tools have it, but latentc does not support it yet") as caught:
        schedule({}, 10, "dpm_fast")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('dtype = "f16"', "did you mean 'precision'"),
        ('backend = "x"', "did you mean 'runtime'"),
        ('provider = "x"', "did you mean 'device'"),
        ("[shapes]\nbatch_size = 2", "unknown key 'shapes.batch_size': did you mean 'images'"),
    ],
)
def test_keys_of_a_profile(line, hint, tmp_path):
    (tmp_path / "mine.toml").write_text(f'title = "Mine"\nruntime = "null"\n{line}\n')
    for path in (tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
        with pytest.raises(ProfileError, match=hint):
            load_profile(path)
