"""Stability's REST API, over HTTP: its typed client is a package of npm."""

import base64
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.serving.errors import ApiError
from latentc.serving.stability import from_fields, from_form, from_v2, inpainted, outpainted

from .conftest import MODEL, asking
from .guided import png

SIDES = {"width": 64, "height": 64}
URL = f"/v1/generation/{MODEL}"


def pixels_of(content):
    return np.asarray(Image.open(BytesIO(content)))


@pytest.fixture(scope="module")
def image():
    down, across = np.mgrid[0:64, 0:64]
    return np.stack([down * 3 % 256, across * 2 % 256, (down + across) % 256], -1).astype(np.uint8)


def test_text_to_image(http, gate):
    body = {
        "text_prompts": [
            {"text": "a hut (old)", "weight": 1}, {"text": "red", "weight": 0.5}, {"text": "fog", "weight": -1},
        ],
        "cfg_scale": 5, "sampler": "K_EULER", "samples": 2, "seed": 7, "steps": 4, **SIDES,
    }  # fmt: skip
    found = http.post(f"{URL}/text-to-image", json=body).json()["artifacts"]
    own = asking(r"a hut \(old\), (red:0.5)", 7, count=2, negative_prompt="fog", prompt_syntax="a1111")
    for one, alone, seed in zip(found, gate(own).images, (7, 8), strict=True):
        assert (one["seed"], one["finishReason"]) == (seed, "SUCCESS")
        assert np.array_equal(pixels_of(base64.b64decode(one["base64"])), alone)
    refused = http.post(f"{URL}/text-to-image", json=body, headers={"accept": "image/png"})
    assert (refused.status_code, "2 samples" in refused.json()["message"]) == (400, True)
    assert (
        "artifacts"
        in http.post(f"{URL}/text-to-image", json=body, headers={"accept": "application/json, text/plain, */*"}).json()
    )  # as axios sends it
    single = http.post(f"{URL}/text-to-image", json={**body, "samples": 1}, headers={"accept": "image/png"})
    assert (single.headers["content-type"], single.headers["seed"]) == ("image/png", "7")
    assert np.array_equal(pixels_of(single.content), gate(own.model_copy(update={"count": 1})).images[0])


def test_image_to_image_and_masking(http, gate, image):
    fields = {"text_prompts[0][text]": "a hut", "cfg_scale": "5", "sampler": "K_EULER", "seed": "3", "steps": "4"}
    sent = {"init_image": ("a.png", png(image), "image/png")}
    found = http.post(f"{URL}/image-to-image", data={**fields, "image_strength": "0.5"}, files=sent).json()
    own = asking("a hut", 3, strength=0.5, prompt_syntax="a1111", width=None, height=None)
    assert np.array_equal(
        pixels_of(base64.b64decode(found["artifacts"][0]["base64"])), gate(own, image=image).images[0]
    )
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    sent["mask_image"] = ("b.png", png(255 - mask), "image/png")
    black = {**fields, "mask_source": "MASK_IMAGE_BLACK"}
    found = http.post(f"{URL}/image-to-image/masking", data=black, files=sent).json()
    own = asking("a hut", 3, prompt_syntax="a1111", width=None, height=None)
    alone = gate(own, image=image, mask=mask)
    assert np.array_equal(pixels_of(base64.b64decode(found["artifacts"][0]["base64"])), alone.images[0])


def test_v2beta(http, gate, image):
    body = {"prompt": (None, "a hut"), "seed": (None, "5"), "output_format": (None, "webp")}
    found = http.post("/v2beta/stable-image/generate/sd3", files=body, headers={"accept": "image/*"})
    assert found.headers["content-type"] == "image/webp"
    assert found.headers["seed"] == "5"
    assert pixels_of(found.content).shape == (128, 128, 3)  # its own size
    clear = np.dstack([image, np.full((64, 64), 255, np.uint8)])
    clear[:32, :, 3] = 0
    sent = {"prompt": (None, "a hut"), "seed": (None, "5"), "grow_mask": (None, "0"), "image": ("a.png", png(clear))}
    found = http.post("/v2beta/stable-image/edit/inpaint", files=sent, headers={"accept": "application/json"}).json()
    assert found["finish_reason"] == "SUCCESS"
    alone = gate(Request(prompt="a hut", seed=5), image=image, mask=255 - clear[..., 3])
    assert np.array_equal(pixels_of(base64.b64decode(found["image"])), alone.images[0])
    sent = {"seed": (None, "5"), "left": (None, "16"), "down": (None, "8"), "image": ("a.png", png(image))}
    found = http.post("/v2beta/stable-image/edit/outpaint", files=sent)
    alone = gate(Request(prompt="", seed=5, outpaint=(16, 0, 0, 8)), image=image)
    assert np.array_equal(pixels_of(found.content), alone.images[0])


