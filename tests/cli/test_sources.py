"""What `export` takes from elsewhere, and what `inspect` says of it."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (lambda other: ["--unet", other], "is a UNet of Stable Diffusion XL"),
        (lambda other: ["--vae", other / "unet"], "holds the class UNet2DConditionModel"),
        (lambda _: ["--variant", "ema"], "has no weights of the variant 'ema'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(latentc, options, says, checkpoint, tmp_path):
    done = latentc("export", checkpoint("sd1"), "-o", tmp_path / "out", *options(checkpoint("sdxl")))
    assert done.returncode == 1
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_inspect_says_where_components_are_from(latentc, own_bundle, edit_manifest):
    opened = own_bundle()

    def change(value):
        other = {"kind": "hub", "location": "someone/vae", "revision": "0" * 40, "variant": "fp16", "digest": "f" * 64}
        value["components"] = {"vae": other}
        value["notices"] = ["A thing was left out."]

    edit_manifest(opened, change)
    lines = latentc("inspect", opened.folder).stdout.splitlines()
    assert "vae from someone/vae, variant fp16 (digest ffffffffffff)" in lines
    assert "note: A thing was left out." in lines
    found = json.loads(latentc("inspect", opened.folder, "--json").stdout)
    assert found["components"]["vae"]["location"] == "someone/vae"
    assert found["notices"] == ["A thing was left out."]
