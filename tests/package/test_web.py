"""The page for browsers: in headless Chromium, it generates Python's images, offline and without a server's headers."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from latentc.core.bundle import MANIFEST
from latentc.core.errors import BundleError
from latentc.core.files import write_sealed
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.shipped import unpack
from latentc.package import web
from latentc.package.web import web_page
from latentc.runtimes.web_library import BACKENDS, FILES, VERSION, installed, library_files

from ..serving.conftest import CHROMIUM, browser, visit

__all__ = ["browser", "visit"]

ARCHIVE = installed()
WAIT = 60_000
"""Milliseconds for which a page may load and compute."""
LEAST_DB = 60.0
REQUEST = Request(
    prompt="A red cube\u2019s caf\u00e9 \U0001f600", negative_prompt="fog", steps=5, seed=7, width=72, height=64
)

needs_library = pytest.mark.skipif(ARCHIVE is None, reason="onnxruntime-web is not there: make web")


def quiet(_what, _share=None):
    pass


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
    return web_page(exported("sd1"), tmp_path_factory.mktemp("web") / "page", onnxruntime_web=ARCHIVE)


@contextmanager
def serving(*words):
    """The address of a server in Python that prints it."""
    with subprocess.Popen([sys.executable, "-u", *words], stdout=subprocess.PIPE, text=True) as server:
        try:
            yield re.search(r"http://[^/ ]+", server.stdout.readline())[0] + "/"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(made):
    with serving(made.folder / "serve.py", "0") as found:
        yield found


def generate(page, count=1, **fields):
    for name, value in fields.items():
        if name == "scheduler":
            page.locator("#scheduler").select_option(value)
        else:
            page.locator(f"#{name}").fill(str(value))
    page.locator("#prompt").press("Control+Enter")
    page.wait_for_selector(f"html[data-images='{count}']")
    found = page.evaluate(
        """() => {
            const { width, height } = shown;
            return [height, width, [...shown.getContext("2d").getImageData(0, 0, width, height).data]];
        }"""
    )
    return np.array(found[2], np.uint8).reshape(*found[:2], 4)[..., :3]


FIELDS = {
    "prompt": REQUEST.prompt, "negative_prompt": "fog", "steps": 5, "seed": 7, "width": 72, "height": 64,
}  # fmt: skip

in_chromium = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


class TestInChromium:
    pytestmark = in_chromium

    def test_images_are_pythons(self, visit, opened):
        page = visit(allowed=("willReadFrequently",))
        page.set_default_timeout(WAIT)
        for count, name in enumerate((None, "euler-ancestral"), 1):
            asked = {**FIELDS, **({"scheduler": name} if name else {})}
            image = generate(page, count, **asked)
            own = opened("sd1")(REQUEST.model_copy(update={"scheduler": name})).images[0]
            assert image.shape == own.shape
            assert psnr_db(own.astype(np.float32), image.astype(np.float32)) > LEAST_DB
        assert "onnxruntime-web" in page.locator("#profile").text_content()
        page.locator("#compare").click()
        page.wait_for_selector("#parity[data-db]")
        text = page.locator("#parity").text_content()
        assert "That is rounding." in text, text
        assert page.locator("#download").get_attribute("download") == "latentc-1.png"
        page.locator("#guidance").fill("")
        page.locator("#go").click()
        page.wait_for_selector("#error:text-is('The field for the guidance has no number. Enter one.')")

    def test_a_job_is_stopped_with_previews(self, visit):
        page = visit()
        page.set_default_timeout(WAIT)
        for name, value in {**FIELDS, "steps": 900}.items():
            page.locator(f"#{name}").fill(str(value))
        page.locator("#go").click()
        page.wait_for_selector("#shown[width='9'][height='8']")
        assert re.fullmatch(r"Step \d+ of 90\d, .* s left", page.locator("#detail").text_content())
        page.locator("#stop").click()
        page.wait_for_selector("#status:text-is('Stopped.')")
        assert generate(page, **FIELDS).shape == (64, 72, 3)

    def test_without_headers_it_takes_one_thread_then_adds_them_and_works_offline(self, visit, made):
        with serving("-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", made.folder) as plain:
            page = visit(plain, allowed=("willReadFrequently",))
            page.set_default_timeout(WAIT)
            assert "1 thread" in page.locator("#profile").text_content()
            assert "Cross-Origin-Opener-Policy" in page.locator("#notices").text_content()
            first = generate(page, **FIELDS)
            page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        page.reload()  # the server is gone
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate("crossOriginIsolated")
        assert page.locator("#notices").is_hidden()
        again = generate(page, **FIELDS)
        assert psnr_db(first.astype(np.float32), again.astype(np.float32)) > LEAST_DB

    def test_a_file_that_was_damaged_is_refused(self, visit, made, tmp_path):
        folder = shutil.copytree(made.folder, tmp_path / "page")
        path = next((folder / "data").glob("unet-*data.0.bin"))
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with serving(folder / "serve.py", "0") as damaged:
            page = visit(damaged, ready=False)
            page.wait_for_selector("#error:has-text('unet-model.onnx_data.0.bin is damaged')")

    def test_from_a_file_it_says_what_to_do(self, browser, made):
        page = browser.new_page()
        page.goto((made.folder / "index.html").as_uri(), wait_until="load")
        assert page.locator("#error").is_visible()
        assert "does not run from a file" in page.locator("#error").text_content()
        page.close()


COMPRESSED = {"ort-wasm-simd-threaded.wasm": 3_652_765, "ort-wasm-simd-threaded.asyncify.wasm": 6_576_779}
"""Sizes in a page of onnxruntime-web's WebAssembly."""


