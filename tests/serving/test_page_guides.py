"""Control and style images on the page, in headless Chromium."""

import numpy as np
import pytest

from latentc.serving.controlnet import names_of
from latentc.serving.service import serve

from .conftest import MODEL, asking, running
from .guided import picture, png, text_of
from .test_page import ask, drawn, drop, expect, pixels, pytestmark

__all__ = ["pytestmark"]

EDGES, STYLE = picture(1), picture(3)


@pytest.fixture
def address(guided_pipeline, gate):
    with running(serve({MODEL: guided_pipeline, "plain": gate})) as found:
        yield found


def test_images_guide_and_come_back(visit, guided_pipeline):
    page, asked = visit(), {"scheduler": None, "guidance": 7.5, "control_scale": (0, 1.5), "style_strength": 0.5}
    first, second, style = (
        page.get_by_role("group", name=name, exact=True)
        for name in (*names_of(guided_pipeline.bundle.manifest), "Style")
    )
    page.locator("#guides summary").press("Enter")
    expect(first.get_by_role("slider")).to_be_hidden()
    drop(page, "#guides fieldset:nth-of-type(2)", png(EDGES))
    second.get_by_role("slider").fill("1.5")
    with page.expect_file_chooser() as chooser:
        style.get_by_role("button", name="Choose an image").press("Enter")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": png(STYLE)})
    style.get_by_role("slider").fill("0.5")
    with page.expect_request("**/v1/jobs") as sent:
        ask(page)
    assert sent.value.post_data_json["control"] == [text_of(EDGES), None], "one image is sent once"
    expected = guided_pipeline(asking("a red cube", 7, **asked), control=[EDGES, EDGES], style=STYLE).images[0]
    assert np.array_equal(pixels(drawn(page)), expected)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.locator("#use").click()
    expect(second.get_by_role("slider")).to_have_value("1.5")
    expect(first.get_by_role("slider")).to_be_hidden()
    expect(page.locator("#extras")).to_be_hidden()
    expect(page.locator("#notices")).not_to_contain_text("add it again")
    page.locator("#prompt").press("Control+Enter")
    assert np.array_equal(pixels(drawn(page, 2)), expected)
    for one in (second, style):
        one.get_by_role("button", name="Remove").press("Enter")
        expect(one.get_by_role("button", name="Choose an image")).to_be_focused()
    page.locator("#prompt").press("Control+Enter")
    assert not np.array_equal(pixels(drawn(page, 3)), expected)
    page.locator("#model").select_option("plain")
    expect(page.locator("#guides")).to_be_hidden()
