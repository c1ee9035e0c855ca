"""Image to image against diffusers' own pipelines, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.picture import load_mask, read_picture
from latentc.pipelines.png import read
from latentc.sampling.inpaint import pasted
from latentc.sampling.scaling import scaled

from .images import PIPELINES, diffusers_images, mask, noises, photo

PROFILES = ("cpu-onnxruntime", "cpu-openvino-f32")
REQUEST = Request(
    prompt="a lighthouse on a cliff", negative_prompt="fog", width=144, height=80, steps=8, guidance=6.0, strength=0.6
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("changes", [{}, {"strength": 1.0, "steps": 3, "count": 2}], ids=["guided", "two"])
@pytest.mark.parametrize("family", PIPELINES)
def test_images_are_diffusers_own(bundle, checkpoint, opened, monkeypatch, family, changes):
    request, image = REQUEST.model_copy(update=changes), photo()
    if family in ("sd1", "sd2"):  # whose own scheduler, PNDM, diffusers starts wrongly in the middle
        request = request.model_copy(update={"scheduler": "ddim"})
    latents, image_noise = noises(bundle(family), request)
    given = request, image, latents, image_noise
    expected, called = diffusers_images(family, checkpoint(family), *given, monkeypatch)
    expected = (expected * 255).round()
    assert expected.std() > 5, "a flat image shows nothing"
    for name in PROFILES if not changes else PROFILES[:1]:
        result = opened(family, name)(request, image=image, latents=latents, image_noise=image_noise)
        assert len(result.step_seconds) == len(called)
        assert psnr_db(expected, result.images.astype(np.float64)) >= 60, name
        assert any(f"{len(called)} " in one and "with a strength of" in one for one in result.notices)
    assert result.seconds["vae_encoder"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd1", {"strength": 1.0, "scheduler": "ddim"}),
        ("sd1", {"strength": 0.7, "scheduler": "ddim", "count": 2}),
        ("sd2", {"strength": 0.7, "scheduler": "ddim"}),
        ("sdxl", {"strength": 0.99}),
        ("sd3", {"strength": 0.7}),
        ("sd3", {"strength": 1.0, "steps": 3}),
    ],
)
def test_inpainting_is_diffusers_own(bundle, checkpoint, opened, monkeypatch, family, changes):
    request, image, area = REQUEST.model_copy(update=changes), photo(), mask()
    latents, image_noise = noises(bundle(family), request)
    given = request, image, latents, image_noise
    expected, called = diffusers_images(family, checkpoint(family), *given, monkeypatch, area=area)
    for name in PROFILES:
        result = opened(family, name)(request, image=image, mask=area, latents=latents, image_noise=image_noise)
        assert len(result.step_seconds) == len(called)
        found = scaled(bundle(family).manifest.model, result.latents)
        # Images would be no reference: its SD3 pipeline decodes without shift.
        assert psnr_db(expected.numpy(), found) >= 60, name
    original = np.asarray(Image.fromarray(image).resize((144, 80), Image.Resampling.LANCZOS))
    inner = np.zeros((80, 144), bool)
    inner[32:48, 48:88] = True
    for one in result.images:
        assert np.array_equal(one[area < 128], original[area < 128]), "what is kept is not the image's own pixels"
        assert psnr_db(original[inner].astype(np.float64), one[inner].astype(np.float64)) < 30, "nothing was generated"


@pytest.mark.slow
def test_a_white_mask_at_full_strength_is_text_to_image(opened):
    pipeline, request = opened("sd1"), REQUEST.model_copy(update={"seed": 3, "strength": 1.0})
    white = Image.new("RGBA", (144, 80), "white")
    inpainted = pipeline(request, image=photo(), mask=white)
    drawn = pipeline(REQUEST.model_copy(update={"seed": 3, "strength": None}))
    np.testing.assert_array_equal(inpainted.images, drawn.images)
    assert "The transparency of the mask was ignored." in inpainted.notices
    assert inpainted.engines.keys() - drawn.engines.keys() == {"vae_encoder"}
    assert inpainted.origin.bundle != drawn.origin.bundle, "the encoder determines the image too"


def test_the_edge_of_what_is_pasted():
    """The kept pixels are the original's; inside the area, also on thin lines, those that were generated prevail."""
    original, made = np.zeros((64, 64, 3), np.uint8), np.full((1, 64, 64, 3), 200, np.uint8)
    area = np.zeros((64, 64), bool)
    area[16:48, 16:48] = area[4, 8:56] = area[54:58, 8:56] = True
    image = pasted(made, original, area)[0, ..., 0]
    assert not image[~area].any()
    assert (image[22:42, 22:42] == 200).all()
    edge = image[16:23, 32].astype(int)
    assert (np.diff(edge) >= 0).all()
    assert 0 < edge[1] < 200
    assert image[4, 16:48].min() > 150
    assert image[54:58, 16:48].max() > 190
    whole = pasted(made, original, np.ones((64, 64), bool))
    assert (whole == 200).all()