@needs_library
def test_the_library_has_the_sizes_that_are_known(made):
    files = json.loads((made.folder / "model.json").read_text())["files"]
    sizes = {name: sum(piece["bytes"] for piece in files[f"ort/{name}"]["pieces"]) for name in COMPRESSED}
    assert sizes == pytest.approx(COMPRESSED, rel=0.02)


def test_a_first_visit_of_scenes_loads_less_than_30_mb(tmp_path, monkeypatch):
    """With random bytes in the place of the library, where it need not be there."""
    random = np.random.default_rng(0)
    library = {name: random.bytes(COMPRESSED.get(name, 66_349)) for name in FILES}
    monkeypatch.setattr(web, "library_files", lambda *_: library)
    exported = unpack(tmp_path / "bundle")
    write_sealed(tmp_path / "bundle" / MANIFEST, exported.model_dump(mode="json"))
    page = web_page(tmp_path / "bundle", tmp_path / "page")
    weights = sum(path.stat().st_size for path in (tmp_path / "bundle").glob("*/*.onnx_data"))
    assert weights > 10e6
    for name, loaded in page.first_visit_bytes.items():
        assert loaded > COMPRESSED[BACKENDS[name][-1]] + 10e6
        assert loaded < 30e6
    in_nginx = {".html", ".css", ".js", ".json", ".svg", ".bin"}  # types of its 1.22, which has none for .mjs
    assert {path.suffix for path in page.folder.rglob("*.*")} <= {".md", ".py", *in_nginx}


@needs_library
def test_the_page_is_small_and_in_pieces(made):
    assert sum(path.stat().st_size for path in made.folder.glob("*.js")) < 60_000
    assert all(path.stat().st_size <= 16 << 20 for path in made.folder.rglob("*") if path.suffix == ".bin")
    manifest = json.loads((made.folder / "model.json").read_text())
    listed = {piece["path"] for file in manifest["files"].values() for piece in file["pieces"]}
    assert listed == {path.relative_to(made.folder).as_posix() for path in made.folder.glob("data/*")}
    worker = (made.folder / "sw.js").read_text()
    assert manifest["name"] in worker
    assert "@" not in worker
    assert {"dpm++2m", "ddim", "euler", "pndm"} <= {*made.schedulers}


@pytest.mark.parametrize(("family", "message"), [("sdxl", "only Stable Diffusion 1 and 2 are supported")])
def test_other_models_are_refused(bundle, refused, tmp_path, family, message):
    line = refused("package", bundle(family).folder, "--for", "web", "-o", tmp_path / "made", "-q")
    assert message in line
    assert not (tmp_path / "made").exists()


def test_options_that_do_not_belong_together_are_refused(bundle, refused, tmp_path):
    folder = bundle("sd1").folder
    assert "Leave --profile out" in refused("package", folder, "--for", "web", "-p", "null", "-o", tmp_path / "a")
    assert "is for --for web" in refused("package", folder, "--onnxruntime-web", tmp_path, "-o", tmp_path / "a")


def test_another_library_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"is not the npm package onnxruntime-web: it has no folder dist"):
        library_files(tmp_path, quiet)
    (tmp_path / "dist").mkdir()
    with pytest.raises(BundleError, match=rf"has no file dist/\S+, as onnxruntime-web {re.escape(VERSION)} has\. Run"):
        library_files(tmp_path, quiet)
    for name in FILES:
        (tmp_path / "dist" / name).write_bytes(b"other")
    with pytest.raises(BundleError, match=rf"is not that of onnxruntime-web {re.escape(VERSION)}\. Run `npm pack"):
        library_files(tmp_path, quiet)
    (tmp_path / "a.tgz").write_bytes(b"other")
    with pytest.raises(BundleError, match="its digest differs"):
        library_files(tmp_path / "a.tgz", quiet)
