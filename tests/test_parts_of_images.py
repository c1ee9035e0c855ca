"""Parts of images that are generated: filled, extended, cropped, and enlarged in a second pass."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.a1111 import parse
from latentc.pipelines.layout import lay_out
from latentc.pipelines.png import drawings, read, texts
from latentc.sampling.given import Given, with_kept
from latentc.sampling.image import resized
from latentc.sampling.inpaint import softened

from .images import diffusers_images, mask, noises, photo

REQUEST = Request(prompt="a lighthouse", negative_prompt="fog", width=144, height=80, steps=4, seed=3)


def asked(**changes):
    return REQUEST.model_copy(update=changes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("family", ["sd1", "sd1_inpainting"])
def test_a_crop_is_diffusers_own(bundle, checkpoint, opened, monkeypatch, family):
    """Inside of the mask; outside, the bytes are the image's own."""
    request = asked(scheduler="ddim", strength=0.7, width=128, height=128, crop=16, guidance=6.0)
    image, area = photo(300, 200), np.zeros((200, 300), np.uint8)
    area[80:130, 190:260] = 255
    latents, image_noise = noises(bundle(family), request)
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *rest, _own=Image.Image.resize, **more: (
            self if size == (128, 128) and self.size == (300, 200) else _own(self, size, *rest, **more)
        ),
    )  # the test's own resizing of the whole image
    expected, _ = diffusers_images(
        family, checkpoint(family), request, image, latents, image_noise, monkeypatch,
        area=area, output_type="pil", padding_mask_crop=16,
    )  # fmt: skip
    monkeypatch.undo()
    result = opened(family)(request, image=image, mask=area, latents=latents, image_noise=image_noise)
    made, theirs = result.images[0], np.asarray(expected[0])
    assert made.shape == theirs.shape == (200, 300, 3)
    assert (made[area == 0] == image[area == 0]).all()
    inner = np.s_[86:124, 196:254]
    assert psnr_db(theirs[inner].astype(np.float64), made[inner].astype(np.float64)) >= 60
    assert psnr_db(image[inner].astype(np.float64), made[inner].astype(np.float64)) < 30, "nothing was generated"
    assert result.request.width == 128


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sd1_inpainting"])
def test_an_extended_image_keeps_its_pixels(opened, family):
    image = photo(128, 72)
    request = Request(prompt="a hill", steps=3, seed=1, outpaint=(16, 0, 0, 24))
    result = opened(family)(request, image=image)
    assert (result.request.width, result.request.height, result.request.strength) == (144, 96, 1)
    assert result.images.shape == (1, 96, 144, 3)
    assert (result.images[0, :64, 24 + 16 :] == image[:64, 24:]).all()
    new = result.images[0, 76:]
    assert new.std(axis=0).mean() > 1, "copies of the edge were left"
    again = opened(family)(result.request, image=image)
    np.testing.assert_array_equal(again.images, result.images)


@pytest.mark.slow
def test_what_the_area_is_filled_with_is_seen(opened):
    pipeline, image, area = opened("sd1"), photo(144, 80), mask()
    inner = np.s_[30:50, 46:90]
    image[area > 127] = (255, 0, 255)
    request = asked(strength=0.25, steps=8, guidance=1.0)
    found = {
        fill: pipeline(request.model_copy(update={"fill": fill}), image=image, mask=area)
        for fill in (None, "edge", "noise")
    }
    assert psnr_db(found[None].latents, found["edge"].latents) < 40
    assert psnr_db(found["edge"].latents, found["noise"].latents) < 40
    for one in found.values():
        assert (one.images[0][area < 128] == image[area < 128]).all()
    assert np.abs(found["noise"].images[0][inner].astype(int) - found[None].images[0][inner]).mean() > 2
    with pytest.raises(RequestError, match="fill=edge has no effect at a strength of 1"):
        pipeline(asked(fill="edge"), image=image, mask=area)