def test_what_is_said_of_masks(tmp_path):
    """Messages and notices name the mask, not the image; a mask in the alpha channel is not ignored silently."""
    Image.new("RGBA", (32, 32), (0, 0, 0, 90)).save(tmp_path / "clear.png")
    assert load_mask(tmp_path / "clear.png").notices == ("The transparency of the mask was ignored.",)
    for says, array in {
        r"The mask is an array of shape \[32, 32, 4\]; .* an array \[height, width\]": np.zeros((32, 32, 4), np.uint8),
        "The mask is int64; uint8, or floats": np.zeros((32, 32), np.int64),
        "The mask has values outside 0 to 1": np.full((32, 32), 255.0),
        "The mask has 1x1 pixels; at least 16 a side": np.ones((1, 1), bool),
    }.items():
        with pytest.raises(RequestError, match=says):
            load_mask(array)


def test_masks_that_are_refused(opened, tmp_path):
    pipeline, image = opened("sd1"), photo()
    black, thin = np.zeros((80, 144), np.uint8), np.zeros((80, 144), np.uint8)
    thin[33:36] = 255
    for one in (black, thin):
        with pytest.raises(RequestError, match="The mask selects nothing.*thinner than 8 pixels at 144x80"):
            pipeline(REQUEST, image=image, mask=one)
    with pytest.raises(RequestError, match="selects nothing.*The transparency of the mask was ignored"):
        pipeline(REQUEST, image=image, mask=Image.new("RGBA", (32, 32), (0, 0, 0, 90)))
    with pytest.raises(RequestError, match="Pass an image too"):
        pipeline(REQUEST.model_copy(update={"strength": None}), mask=mask())
    with pytest.raises(RequestError, match="another mask"):
        pipeline(REQUEST.model_copy(update={"mask_sha256": "0" * 64}), image=image, mask=mask())
    with pytest.raises(RequestError, match="with a mask with the SHA-256.*none was given"):
        pipeline(REQUEST.model_copy(update={"mask_sha256": "0" * 64}), image=image)
    with pytest.raises(RequestError, match="a request has only its digest"):
        Request(prompt="x", mask="m.png")


@pytest.mark.slow
def test_seeds_of_one_image_and_of_two(opened):
    """Image k of a request is image 0 of the seed k higher, with the image's noise too."""
    pipeline, image = opened("sd1"), photo()
    both = pipeline(REQUEST.model_copy(update={"seed": 4, "count": 2}), image=image).images
    second = pipeline(REQUEST.model_copy(update={"seed": 5}), image=image).images
    np.testing.assert_array_equal(both[1], second[0])
    other = pipeline(REQUEST.model_copy(update={"seed": 5}), image=photo()[:, ::-1]).images
    assert psnr_db(second.astype(np.float64), other.astype(np.float64)) < 40, "the image has no effect"


@pytest.mark.slow
def test_little_strength_keeps_the_image(opened):
    """With the smallest strength, latents are nearer to the image's than with the largest."""
    pipeline, image = opened("sd1"), photo(144, 80)
    kept = {
        strength: pipeline(REQUEST.model_copy(update={"strength": strength, "seed": 1}), image=image).latents
        for strength in (0.125, 0.5, 1.0)
    }
    text = pipeline(Request.model_validate(REQUEST.model_dump() | {"strength": None, "seed": 1})).latents
    away = [float(np.abs(kept[one] - kept[0.125]).mean()) for one in (0.5, 1.0)]
    assert away[0] < away[1]
    assert np.abs(kept[1.0] - text).mean() > 0


def test_a_bundle_without_an_encoder_refuses_an_image(bundle):
    manifest = bundle("sd1").manifest
    parts = {name: part for name, part in manifest.parts.items() if part.role != "encoder"}
    assert len(parts) < len(manifest.parts)
    with pytest.raises(RequestError, match="no VAE encoder, so it generates from a prompt alone"):
        read_picture(REQUEST, manifest.model_copy(update={"parts": parts}), photo())


