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


def post(http, route, fields, **files):
    files = {name: ("a.png", png(one)) for name, one in files.items()} or {"other": b""}
    return http.post(f"/v2beta/stable-image/control/{route}", data={**HUT, **fields}, files=files)


def shown(answer):
    assert (answer.status_code, answer.headers.get("seed")) == (200, "5"), answer.text
    return np.asarray(Image.open(BytesIO(answer.content)))


def test_each_route_has_its_controlnet(guided, guided_pipeline):
    wide = picture(2, 128)[:72]
    found = shown(post(guided, "sketch", {"negative_prompt": "fog"}, image=wide))
    asked = Request(**HUT, negative_prompt="fog", control_scale=(0.7, 0), width=128, height=72)
    assert np.array_equal(found, guided_pipeline(asked, control=[wide, wide]).images[0])
    found = shown(post(guided, "structure", {"control_strength": "0.4"}, image=wide))
    asked = Request(**HUT, control_scale=(0, 0.4), width=128, height=72)
    assert np.array_equal(found, guided_pipeline(asked, control=[wide, wide]).images[0])


def test_style_and_style_transfer(guided, guided_pipeline):
    found = shown(post(guided, "style", {}, image=STYLE))
    assert np.array_equal(found, guided_pipeline(Request(**HUT, style_strength=0.5), style=STYLE).images[0])
    fields = {"prompt": "", "style_strength": "0.6", "change_strength": "0.5"}
    found = shown(post(guided, "style-transfer", fields, init_image=EDGES, style_image=STYLE))
    asked = Request(prompt="", seed=5, style_strength=0.6, strength=0.5)
    assert np.array_equal(found, guided_pipeline(asked, image=EDGES, style=STYLE).images[0])


@pytest.mark.parametrize(
    ("route", "fields", "words"),
    [
        ("structure", {"controlnet": "canny"}, "No ControlNet is named 'canny'"),
        ("sketch", {"control_strength": "1.1"}, "control_strength is 1.1. Pass a number from 0 to 1"),
        ("structure", {"control_strength": "much"}, "control_strength must be a number"),
        ("sketch", {"prompt": ""}, "A prompt is needed"),
        ("sketch", {"style_preset": "anime"}, "style_preset"),
        ("structure", {"aspect_ratio": "1:1"}, "aspect_ratio"),
        ("sketch", {"seed": "-1"}, "seed must be"),
        ("sketch", {"output_format": "gif"}, "output_format is 'gif'"),
        ("style", {"fidelity": "-0.1"}, "fidelity is -0.1"),
        ("style", {"aspect_ratio": "7:1"}, "aspect_ratio is '7:1'"),
        ("style-transfer", {"change_strength": "0"}, "change_strength is 0. Pass a number from 0.1"),
        ("style-transfer", {"composition_fidelity": "0.9"}, "composition_fidelity"),
        ("style-transfer", {"style_strength": "2"}, "style_strength is 2"),
    ],
)
def test_fields_that_are_refused(guided, route, fields, words):
    sent = dict.fromkeys(("init_image", "style_image") if "-" in route else ("image",), EDGES)
    answer = post(guided, route, fields, **sent)
    assert (answer.status_code, words in answer.json()["message"]) == (400, True), answer.text


@pytest.mark.parametrize("route", ["sketch", "structure", "style", "style-transfer"])
def test_images_that_are_refused(guided, http, route):
    name, first = ("style_image", {"init_image": EDGES}) if "-" in route else ("image", {})
    assert f"{name} is needed once" in post(guided, route, {}, **first).text
    assert "has 101x101 pixels" in post(guided, route, {}, **first, **{name: picture(1, 101)}).text
    plain = post(http, route, {}, **first, **{name: EDGES})
    assert (plain.status_code, "and tiny has none" in plain.text) == (400, True), plain.text


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
