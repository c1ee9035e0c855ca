"""Images for ControlNets and an IP-Adapter over HTTP: the pipeline's own bytes for the same images."""

from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image, ImageOps

from latentc.serving.controlnet import controls_asked

from .conftest import ASKED, MODEL, asking
from .guided import picture, pixels, png, text_of
from .test_jobs import ended, submit

EDGES, SHADES, STYLE = picture(1), picture(2, 96), picture(3)
BOTH = [EDGES, SHADES]


def drawn(http, **more):
    job = submit(http, "a hut", 7, **more)
    assert ended(http, job)["status"] == "completed"
    (image,) = http.get(f"{job['poll_url']}/result").json()["images"]
    return np.asarray(Image.open(BytesIO(http.get(image["url"]).content)))


def test_a_job_has_the_pipelines_bytes(guided, guided_pipeline):
    settings = {"control_scale": [0.8, 1.5], "control_end": 0.5, "style_strength": 0.6}
    found = drawn(guided, control=[text_of(one) for one in BOTH], style=text_of(STYLE), **settings)
    expected = guided_pipeline(asking("a hut", 7, **settings), control=BOTH, style=STYLE).images[0]
    assert np.array_equal(found, expected)
    plain = guided_pipeline(asking("a hut", 7)).images[0]
    assert not np.array_equal(found, plain)
    assert np.array_equal(drawn(guided), plain)
    same = guided_pipeline(asking("a hut", 7), control=[EDGES, EDGES]).images[0]
    for listed in ([text_of(EDGES), None], [None, text_of(EDGES)]):
        assert np.array_equal(drawn(guided, control=listed), same)


def test_capabilities_say_what_a_model_takes(guided, http):
    found = guided.get("/v1/capabilities").json()["models"][MODEL]
    assert (found["controls"], found["style"]) == (2, True)
    plain = http.get("/v1/capabilities").json()["models"][MODEL]
    assert (plain["controls"], plain["style"]) == (0, False)


