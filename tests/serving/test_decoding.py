"""Images that clients send: too many pixels are refused by the header, and decoding delays no other answer."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Event, Lock

import httpx2
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from latentc.pipelines.picture import load_clear
from latentc.serving.decoding import DECODERS, Decoder
from latentc.serving.errors import ApiError
from latentc.serving.limits import Limits
from latentc.serving.service import serve

from .conftest import ASKED, MODEL, PATIENCE, running

STABILITY = f"/v1/generation/{MODEL}/image-to-image"
TEXTS = {"text_prompts[0][text]": "a hut", "steps": "2"}
INPAINT = "/v2beta/stable-image/edit/inpaint"
MANY = 12
"""Edits at once: more than the threads in which answers are made."""


def png(side, mode="RGB", **texts):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    buffer = BytesIO()
    Image.new(mode, (side, side)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


SMALL, LARGE = png(64, "RGBA"), png(101, "RGBA")
IN_BASE64 = [base64.b64encode(one).decode() for one in (SMALL, LARGE)]
FORMS = {
    "openai, image": ("/v1/images/edits", {"prompt": "x"}, {"image": LARGE}),
    "openai, mask": ("/v1/images/edits", {"prompt": "x"}, {"image": SMALL, "mask": LARGE}),
    "stability, image": (STABILITY, TEXTS, {"init_image": LARGE}),
    "stability, mask": (
        f"{STABILITY}/masking", TEXTS | {"mask_source": "MASK_IMAGE_WHITE"}, {"init_image": SMALL, "mask_image": LARGE}
    ),
    "stability, transparent": (
        f"{STABILITY}/masking", TEXTS | {"mask_source": "INIT_IMAGE_ALPHA"}, {"init_image": LARGE}
    ),
    "stability, inpaint": (INPAINT, {"prompt": "x"}, {"image": SMALL, "mask": LARGE}),
    "stability, inpaint transparent": (INPAINT, {"prompt": "x"}, {"image": LARGE}),
}  # fmt: skip
BODIES = {
    "job, image": ("/v1/jobs", {"image": IN_BASE64[1]}),
    "job, mask": ("/v1/jobs", {"image": IN_BASE64[0], "mask": IN_BASE64[1]}),
    "web UI, image": ("/sdapi/v1/img2img", {"init_images": IN_BASE64[1:]}),
    "web UI, mask": ("/sdapi/v1/img2img", {"init_images": IN_BASE64[:1], "mask": IN_BASE64[1]}),
}


@pytest.fixture(scope="module")
def http(gate):
    limits = Limits(image_pixels=100 * 100)
    with running(serve({MODEL: gate}, limits)) as address, httpx2.Client(base_url=address, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of the images that are decoded."""
    seen, real = [], ImageFile.ImageFile.load

    def load(image):
        seen.append(image.size)
        return real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return seen


@pytest.mark.parametrize("case", [*FORMS, *BODIES])
def test_too_many_pixels_are_refused_by_the_header(http, decoded, case):
    if case in FORMS:
        path, data, files = FORMS[case]
        answer = http.post(path, data=data, files=files)
    else:
        path, fields = BODIES[case]
        answer = http.post(path, json={"prompt": "x", **fields})
    assert answer.status_code == (422 if path.startswith("/sdapi") else 400)
    assert "has 101x101 pixels, but the limit is 10,000 pixels. Pass a smaller image." in answer.text
    assert (101, 101) not in decoded


def test_the_limit_is_one_of_the_capabilities(http):
    assert http.get("/v1/capabilities").json()["limits"]["image_pixels"] == 10_000


def test_the_text_of_a_picture_is_read_without_its_pixels(http, decoded):
    picture = base64.b64encode(png(101, parameters="a hut\nSteps: 4")).decode()
    answer = http.post("/sdapi/v1/png-info", json={"image": picture})
    assert answer.json()["info"] == "a hut\nSteps: 4"
    assert decoded == []
    bad = base64.b64encode(b"no picture").decode()
    assert http.post("/sdapi/v1/png-info", json={"image": bad}).status_code == 400


def test_decoding_delays_no_other_answer(http, monkeypatch):
    """Of many masks, a few are decoded at once; meanwhile another request is answered, in other threads."""
    at_once, most, full, go, lock = [0], [0], Event(), Event(), Lock()

    def slow(mask):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            if at_once[0] == DECODERS:
                full.set()
        assert go.wait(PATIENCE)
        with lock:
            at_once[0] -= 1
        return load_clear(mask)

    monkeypatch.setattr("latentc.serving.openai.load_clear", slow)
    fields = {"prompt": "x", **{name: str(value) for name, value in ASKED.items()}, "steps": "1"}
    files = {"image": SMALL, "mask": SMALL}
    with ThreadPoolExecutor(MANY) as threads:
        sent = [threads.submit(http.post, "/v1/images/edits", data=fields, files=files) for _ in range(MANY)]
        try:
            assert full.wait(PATIENCE)
            other = http.post("/v1/images/generations", json={"prompt": "x", **ASKED, "steps": 1})
            assert other.status_code == 200
        finally:
            go.set()
        assert {one.result().status_code for one in sent} == {200}
    assert most == [DECODERS]


def test_images_that_wait_to_be_decoded_are_limited():
    """A third call is refused at once; once the others have ended, the next one is made."""

    async def called():
        decoder, going = Decoder(100, 2), Event()
        first = [asyncio.ensure_future(decoder(lambda: going.wait(60), {})) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="Images of 2 requests are being decoded") as refused:
            await decoder(bool, {})
        going.set()
        assert await asyncio.gather(*first) == [True, True]
        assert await decoder(lambda: 1, {}) == 1
        return refused.value.status

    assert asyncio.run(called()) == 429