REFUSED = {
    "crop needs an image": ({"crop": 8}, {}),
    "fill needs a mask": ({"fill": "edge"}, {"image": photo()}),
    "mask_blur softens the edge of a mask": ({"mask_blur": 4, "outpaint": (0, 8, 0, 0)}, {"image": photo()}),
    "outpaint extends the image by 0 pixels": ({"outpaint": (0, 0, 0, 0)}, {"image": photo()}),
    "hires enlarges what is generated from a prompt alone": ({"hires": 2.0}, {"image": photo()}),
    "hires_steps 3, but no hires": ({"hires_steps": 3}, {}),
    "hires_steps is 6, but the timesteps of this request are 4 steps": (
        {"hires": 2.0, "hires_steps": 6, "timesteps": (900, 600, 300, 20), "steps": 4, "scheduler": "ddim"},
        {},
    ),
    "each side has to be from 64 to 8192": (
        {"width": None, "height": None, "outpaint": (0, 8, 0, 0)},
        {"image": photo()[:40, :64]},
    ),
    "leaves no denoiser call": ({"hires": 2.0, "hires_strength": 0.1}, {}),
}


@pytest.mark.parametrize(("says", "given"), REFUSED.items(), ids=range(len(REFUSED)))
def test_requests_that_are_refused(opened, says, given):
    changes, passed = given
    with pytest.raises(RequestError, match=says.replace("crop needs", "crop needs?")):
        opened("sd1")(asked(**changes), **passed)


@pytest.mark.slow
def test_a_second_pass_is_image_to_image_of_the_enlarged_image(opened):
    """Which is compared with diffusers' own pipeline elsewhere."""
    pipeline = opened("sd1")
    first = pipeline(asked(width=64, height=64, count=2))
    both = pipeline(asked(width=64, height=64, count=2, hires=1.5, hires_strength=0.5, hires_steps=6))
    assert both.images.shape == (2, 96, 96, 3)
    for index, image in enumerate(first.images):
        second = asked(width=96, height=96, seed=3 + index, strength=0.5, steps=6)
        expected = pipeline(second, image=resized(image, 96, 96))
        np.testing.assert_array_equal(both.images[index], expected.images[0])
    assert any("enlarged from 64x64 to 96x96 pixels" in one and "0.5" in one for one in both.notices)
    assert "vae_encoder" in both.engines
    assert len(both.step_seconds) == len(first.step_seconds) + 2 * len(expected.step_seconds)
    assert both.origin.bundle == expected.origin.bundle
    assert pipeline(asked(width=64, height=64, hires=2.0)).request.hires_strength == 0.7


@pytest.mark.slow
def test_the_command_stores_all_of_it(opened, command, tmp_path):
    folder = opened("sd1").bundle.folder
    Image.fromarray(photo(128, 96)).save(tmp_path / "photo.png")
    options = ("--profile", "cpu-onnxruntime", "--steps", 4, "--seed", 5, "--json", "-o")
    out = tmp_path / "a.png"
    outpaint = ("--outpaint", "0,0,32,0", "--fill", "noise", "--strength", 0.75)
    code, said, err = command("run", folder, "a", "--image", tmp_path / "photo.png", *outpaint, *options, out)
    assert code == 0, err
    record = json.loads(said)["request"]
    assert (record["outpaint"], record["fill"], record["width"]) == ([0, 0, 32, 0], "noise", 160)
    with Image.open(out) as made:
        assert 'Masked content: latent noise, Outpaint: "0,0,32,0"' in made.text["parameters"]
        first = np.asarray(made)
    code, _, err = command("run", folder, "--from", out, "--image", tmp_path / "photo.png", "-o", tmp_path / "b.png",
                           "--profile", "cpu-onnxruntime")  # fmt: skip
    assert code == 0, err
    np.testing.assert_array_equal(first, Image.open(tmp_path / "b.png"))
    code, said, err = command("run", folder, "a", "--size", 64, "--hires", 2, *options, tmp_path / "c.png")
    assert code == 0, err
    assert read(tmp_path / "c.png").request.hires == 2
    with Image.open(tmp_path / "c.png") as made:
        assert made.size == (128, 128)
        assert "Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Lanczos" in made.text["parameters"]
    code, _, err = command("run", folder, "a", "--image", tmp_path / "photo.png", "--outpaint", "1,2", *options, out)
    assert code == 1
    assert "use LEFT,TOP,RIGHT,BOTTOM in pixels" in err


