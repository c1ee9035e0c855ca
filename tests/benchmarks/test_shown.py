"""Measurements of requests with images: what is asked, and that the measured engines see the same images."""

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.aspects import request_title
from latentc.benchmarks.bench import bench
from latentc.benchmarks.plan import PROMPT, SEED, Plan, requests_of
from latentc.benchmarks.shown import Files
from latentc.core.errors import RequestError
from latentc.core.images import pixels_sha256
from latentc.core.request import STRENGTH, STRENGTH_MASKED, Request
from latentc.pipelines.picture import load_mask, load_picture
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

SMALL = {"sizes": ((64, 72),), "steps": 4, "repeat": 1, "ceiling": False}


@pytest.fixture
def files(tmp_path):
    """A photo that is stored turned, as phones do, and a mask of its left half."""
    random = np.random.default_rng(4)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=turned)
    mask = np.zeros((72, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "photo.jpg", tmp_path / "mask.png"


def test_a_request_has_the_digests_of_its_images(bundle, files, measured):
    photo, mask = files
    (plain,) = requests_of([bundle("sd1")], Plan((), **SMALL))
    (changed,) = requests_of([bundle("sd1")], Plan((), files=Files(photo), **SMALL))
    (masked,) = requests_of([bundle("sd1")], Plan((), files=Files(photo, mask), **SMALL))
    assert (plain.strength, plain.image_sha256) == (None, None)
    assert (changed.strength, changed.mask_sha256) == (STRENGTH, None)
    assert changed.image_sha256 == masked.image_sha256 == pixels_sha256(load_picture(photo).pixels)
    assert (masked.strength, masked.mask_sha256) == (STRENGTH_MASKED, pixels_sha256(load_mask(mask).pixels))
    rows = [measured("x", (1.0,)).model_copy(update={"request": one}) for one in (plain, changed, masked)]
    assert request_title(rows[0]) == f"{PROMPT!r}, guidance 7.5, seed {SEED}"
    assert f"image {changed.image_sha256[:12]}, strength 0.8, guidance" in request_title(rows[1])
    assert f"mask {masked.mask_sha256[:12]}" in request_title(rows[2])


def test_what_cannot_be_measured_is_refused(bundle, files, tmp_path):
    photo, mask = files
    with pytest.raises(RequestError, match="A mask selects what to generate of an image. Pass an image too"):
        list(requests_of([bundle("sd1")], Plan((), files=Files(mask=mask))))
    with pytest.raises(RequestError, match="ControlNet"):
        list(requests_of([bundle("sd1")], Plan((), files=Files(control=(photo,)))))
    with pytest.raises(RequestError, match="IP-Adapter"):
        list(requests_of([bundle("sd1")], Plan((), files=Files(style=photo))))
    with pytest.raises(RequestError, match="inpainting model.*Pass both, with --image and --mask"):
        list(requests_of([bundle("sd1_inpainting")], Plan((), files=Files(photo))))
    results = tmp_path / "results.jsonl"
    for family, more in (("sd1", {"suite": True}), ("scenes", {"captions": 2}), ("sd1_inpainting", {"suite": True})):
        with pytest.raises(RequestError, match="--suite and --captions generate from prompts alone. Leave them out"):
            bench(bundle(family), Plan((), files=Files(photo, mask), **more, **SMALL), results)
    with pytest.raises(RequestError, match="diffusers is not measured with images beside the prompt. Use"):
        bench(bundle("sd1"), Plan((), ("diffusers",), files=Files(photo), **SMALL), results)
    assert not results.exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sd1_inpainting"])
def test_the_measured_engines_see_the_images(bundle, files, tmp_path, family):
    opened, profile, results = bundle(family), load_profile("cpu-onnxruntime"), tmp_path / "results.jsonl"
    plan = Plan((profile,), ("torch-eager",), files=Files(*files), keep=tmp_path / "kept", **SMALL)
    _, own, eager = bench(opened, plan, results)
    photo, mask = files
    asked = Request(prompt=PROMPT, width=64, height=72, steps=4, seed=SEED)
    with Pipeline.open(opened, profile) as pipeline:
        wanted = pipeline(asked, image=photo, mask=mask).images[0]
        assert (pipeline(asked, image=photo, mask=255 - np.asarray(Image.open(mask))).images[0] != wanted).any()
    for row in (own, eager):
        assert row.error is None
        assert all(draw.text_encoder > 0 and draw.image_encoder > 0 for draw in row.draws)
        drawn = np.asarray(Image.open(tmp_path / row.pictures[0]))
        assert np.abs(drawn.astype(int) - wanted).max() <= (0 if row is own else 1)
