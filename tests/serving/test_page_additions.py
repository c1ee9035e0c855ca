"""The page over servers with a history, credits and a model that expands prompts, in headless Chromium."""

from contextlib import closing, contextmanager

import pytest

from latentc.serving.credits import Credits
from latentc.serving.guard import Access
from latentc.serving.history import History
from latentc.serving.limits import Limits
from latentc.serving.page import FOLDER
from latentc.serving.prompts import PromptModel
from latentc.serving.service import Additions, serve
from latentc.serving.state import open_state

from .conftest import MODEL, running
from .test_page import ask, drawn, expect, pytestmark
from .test_prompts import GOOD, chatting, completion

__all__ = ["pytestmark"]


@pytest.fixture
def keeping(slow, tmp_path):
    """`keeping(access)`: the address of a server with a history, which is the same after a restart."""

    @contextmanager
    def serving(access=None):
        with open_state(tmp_path) as state, closing(History(state)) as history:
            service = serve({MODEL: slow}, Limits(steps=60), Additions(history))
            with running(service, access) as found:
                yield found

    return serving


def test_a_servers_history_is_the_gallery_of_every_browser(visit, keeping):
    with keeping() as address:
        page = visit(address)
        expect(page.locator("#kept")).to_have_text("Kept by this server, and seen by everyone who uses it.")
        page.locator("#count").fill("2")
        ask(page, prompt="a boat")
        content = drawn(page, 2)
        assert page.evaluate("indexedDB.databases().then((all) => all.length)") == 0
        page.close()
    with keeping() as address:
        page = visit(address, viewport={"width": 360, "height": 740}, color_scheme="dark")
        assert drawn(page, 2) != content, "the newest is the second image"
        expect(page.locator("#parameters")).to_contain_text("a boat")
        expect(page.locator("#gallery img[src^='blob:']")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#settings summary").click()
        page.locator("#last").click()
        expect(page.locator("#seed")).to_have_value("7")
        page.locator("#gallery button").last.press("Enter")
        expect(page.locator("#download")).to_have_attribute("download", "latentc-7.png")
        assert drawn(page, 2) == content
        page.locator("#delete").click()
        expect(page.locator("#gallery li")).to_have_count(1)
        page.locator("#delete-all").click()
        expect(page.locator("#sure")).to_contain_text("Everyone who uses this server loses them")
        page.locator("#sure").get_by_role("button", name="Delete all").click()
        expect(page.locator("#gallery li")).to_have_count(0)
        page.reload()
        page.wait_for_selector("html[data-ready]")
        expect(page.locator("#gallery li")).to_have_count(0)
        page.close()


def test_images_that_the_server_is_not_to_keep(visit, keeping):
    with keeping() as address:
        page = visit(address)
        page.locator("#store").uncheck()
        ask(page)
        drawn(page)
        expect(page.locator("#error")).to_be_hidden()
        page.reload()
        page.wait_for_selector("html[data-ready]")
        expect(page.locator("#gallery li")).to_have_count(0)
        expect(page.locator("#store")).not_to_be_checked()
        page.close()


def test_older_images_of_a_history(visit, keeping):
    with keeping(Access(tokens=("secret",))) as address:
        page = visit(address, allowed=("401",), ready=False)
        page.route(
            "**/web/server.js",
            lambda route: route.fulfill(
                body=(FOLDER / "server.js").read_text().replace("PAGE = 60", "PAGE = 2"), content_type="text/javascript"
            ),
        )
        page.reload()
        page.locator("#token-value").fill("secret")
        page.locator("#token-value").press("Enter")
        page.locator("#count").fill("5")
        ask(page)
        drawn(page, 5)
        page.reload()
        for count in (2, 4):
            expect(page.locator("#gallery li")).to_have_count(count)
            page.get_by_role("button", name="Show more").click()
        expect(page.locator("#gallery li")).to_have_count(5)
        expect(page.locator("#more")).to_be_hidden()
        page.close()


def test_a_prompt_gets_detail_and_back(visit, slow):
    with chatting() as chat:
        service = serve(
            {MODEL: slow}, Limits(steps=60), Additions(credits=Credits(2, 1), prompts=PromptModel(chat.url))
        )
        with running(service) as address:
            page = visit(address, allowed=("502", "402"), viewport={"width": 360, "height": 740})
            page.locator("#prompt").fill("a lighthouse")
            button = page.get_by_role("button", name="Add detail")
            button.press("Enter")
            expect(page.locator("#prompt")).to_have_value(GOOD)
            expect(page.locator("#status")).to_contain_text("Undo")
            chat.body = completion("More.")
            button.click()
            expect(page.locator("#prompt")).to_have_value("More.")
            page.get_by_role("button", name="Undo the added detail").press("Enter")
            expect(page.locator("#prompt")).to_have_value("a lighthouse")
            expect(page.locator("#prompt")).to_be_focused()
            expect(page.locator("#restore")).to_be_hidden()
            chat.status = 500
            button.click()
            expect(page.locator("#error")).to_contain_text("The prompt model can't be used now")
            expect(page.locator("#prompt")).to_have_value("a lighthouse")
            expect(page.locator("#credits")).to_have_text("2 credits left")
            expect(page.get_by_role("button", name="Generate")).to_have_accessible_description("Costs 1 credit.")
            page.locator("#settings summary").click()
            ask(page)
            drawn(page)
            expect(page.locator("#credits")).to_have_text("1 credit left")
            page.locator("#count").fill("2")
            expect(page.locator("#cost")).to_have_text("Costs 2 credits.")
            ask(page)
            expect(page.locator("#error")).to_contain_text("costs 2 credits, and 1 are left")
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            page.close()