def test_engines(http):
    assert [one["id"] for one in http.get("/v1/engines/list").json()] == [MODEL]
    unknown = http.post("/v2beta/stable-image/generate/ultra", json={})
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_prompts": []}, "text_prompts"),
        ({"text_prompts": [{"text": "x", "weight": -1}]}, "positive weight"),
        ({"text_prompts": [{"text": "x", "weight": float("nan")}]}, "out of range"),
        ({"style_preset": "anime"}, "style_preset"),
        ({"clip_guidance_preset": "FAST_BLUE"}, "clip_guidance_preset"),
        ({"sampler": "K_BEST"}, "sampler"),
        ({"seed": -3}, "seed"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_cannot_be_done_is_refused(fields, said):
    with pytest.raises((ApiError, RequestError), match=said):
        from_fields({"text_prompts": [{"text": "a hut"}], **fields})


def test_forms_that_are_refused(image):
    prompt, file = {"text_prompts[0][text]": "a hut"}, {"init_image": [png(image)]}
    schedule = {**prompt, "init_image_mode": "STEP_SCHEDULE", "step_schedule_start": "0.6"}
    assert from_form(schedule, file).request.strength == pytest.approx(0.6)  # 0 is the image itself
    assert from_form({**prompt, "image_strength": "0.3"}, file).request.strength == pytest.approx(0.7)
    assert from_form({**prompt, "mode": "IMAGE_STRENGTH", "image_strength": "0.3"}, file).request.strength == 0.7
    for fields, files, said in (
        (prompt, {}, "init_image is needed"),
        ({**schedule, "mode": "IMAGE_STRENGTH"}, file, "differ"),
        ({**schedule, "step_schedule_end": "0.5"}, file, "step_schedule_end"),
        ({**prompt, "image_strength": "much"}, file, "image_strength must be a number"),
    ):
        with pytest.raises(ApiError, match=said):
            from_form(fields, files)
    with pytest.raises(ApiError, match="mask_source is 'RED'"):
        from_form({**prompt, "mask_source": "RED"}, file, masked=True)
    wide = from_v2({"prompt": "x", "aspect_ratio": "16:9"}, {}, (1024, 1024)).request
    assert (wide.width, wide.height) == (1344, 768)
    with pytest.raises(ApiError, match=r"^'steps' is not supported by this route. Leave it out.$"):
        from_v2({"prompt": "x", "steps": "5"}, {}, (64, 64))
    for fields in ({"mode": "both"}, {"aspect_ratio": "7:1"}, {"prompt": ""}, {"zoom": "2"}):
        with pytest.raises(ApiError):
            from_v2({"prompt": "x", **fields}, {}, (64, 64))
    one, other = {"image": [png(image)]}, {"style_image": [b"x"]}
    masked = {**file, "mask_image": [b"x"]}
    with pytest.raises(ApiError, match="is for the mode image-to-image"):
        from_v2({"prompt": "x"}, one, (64, 64))
    with pytest.raises(ApiError, match="creativity other than 0.5"):
        outpainted({"left": "8", "creativity": "0.4"}, one)
    for read, fields, files in (
        (from_form, prompt, file),
        (partial(from_form, masked=True), {**prompt, "mask_source": "INIT_IMAGE_ALPHA"}, masked),
        (partial(from_v2, size=(64, 64)), {"prompt": "x"}, {}),
        (inpainted, {"prompt": "x"}, one),
        (outpainted, {"left": "8"}, one),
    ):
        with pytest.raises(ApiError, match="Unknown file '(style|mask)_image'"):
            read(fields, {**other, **files} if "mask_source" not in fields else files)
    with pytest.raises(RequestError, match="no transparency"):
        inpainted({"prompt": "x"}, {"image": [png(image)]}).read()


@pytest.mark.parametrize("grown", [0, 1, 5, 8])
def test_the_white_of_a_mask_grows_on_each_side(image, grown):
    mask = np.zeros((64, 64), np.uint8)
    mask[20, 30] = mask[0, 0] = 255
    sent = {"image": [png(image)], "mask": [png(mask)]}
    found = inpainted({"prompt": "x", "grow_mask": str(grown)}, sent).read()["mask"].pixels
    wanted = np.zeros((64, 64), np.uint8)
    wanted[20 - grown : 21 + grown, 30 - grown : 31 + grown] = wanted[: 1 + grown, : 1 + grown] = 255
    assert np.array_equal(found, wanted)
