"""Where what is generated lies in a picture, against diffusers' own cropping, and in which size it is drawn."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.parts import model_facts
from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.pipelines.layout import around, framed, lay_out, size_of, spread
from latentc.sampling.inpaint import filled


def request(**given):
    return Request(prompt="x", **{"width": 128, "height": 128, **given})


def photo(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def area(height, width, left, top, right, bottom):
    made = np.zeros((height, width), bool)
    made[top:bottom, left:right] = True
    return made


@pytest.fixture(scope="module")
def model(checkpoint):
    return model_facts(open_checkpoint(str(checkpoint("sd1"))))


@pytest.fixture(scope="module")
def processor():
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)


def test_crops_are_diffusers_own(processor):
    random = np.random.default_rng(2)
    for _ in range(400):
        height, width = random.integers(40, 300, 2)
        left, right = np.sort(random.choice(width, 2, replace=False))
        top, bottom = np.sort(random.choice(height, 2, replace=False))
        made = area(height, width, left, top, right, bottom)
        drawn = (int(random.choice([64, 128, 192])), int(random.choice([64, 96, 256])))
        margin = int(random.integers(0, 60))
        mask = Image.fromarray(made.astype(np.uint8) * 255)
        assert around(made, *drawn, margin) == processor.get_crop_region(mask, *drawn, pad=margin)


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (40, 100), (33, 77)])
def test_frames_are_diffusers_own(processor, size):
    """But for one row or column that diffusers leaves black where the bars around an image are of odd size."""
    width, height = size
    image = photo(height, width)
    theirs = np.asarray(processor.resize(Image.fromarray(image), 96, 128, resize_mode="fill"))
    ours, (left, top, right, bottom) = framed(image, 128, 96)
    assert ours.shape == theirs.shape
    same = (ours == theirs).all(axis=-1)
    black = (theirs == 0).all(axis=-1)
    assert (same | black).all()
    assert same.mean() > 0.98
    inner = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(ours[top:bottom, left:right], inner)


def test_what_is_drawn_of_a_crop_is_pasted_back(model):
    image, mask = photo(200, 300), area(200, 300, 200, 40, 260, 70).astype(np.uint8) * 255
    layout = lay_out(request(crop=16), model, image, mask)
    assert layout.image.shape == (128, 128, 3)
    left, top, right, bottom = layout.box
    assert (left, right) == (184, 276)
    assert right - left == bottom - top
    drawn = np.full((2, 128, 128, 3), 90, np.uint8)
    whole = layout.placed(drawn)
    assert whole.shape == (2, 200, 300, 3)
    assert (whole[:, mask == 0] == image[mask == 0]).all()
    assert (whole[:, 46:64, 206:254] == 90).all()
    assert "Only 92x92 pixels around the mask, from (184, 9), were drawn, at 128x128." in layout.notices


def test_an_extended_image_keeps_its_pixels(model):
    image = photo(96, 100)
    asked = request(outpaint=(20, 0, 40, 32), width=None, height=None)
    assert size_of(asked, model, (100, 96)) == (160, 128)
    layout = lay_out(asked.model_copy(update={"width": 160, "height": 128}), model, image, None)
    np.testing.assert_array_equal(layout.image[:96, 20:120], image)
    np.testing.assert_array_equal(layout.image[:96, :20], np.repeat(image[:, :1], 20, axis=1))
    np.testing.assert_array_equal(layout.image[96:, 20:120], np.repeat(image[-1:], 32, axis=0))
    kept = layout.mask == 0
    assert kept[:88, 32:112].all()
    assert kept.sum() == 88 * 80, "at least 8 pixels beside each new area, and whole latents"
    with pytest.raises(
        RequestError, match=r"has 157x128, but this model generates multiples of 8. Extend it by 3 more"
    ):
        size_of(request(outpaint=(20, 0, 37, 32)), model, (100, 96))
    with pytest.raises(RequestError, match="160x128, which is the size that is drawn; 128x128 was requested"):
        size_of(request(outpaint=(20, 0, 40, 32)), model, (100, 96))
    wide = lay_out(request(outpaint=(20, 0, 37, 32), crop=8), model, image, None)
    assert wide.canvas.shape == (128, 157, 3)


SIZES = {
    (512, 768): (512, 768),  # near the model's own number of pixels
    (1024, 1024): (512, 512),
    (4000, 3000): (584, 440),
    (200, 90): (760, 336),
    (517, 515): (512, 512),
    (16, 1600): (64, 5120),
}


@pytest.mark.parametrize(("image", "made"), SIZES.items())
def test_the_default_size_keeps_the_proportions(model, image, made):
    model = model.model_copy(update={"default_size": 512})
    asked = Request(prompt="x")
    assert size_of(asked, model, image) == made
    assert size_of(asked, model, None) == (512, 512)
    assert size_of(asked.model_copy(update={"width": 640, "height": 64}), model, image) == (640, 64)
    fixed = ((512, 512), (768, 512), (512, 768))
    assert size_of(asked, model, image, fixed) == {(512, 768): (512, 768), (4000, 3000): (768, 512)}.get(
        image, (768, 512) if image == (200, 90) else (512, 768) if image == (16, 1600) else (512, 512)
    )


def test_filling_continues_the_colours_around():
    image = np.zeros((64, 80, 3), np.uint8)
    image[:, 40:] = (200, 100, 50)
    hole = area(64, 80, 30, 20, 50, 40)
    image[hole] = 255
    made = filled(image, hole)
    assert (made[~hole] == image[~hole]).all()
    assert (made[24:36, 30] < 60).all()
    assert np.abs(made[24:36, 49].astype(int) - (200, 100, 50)).max() < 60
    flat = np.full((33, 17, 3), 77, np.uint8)
    other = flat.copy()
    other[3:30, 2:15] = 0
    np.testing.assert_array_equal(filled(other, (other == 0).any(axis=-1)), flat)


@pytest.mark.parametrize(("height", "width", "by"), [(64, 80, 8), (5, 40, 8), (33, 33, 1)])
def test_an_area_is_spread_as_a_square_filter_does(height, width, by):
    some = np.random.default_rng(height).random((height, width)) < 0.01
    expected = Image.fromarray(some.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * by + 1))
    np.testing.assert_array_equal(spread(some, by), np.asarray(expected) > 0)


def test_thin_parts_of_a_mask_are_named(model):
    mask = area(128, 128, 64, 64, 96, 96)
    mask[33:36, :40] = True
    layout = lay_out(request(), model, photo(128, 128), mask.astype(np.uint8) * 255)
    assert any("thinner than 8 pixels at 128x128 select nothing" in one for one in layout.notices)
    whole = lay_out(request(), model, photo(128, 128), np.full((128, 128), 255, np.uint8))
    assert not whole.notices
    for mask in (np.zeros((128, 128), np.uint8), area(128, 128, 0, 33, 128, 36).astype(np.uint8) * 255):
        with pytest.raises(RequestError, match="The mask selects nothing"):
            lay_out(request(), model, photo(128, 128), mask)
    with pytest.raises(RequestError, match="The mask selects nothing"):
        lay_out(request(crop=4), model, photo(128, 128), np.zeros((128, 128), np.uint8))
