"""The page in a real browser: headless Chromium, driven by playwright."""

import base64
import re
from io import BytesIO
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from latentc.checkpoints.families import find_family
from latentc.export.fused import shapes_of
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.pipelines.save import save
from latentc.serving.guard import Access
from latentc.serving.limits import Limits
from latentc.serving.service import serve

from .conftest import CHROMIUM, MODEL, PAGE_WAIT, asking, running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
expect = sync_api.expect
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def styled(slow, bundle, tmp_path_factory):
    """The same model with a LoRA of one layer, `style`."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    layers = shapes_of(bundle("sd1"), find_family("sd1"))["unet"]
    name, (rows, columns) = next((one, shape) for one, shape in layers.items() if one.endswith("to_q.weight"))
    stem = f"unet.{name.removesuffix('.weight')}"
    down, up = np.full((1, columns), 0.5, np.float32), np.full((rows, 1), 0.5, np.float32)
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, path)
    with Pipeline.open(bundle("sd1"), "cpu-onnxruntime", adapters=[str(path)]) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def address(slow, styled):
    with running(serve({MODEL: slow, "styled": styled}, Limits(steps=60, pixels=128 * 128))) as found:
        yield found


TOO_FAINT = """() => {
    const style = getComputedStyle, numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => numbers(colour).slice(0, 3).map((one) => one / 255)
        .map((one) => one > 0.04045 ? ((one + 0.055) / 1.055) ** 2.4 : one / 12.92)
        .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0.05);
    const under = ({ parentElement: outer }, { backgroundColor: own }) => (
        numbers(own)[3] === 0 ? under(outer, style(outer)) : own);
    const faint = (colour, one, least) => {
        const found = light(colour) / light(under(one, style(one)));
        return Math.max(found, 1 / found) < least;
    };
    const all = [...document.body.querySelectorAll("*:not(option, :disabled, [aria-disabled=true], .hidden)")];
    return all.filter((one) => {
        const field = one.matches("textarea, select, input:not([type=range], [type=checkbox])");
        const text = field || [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const { color, borderTopColor: edge, opacity } = style(one);
        return text && one.checkVisibility() && (opacity < 1 || faint(color, one, 4.5)
            || field && [one, one.parentElement].some((other) => faint(edge, other, 3)));
    }).map((one) => one.outerHTML.slice(0, 200));
}"""
"""Text and borders of fields with less contrast than WCAG 2.2 asks for (1.4.3, 1.4.11)."""


def ask(page, prompt="a red cube", seed="7", steps="4", negative="", size="64"):
    for name, value in {"width": size, "height": size, "steps": steps, "seed": seed}.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#negative_prompt").fill(negative)
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Control+Enter")


def drawn(page, count=1):
    """Wait until the gallery has so many images; the last one's file."""
    expect(page.locator("#gallery li")).to_have_count(count, timeout=PAGE_WAIT)
    expect(page.locator("#about")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#download").click()
    return Path(download.value.path()).read_bytes()


def saved(page):
    """The files of the gallery's images, the newest first."""
    for one in page.locator("#gallery button").all():
        one.click()
        with page.expect_download() as download:
            page.locator("#download").click()
        yield Path(download.value.path()).read_bytes()


def pixels(content):
    return np.asarray(Image.open(BytesIO(content)))


def drop(page, selector, content, name="image.png"):
    """Drop a file on what a selector names."""
    text = base64.b64encode(content).decode()
    page.evaluate(
        """([selector, text, name]) => {
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, {type: "image/png"}));
            const target = document.querySelector(selector);
            for (const kind of ["dragover", "drop"])
                target.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: data}));
        }""",
        [selector, text, name],
    )


def png(value=128, side=64):
    buffer = BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_the_pipelines_and_survives_a_reload(visit, slow):
    page = visit()
    ask(page)
    content = drawn(page)
    assert np.array_equal(pixels(content), slow(asking("a red cube", 7, scheduler=None, guidance=7.5)).images[0])
    assert read(content).request.prompt == "a red cube"
    expect(page.locator("#parameters")).to_contain_text("a red cube")
    expect(page.locator("#download")).to_have_attribute("download", "latentc-7.png")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert drawn(page) == content
    expect(page.locator("#prompt")).to_have_value("a red cube")


def test_previews_progress_and_stop(visit, slow):
    page = visit()
    ask(page, steps="50", negative="slow")
    expect(page.locator("#shown[src^='data:image/png']")).to_be_visible()
    expect(page.locator("#detail")).to_have_text(re.compile(r"Step \d+ of \d+, (about \d+|less than 1) s left"))
    preview = base64.b64decode(page.locator("#shown").get_attribute("src").partition(",")[2])
    assert pixels(preview).shape == (8, 8, 3)
    page.locator("#stop").click()
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#go")).to_be_focused()
    expect(page.locator("#gallery li")).to_have_count(0)


def wait(page, held, count):
    """Wait until so many requests are held."""
    for _ in range(3000):
        if len(held) >= count:
            return
        page.wait_for_timeout(10)
    pytest.fail(f"{len(held)} of {count} requests came")


def test_a_job_is_followed_after_a_reload(visit, slow):
    page, held = visit(), []
    ask(page, steps="30", negative="slow")
    expect(page.locator("#detail")).to_contain_text("Step")
    slow.batches.clear()
    page.route("**/v1/capabilities", lambda route: held.append(route))
    page.reload()
    page.locator("#prompt").press("Control+Enter")
    wait(page, held, 1)
    expect(page.locator("#error")).to_be_hidden()
    held[0].continue_()
    drawn(page)
    assert slow.batches == [], "no other was sent"


def test_a_job_that_is_sent_while_the_page_loads_is_followed_once(visit, slow):
    page, held = visit(), []
    for path in ("**/v1/capabilities", "**/v1/history*"):
        page.route(path, lambda route: held.append(route))
    page.reload()
    wait(page, held, 1)
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#error")).to_contain_text("The server has not described its models yet")
    held[0].fulfill(json=held[0].fetch().json() | {"history": True})
    wait(page, held, 2)
    page.locator("#store").uncheck()
    with slow.held_at(2):
        ask(page)
        expect(page.locator("#detail")).to_contain_text("Step")
        held[1].fulfill(json={"data": [], "has_more": False})
        page.wait_for_selector("html[data-ready]")
    drawn(page)


def test_what_engines_fix_is_set_and_set_back(visit):
    page = visit()

    def two(route):
        found = route.fetch().json()
        one = next(iter(found["models"].values()))
        route.fulfill(json=found | {"models": {"fixed": one | {"images": 2, "guided": False}, "free": one}})

    page.locator("#guidance").fill("6")
    page.route("**/v1/capabilities", two)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    for model, values in (("fixed", ("1", "2")), ("free", ("7.5", "1"))):
        page.locator("#model").select_option(model)
        for name, value in zip(("guidance", "count"), values, strict=True):
            expect(page.locator(f"#{name}")).to_have_value(value)
            assert page.locator(f"#{name}").is_disabled() == (model == "fixed")


def test_another_pages_job_is_waited_for_and_not_stopped(visit, slow):
    first, second = visit(), visit()
    with slow.closed():
        ask(first, seed="1")
        expect(first.locator("#progress")).to_be_visible()
        sleep(0.2)
        ask(second, seed="2", steps="5")
        expect(second.locator("#detail")).to_have_text("Waiting: next in the queue.")
        second.locator("#stop").click()
        expect(second.locator("#status")).to_have_text("Stopped.")
    assert read(drawn(first)).request.seed == 1


def test_a_dropped_file_gives_its_parameters_back(visit, slow, tmp_path):
    asked = asking("a blue ball", 2**62 + 1, negative_prompt="grey", steps=5, guidance_rescale=0.25)
    (path,) = save(slow(asked), tmp_path / "one.png")
    page = visit()
    drop(page, "#frame", path.read_bytes())
    expect(page.locator("#prompt")).to_have_value("a blue ball")
    for name, value in {"seed": str(2**62 + 1), "steps": "5", "guidance": "5", "scheduler": "euler"}.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    expect(page.locator("#extras")).to_contain_text("guidance_rescale: 0.25")
    page.locator("#prompt").press("Control+Enter")
    assert np.array_equal(pixels(drawn(page)), pixels(path.read_bytes()))
    page.get_by_role("button", name="Remove guidance_rescale").click()
    expect(page.locator("#seed")).to_be_focused()


def test_another_model_and_its_lora(visit, styled):
    page = visit()
    slider = page.locator("[data-adapter=style]")
    expect(slider).to_have_count(0)
    page.locator("#model").select_option("styled")
    slider.fill("0.5")
    ask(page)
    content = drawn(page)
    assert read(content).request.adapters == {"style": 0.5}
    expected = styled(asking("a red cube", 7, scheduler=None, guidance=7.5, adapters={"style": 0.5}))
    assert np.array_equal(pixels(content), expected.images[0])
    slider.fill("1")
    page.locator("#use").click()
    expect(slider).to_have_value("0.5")


def test_a_gallery_of_several_images(visit):
    page = visit()
    page.locator("#count").fill("3")
    ask(page, seed=str(2**53))
    drawn(page, 3)
    seeds = [read(one).request.seed for one in saved(page)]
    assert seeds == [2**53 + 2, 2**53 + 1, 2**53]
    page.locator("#dice").click()
    expect(page.locator("#seed")).to_have_value("")
    page.locator("#last").click()
    expect(page.locator("#seed")).to_have_value(str(2**53))
    page.locator("#delete").click()
    expect(page.locator("#gallery li")).to_have_count(2)
    page.locator("#delete-all").click()
    page.get_by_role("button", name="Keep them").click()
    expect(page.locator("#gallery li")).to_have_count(2)
    page.locator("#delete-all").click()
    page.locator("#sure").get_by_role("button", name="Delete all").click()
    expect(page.locator("#gallery li")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()


def test_sizes(visit):
    page = visit()
    page.locator("#size").select_option(index=4)
    width, height = (page.locator(f"#{side}").input_value() for side in ("width", "height"))
    assert int(width) > int(height)
    page.locator("#swap").click()
    expect(page.locator("#width")).to_have_value(height)
    expect(page.locator("#size")).to_have_value(f"{height}x{width}")
    page.locator("#width").fill("72")
    expect(page.locator("#size")).to_have_value("other")
    page.locator("#size").select_option("")
    expect(page.locator("#width")).to_have_value("")


def test_a_file_without_parameters_is_refused_in_words(visit):
    page = visit(allowed=("400",))
    drop(page, "#frame", png())
    expect(page.locator("#error")).to_contain_text("The file has no generation parameters")


def test_a_wrong_size_is_refused_in_words(visit):
    page = visit(allowed=("400",))
    ask(page, size="65")
    expect(page.locator("#error")).to_contain_text("8")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#gallery li")).to_have_count(0)


@pytest.mark.parametrize("keyboard", [False, True])
def test_a_mask_is_painted_and_sent(visit, keyboard):
    page = visit()
    page.locator("#source summary").click()
    drop(page, "#drop", png(200))
    expect(page.locator("#strength-value")).to_have_text("0.80")
    expect(page.locator("#size")).to_contain_text("Near the image's")
    canvas = page.locator("#mask")
    if keyboard:
        canvas.press("ArrowLeft")
        canvas.press(" ")
    else:
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
    expect(page.locator("#strength-value")).to_have_text("1.00")
    ask(page)
    content = drawn(page)
    request = read(content).request
    assert request.strength == 1
    assert request.image_sha256
    assert request.mask_sha256
    kept = (pixels(content) == 200).all(axis=-1)
    assert kept[-8:].all()
    assert not kept[16:32, 16:40].all()
    page.locator("#remove").click()
    page.locator("#use").click()
    expect(canvas).to_be_visible()
    expect(page.locator("#notices")).not_to_contain_text("add it again")
    page.locator("#prompt").press("Control+Enter")
    assert drawn(page, 2) == content or np.array_equal(pixels(drawn(page, 2)), pixels(content))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_sideways_scrolling(visit, scheme):
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.locator("#settings summary").click()
    page.locator("#source summary").click()
    drop(page, "#drop", png())
    ask(page, prompt="a" * 300)
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(TOO_FAINT) == []
    roles = "button|textbox|combobox|slider|spinbutton|checkbox|link|img|progressbar|dialog|region"
    tree = page.locator("body").aria_snapshot()
    assert re.findall(rf"(?m)^ *- '?(?:{roles})(?! \").*", tree) == []
    assert len(re.findall(r'(?m)^ *- (?:textbox|spinbutton|slider|combobox|button) "', tree)) > 20


@pytest.mark.parametrize("token", ["secret", "me:pässword"])
def test_a_token_is_asked_for_once(visit, slow, token):
    with running(serve({MODEL: slow}), Access(tokens=(token,))) as address:
        page = visit(address, allowed=("401",), ready=False)
        for given in ("wrong", token):
            expect(page.locator("#token")).to_be_visible()
            page.locator("#token-value").fill(given)
            page.locator("#token-value").press("Enter")
        page.wait_for_selector("html[data-ready]")
        ask(page)
        drawn(page)
        page.reload()
        page.wait_for_selector("html[data-ready]")
        drawn(page)
        page.close()


def test_presets_and_groups_of_schedulers(visit, slow):
    page = visit()
    preset, scheduler, steps = (page.locator(f"#{name}") for name in ("preset", "scheduler", "steps"))
    expect(preset).to_have_value("exact")
    preset.select_option("draft")
    expect(scheduler).to_have_value("dpm++2m")
    ask(page, steps="6")
    assert read(drawn(page)).request.preset == "draft"
    expect(page.locator("#parameters")).to_contain_text("draft")
    steps.fill("7")
    expect(preset).to_have_value("")
    page.locator("#use").click()
    expect(preset).to_have_value("draft")
    labels = scheduler.locator("optgroup").evaluate_all("all => all.map((one) => one.label)")
    assert labels[0] == "Recommended for this model"
    found = scheduler.locator("optgroup option").evaluate_all("all => all.map((one) => one.value)")
    assert sorted(found) == sorted(slow.schedulers)