def test_a_blurred_mask_mixes_both_images_by_its_shares(opened):
    """As the web UI: by a Gaussian blur of the mask, here Pillow's own."""
    pipeline, image, area = opened("sd1"), photo(144, 80), np.zeros((80, 144), np.uint8)
    area[24:56, 40:104] = 255
    soft = np.asarray(Image.fromarray(area).filter(ImageFilter.GaussianBlur(5)))
    hard = np.where(soft >= 128, 255, 0).astype(np.uint8)
    found, plain = (
        pipeline(asked(strength=0.7, mask_blur=blur), image=image, mask=one).images[0].astype(np.float64)
        for blur, one in ((5, area), (0, hard))
    )
    kept = soft == 0
    assert (found[kept] == image[kept]).all()
    assert (plain[hard == 0] == image[hard == 0]).all(), "0 is a hard edge"
    shares = (soft / 255)[..., None]
    expected = (image + shares * (plain - image)).round()
    assert np.abs(found - expected)[hard > 0].max() <= 1
    edge = (soft > 20) & (hard == 0)
    assert (found[edge] != image[edge]).any(), "outside of the area too"
    cropped = pipeline(asked(strength=0.7, mask_blur=5, crop=8, width=64, height=64), image=image, mask=area)
    assert (cropped.images[0][kept] == image[kept]).all()
    assert (cropped.images[0][edge] != image[edge]).any()
    text = texts(next(drawings(cropped)))["parameters"]
    assert "Mask blur: 5" in text
    assert parse(text).request.mask_blur == 5


def test_a_crop_with_a_blurred_mask_has_no_seam(bundle):
    """What is mixed in is the blurred mask itself, also near the border of what is drawn."""
    model, area = bundle("sd1").manifest.model, np.zeros((320, 320), np.uint8)
    area[120:200, 120:200] = 255
    image = np.zeros((320, 320, 3), np.uint8)
    laid = lay_out(asked(width=128, height=128, crop=0, mask_blur=16), model, image, area)
    found = laid.placed(np.full((1, 128, 128, 3), 255, np.uint8))[0, :, :, 0].astype(int)
    soft = np.asarray(Image.fromarray(area).filter(ImageFilter.GaussianBlur(16))).astype(int)
    assert np.abs(found - soft).max() <= 1
    assert found[160, :].max() > 250


@pytest.mark.parametrize("sides", [(512, 256), (100, 256)], ids=["smaller", "larger"])
def test_a_mask_of_another_size_leaves_what_it_keeps(sides):
    """Resized masks have no overshoot beside their edges."""
    own, drawn = sides
    one = np.zeros((own, own), np.uint8)
    one[own // 3 :, own // 4 :] = 255
    images, image = np.full((1, drawn, drawn, 3), 255, np.uint8), np.zeros((drawn, drawn, 3), np.uint8)
    request = asked(width=drawn, height=drawn, mask_blur=0)
    found = with_kept(images, request, Given(image, np.zeros(1), one))[0, :, :, 0]
    assert set(np.unique(found)) == {0, 255}
    soft = softened(one, 5)
    blurred = asked(width=drawn, height=drawn, mask_blur=5)
    mixed = with_kept(images, blurred, Given(image, np.zeros(1), soft))[0, :, :, 0]
    reached = Image.fromarray((soft > 0).astype(np.uint8) * 255)
    kept = np.asarray(reached.resize((drawn, drawn), Image.Resampling.BOX)) == 0
    assert (mixed[kept] == 0)[1:-1].mean() > 0.99
    assert (np.diff(mixed[drawn // 2].astype(int)) >= 0).all()
