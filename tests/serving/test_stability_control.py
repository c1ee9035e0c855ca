"""The `control` routes of Stability's REST API, over HTTP: the pipeline's own pictures."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from latentc.core.request import Request
from latentc.serving.errors import ApiError
from latentc.serving.stability_control import net_for

from .guided import picture, png

EDGES, STYLE = picture(1), picture(3)
HUT = {"prompt": "a hut", "seed": 5}


@pytest.fixture(autouse=True)
def _named(monkeypatch):
    nets = ["scribble", "control_v11p_sd15_canny"]
    monkeypatch.setattr("latentc.serving.stability_control.names_of", lambda one: nets[: len(one.model.controls)])


def post(http, route, fields, image):
    files = {"none": ("none", b"")} if image is None else {"image": ("a.png", png(image))}
    return http.post(f"/v2beta/stable-image/control/{route}", data={**HUT, **fields}, files=files)


def shown(answer):
    assert (answer.status_code, answer.headers.get("seed")) == (200, "5"), answer.text
    return np.asarray(Image.open(BytesIO(answer.content)))


def test_each_route_has_its_controlnet(guided, guided_pipeline):
    wide = picture(2, 128)[:72]
    found = shown(post(guided, "sketch", {"negative_prompt": "fog"}, wide))
    asked = Request(**HUT, negative_prompt="fog", control_scale=(0.7, 0), width=128, height=72)
    assert np.array_equal(found, guided_pipeline(asked, control=[wide, wide]).images[0])
    found = shown(post(guided, "structure", {"control_strength": "0.4"}, wide))
    asked = Request(**HUT, control_scale=(0, 0.4), width=128, height=72)
    assert np.array_equal(found, guided_pipeline(asked, control=[wide, wide]).images[0])


def test_style(guided, guided_pipeline):
    found = shown(post(guided, "style", {}, STYLE))
    assert np.array_equal(found, guided_pipeline(Request(**HUT, style_strength=0.5), style=STYLE).images[0])


@pytest.mark.parametrize(
    ("route", "field", "value"),
    [
        ("structure", "controlnet", "canny"),
        ("sketch", "control_strength", "1.1"),
        ("structure", "control_strength", "much"),
        ("sketch", "prompt", ""),
        ("sketch", "style_preset", "anime"),
        ("structure", "aspect_ratio", "1:1"),
        ("sketch", "seed", "-1"),
        ("sketch", "output_format", "gif"),
        ("style", "fidelity", "-0.1"),
        ("style", "aspect_ratio", "7:1"),
        ("style", "control_strength", "0.5"),
    ],
)
def test_fields_that_are_refused(guided, route, field, value):
    answer = post(guided, route, {field: value}, EDGES)
    assert (answer.status_code, field in answer.json()["message"]) == (400, True), answer.text


@pytest.mark.parametrize("route", ["sketch", "structure", "style"])
def test_images_that_are_refused(guided, http, route):
    assert "image is needed once" in post(guided, route, {}, None).text
    both = {name: ("a.png", png(EDGES)) for name in ("image", "mask")}
    assert "Unknown file 'mask'" in guided.post(f"/v2beta/stable-image/control/{route}", data=HUT, files=both).text
    assert "has 101x101 pixels" in post(guided, route, {}, picture(1, 101)).text
    plain = post(http, route, {}, EDGES)
    assert (plain.status_code, "and tiny has none" in plain.text) == (400, True), plain.text


@pytest.mark.parametrize("route", ["sketch", "structure", "style"])
def test_a_wrong_accept_is_refused_before_the_image_is_decoded(guided, route, monkeypatch):
    monkeypatch.setattr("latentc.serving.decoding.check_file", None)
    files = {"image": ("a.png", png(EDGES))}
    path = f"/v2beta/stable-image/control/{route}"
    answer = guided.post(path, data=HUT, files=files, headers={"accept": "text/html"})
    assert (answer.status_code, "The header Accept is 'text/html'" in answer.text) == (400, True), answer.text


def test_which_controlnet_serves_a_route():
    models = {"plain": [], "own": ["pose", "t2i-adapter-sketch-sdxl-1"], "both": ["canny", "depth", "pose"]}
    assert net_for("sketch", models, None) == ("own", 1)
    assert net_for("structure", models, "depth") == ("both", 1)
    for route, given, words in (
        ("structure", models, "Several ControlNets fit structure. Pass one as controlnet: canny and depth"),
        ("sketch", {"a": ["pose"], "b": ["tile"]}, r"for sketch \(.*controlnet: pose and tile"),
        ("sketch", {"a": [], "b": []}, "and a and b have none"),
    ):
        with pytest.raises(ApiError, match=words):
            net_for(route, given, None)