def test_requests_that_are_refused(opened, bundle, tmp_path):
    pipeline, image = opened("sd1"), photo()
    with pytest.raises(RequestError, match=r"strength of 0\.01 of 8 steps leaves no denoiser call.*at least 0\.125"):
        pipeline(REQUEST.model_copy(update={"strength": 0.01}), image=image)
    with pytest.raises(RequestError, match=r"strength of 0\.6, and no image was given.*--image"):
        pipeline(REQUEST)
    with pytest.raises(RequestError, match="another image"):
        pipeline(REQUEST.model_copy(update={"image_sha256": "0" * 64}), image=image)
    stored = REQUEST.model_copy(update={"image_sha256": "0" * 64, "strength": None})
    with pytest.raises(RequestError, match="image with the SHA-256 000000000000.*no image was given"):
        pipeline(stored)
    with pytest.raises(RequestError, match="image_noise was passed in without an image"):
        pipeline(REQUEST.model_copy(update={"strength": None}), image_noise=np.zeros((1, 4, 10, 18), np.float32))
    with pytest.raises(RequestError, match=r"needs finite float32 \[1, 4, 10, 18\]"):
        pipeline(REQUEST, image=image, image_noise=np.zeros((1, 3, 80, 144), np.float32))
    for strength in (0, 1.5, float("nan"), "much"):
        with pytest.raises(RequestError, match="strength"):
            Request(prompt="a cat", strength=strength)
    with pytest.raises(RequestError, match=r"no denoiser call"):
        pipeline(REQUEST.model_copy(update={"scheduler": "heun", "strength": 0.1}), image=image)


@pytest.mark.slow
def test_the_command_stores_the_request_and_repeats_it(latentc, opened, tmp_path, monkeypatch):
    bundle = opened("sd1").bundle.folder
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    Image.fromarray(photo()[:, ::-1]).save(tmp_path / "other.png")

    monkeypatch.chdir(tmp_path)

    def run(*options):
        return latentc("run", bundle, "--profile", "cpu-onnxruntime", *options)

    Image.fromarray(mask()).save(tmp_path / "mask.png")
    asked = ("--image", "photo.png", "--size", "144x80", "--steps", "8", "--seed", "2")
    first = run("a cat", *asked, "--strength", "0.5", "-o", "a.png", "--json")
    assert first.returncode == 0, first.stderr
    record = json.loads(first.stdout)
    assert record["request"]["strength"] == 0.5
    assert len(record["step_seconds"]) == 5  # PNDM makes one more call than steps
    shown = read(tmp_path / "a.png")
    assert shown.request.strength == 0.5
    assert shown.request.image_sha256 == record["request"]["image_sha256"]
    with Image.open(tmp_path / "a.png") as made:
        assert "Denoising strength: 0.5" in made.text["parameters"]
    again = run("--from", "a.png", "--image", "photo.png", "-o", "b.png")
    assert again.returncode == 0, again.stderr
    assert "image " in again.stdout
    assert "another bundle" not in again.stdout
    assert np.array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))
    without = run("--from", "a.png", "-o", "c.png")
    assert without.returncode != 0
    assert "no image was given. Pass it with --image" in without.stderr
    assert "a.png was made from an image, with a strength of 0.5" in without.stderr
    assert "without --from" in without.stderr, "the stored strength cannot be left out"
    wrong = run("--from", "a.png", "--image", "other.png", "-o", "c.png")
    assert "another image" in wrong.stderr
    nothing = run("--image", "photo.png", "-o", "c.png")
    assert "has no prompt" in nothing.stderr
    default = run("a cat", *asked, "-o", "d.png", "--json")
    assert json.loads(default.stdout)["request"]["strength"] == 0.8
    assert not (tmp_path / "c.png").exists()
    masked = run("a cat", *asked, "--mask", "mask.png", "-o", "e.png", "--json")
    record = json.loads(masked.stdout)["request"]
    assert record["strength"] == 1
    assert read(tmp_path / "e.png").request.mask_sha256 == record["mask_sha256"]
    printed = latentc("show", "e.png").stdout
    for name in ("image", "mask"):
        assert f"{name}: needed to run it again, SHA-256 of its pixels {record[f'{name}_sha256']}" in printed
    refused = run("--from", "e.png", "--image", "photo.png", "-o", "f.png")
    assert "Pass it with --mask" in refused.stderr
    small = run("a cat", *asked, "--mask", "photo.png", "-o", "g.png")
    assert small.returncode == 0, small.stderr
    assert "The mask has" not in small.stdout, "the image has the same size"