WRONG = {
    "one of two": ({"control": text_of(EDGES)}, "control", "1 image, but this model has 2 ControlNets"),
    "three of two": ({"control": [text_of(EDGES)] * 3}, "control", "3 images"),
    "none of two": ({"control": []}, "control", "0 images"),
    "only null": ({"control": [None, None]}, "control", "control has no image"),
    "not base64": ({"control": ["§", "§"]}, "control", "not valid base64"),
    "not a text": ({"control": [5, None]}, "control", "not a text"),
    "a list of styles": ({"style": [text_of(STYLE)]}, "style", "not a text"),
    "damaged": ({"control": [text_of(EDGES), "AAAA"]}, None, "The control image 2 is not an image"),
    "large": ({"control": [text_of(EDGES), text_of(picture(1, 101))]}, None, "The control image 2 has 101x101 pixels"),
    "a large style": ({"style": text_of(picture(1, 101))}, None, "The style image has 101x101 pixels"),
    "a scale without an image": ({"control_scale": 0.5}, None, "control_scale"),
    "a digest": ({"control_sha256": "0" * 64}, "control_sha256", "Unknown field"),
}


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/images/generations"])
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_taken_is_refused_in_words(guided, case, route):
    fields, param, words = WRONG[case]
    answer = guided.post(route, json={"prompt": "x", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["control", "style"])
def test_a_model_without_them(http, name, monkeypatch):
    monkeypatch.setattr("latentc.serving.decoding.check_file", None)  # nothing is decoded
    answer = http.post("/v1/jobs", json={"prompt": "x", name: text_of(EDGES)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert "This model has no" in answer.json()["error"]["message"]


def test_openais_client(guided_address, guided_pipeline):
    with openai.OpenAI(base_url=f"{guided_address}/v1", api_key="none", max_retries=0) as client:
        settings = {name: ASKED[name] for name in ("steps", "scheduler", "guidance")} | {"seed": 7}
        shown = {"control": [text_of(one) for one in BOTH], "style": text_of(STYLE)}
        one = client.images.generate(prompt="a hut", size="64x64", extra_body={**settings, **shown})
        expected = guided_pipeline(asking("a hut", 7), control=BOTH, style=STYLE).images[0]
        assert np.array_equal(pixels(one.data[0].b64_json), expected)
        one = client.images.generate(prompt="a hut", size="64x64", style="vivid", extra_body=settings)
        assert "style has no effect on this model." in one.model_extra["notices"]
        image = picture(4)
        settings["strength"] = 0.5
        expected = guided_pipeline(asking("a hut", 7, strength=0.5), image=image, control=BOTH, style=STYLE).images[0]
        edit = {"image": png(image), "prompt": "a hut", "size": "64x64"}
        one = client.images.edit(**edit, extra_body={**settings, **shown})
        assert np.array_equal(pixels(one.data[0].b64_json), expected)
        guided = guided_pipeline(asking("a hut", 7, strength=0.5, style_strength=0.6), image=image, style=STYLE)
        two = [("a.png", png(one)) for one in (image, STYLE)]
        one = client.images.edit(**edit | {"image": two}, extra_body={**settings, "style_strength": 0.6})
        assert np.array_equal(pixels(one.data[0].b64_json), guided.images[0])
        for wrong, said in (({"image": [*two, two[0]]}, "no third"), ({"extra_body": {**shown}}, "Several style")):
            with pytest.raises(openai.BadRequestError, match=said):
                client.images.edit(**edit | {"image": two} | wrong)
        files = [("image", png(image)), *(("control[]", png(each)) for each in BOTH), ("style", png(STYLE))]
        one = client.post(
            "/images/edits",
            cast_to=openai.types.ImagesResponse,
            body={"prompt": "a hut", "size": "64x64", **settings},
            files=[(name, ("a.png", content)) for name, content in files],
            options={"headers": {"Content-Type": "multipart/form-data"}},
        )
        assert np.array_equal(pixels(one.data[0].b64_json), expected)


@pytest.fixture(scope="module")
def webui(guided_address):
    where = urlsplit(guided_address)
    return webuiapi.WebUIApi(host=where.hostname, port=where.port, sampler="Euler", scheduler="uniform", steps=4)


def unit(image, **more):
    return webuiapi.ControlNetUnit(image=Image.fromarray(image), **more)


HUT = {"prompt": "a hut", "seed": 7, "cfg_scale": 5, "width": 64, "height": 64, "steps": 4, "alwayson_scripts": {}}
"""Without scripts of its own, the client adds units to a default that all later calls share."""


def test_units_of_the_web_uis_client(webui, guided_pipeline):
    first, second = webui.controlnet_model_list()
    assert first != second
    assert webui.controlnet_module_list() == ["none"]
    settings = {"weight": 0.8, "guidance_start": 0.25, "guidance_end": 0.75}
    units = [unit(SHADES), unit(EDGES, model=first, control_mode=0, **settings)]
    found = webui.txt2img(controlnet_units=units, **HUT)
    asked = {"control_scale": (0.8, 1.0), "control_start": (0.25, 0.0), "control_end": (0.75, 1.0)}
    asked["prompt_syntax"] = "a1111"
    expected = guided_pipeline(asking("a hut", 7, **asked), control=BOTH).images[0]
    assert np.array_equal(np.asarray(found.image), expected)
    off = unit(EDGES, enabled=False)
    found = webui.txt2img(controlnet_units=[off, unit(EDGES, control_mode=2)], **HUT)
    alone = {"control_scale": (1.0, 0.0), "guess_mode": True, "prompt_syntax": "a1111"}
    expected = guided_pipeline(asking("a hut", 7, **alone), control=[EDGES, EDGES]).images[0]
    assert np.array_equal(np.asarray(found.image), expected)
    wide = np.concatenate([EDGES, picture(5)], axis=1)
    found = webui.txt2img(controlnet_units=[unit(wide, resize_mode="Crop and Resize", model=second)], **HUT)
    middle = np.asarray(ImageOps.fit(Image.fromarray(wide), (64, 64), Image.Resampling.LANCZOS))
    one = {"control_scale": (0.0, 1.0), "prompt_syntax": "a1111"}
    expected = guided_pipeline(asking("a hut", 7, **one), control=[middle, middle]).images[0]
    assert np.array_equal(np.asarray(found.image), expected)
    image = Image.fromarray(EDGES)
    found = webui.img2img(images=[image], denoising_strength=0.5, controlnet_units=[webuiapi.ControlNetUnit()], **HUT)
    same = {"strength": 0.5, "control_scale": (1.0, 0.0), "prompt_syntax": "a1111"}
    expected = guided_pipeline(asking("a hut", 7, **same), image=EDGES, control=[EDGES, EDGES]).images[0]
    assert np.array_equal(np.asarray(found.image), expected)


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([{}], "args[0].image is missing"),
        ([{"image": "§"}], "args[0].image is not valid base64"),
        ([{"image": "AAAA"}], "args[0] is not an image"),
        ([{"image": text_of(picture(1, 101))}], "args[0] has 101x101 pixels"),
        ([{"image": {"image": "AAAA", "mask": "AAAA"}}], "args[0].image.mask"),
        ([{"image": "AAAA", "mask": "AAAA"}], "args[0].mask"),
        ([{"image": ["AAAA"]}], "args[0].image is not a text"),
        ([{"image": "AAAA", "module": "canny"}], "args[0].module is 'canny'"),
        ([{"image": "AAAA", "model": "other"}], "args[0].model is 'other'"),
        ([{"image": "AAAA", "control_mode": 1}], "args[0].control_mode is 1"),
        ([{"image": "AAAA", "control_mode": "CN"}], "args[0].control_mode is 'CN'"),
        ([{"image": "AAAA"}, {"image": "AAAA", "control_mode": 2}], "several control_modes"),
        ([{"image": "AAAA", "resize_mode": 7}], "args[0].resize_mode is 7"),
        ([{"image": text_of(EDGES[:32]), "resize_mode": 2}], "args[0].resize_mode is 'Resize and Fill'"),
        ([{"image": "AAAA", "weight": 3}], "weight"),
        ([{"image": "AAAA", "guidance_start": 0.8, "guidance_end": 0.2}], "begins at 0.8"),
        ([{"image": "AAAA"}] * 3, "3 units"),
        (["x"], "args[0] is not a unit"),
        ({"image": "AAAA"}, "is not a list"),
    ],
)
def test_units_that_are_refused(guided, units, words):
    fields = {**HUT, "alwayson_scripts": {"ControlNet": {"args": units}}}
    if words == "begins at 0.8":
        units[0]["image"] = text_of(EDGES)
    answer = guided.post("/sdapi/v1/txt2img", json=fields)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text


def test_fields_of_units_that_are_not_known_are_listed():
    sent = [{"image": "AAAA", "guidance": 0.5, "low_vram": True, "odd": 3, "other": None}, {"enabled": False, "far": 1}]
    asked = controls_asked({"controlnet": {"args": sent}}, ["one"], second=False)
    assert asked.values["control_end"] == (0.5,), "the older name of guidance_end"
    assert asked.notices == ("The fields [0].odd of alwayson_scripts.controlnet.args are not known, and were ignored.",)


def test_units_of_a_model_without_controlnets(http):
    scripts = {"controlnet": {"args": [{"image": text_of(EDGES)}]}}
    answer = http.post("/sdapi/v1/txt2img", json={"prompt": "x", "steps": 4, "alwayson_scripts": scripts})
    assert (answer.status_code, "0 ControlNets" in answer.json()["detail"]) == (422, True), answer.text
