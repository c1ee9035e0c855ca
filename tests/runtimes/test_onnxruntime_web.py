"""The adapter to onnxruntime-web, and the browser that it runs in: what is missing, and what ends."""

import shutil

import numpy as np
import pytest

from latentc.runtimes import runtime
from latentc.runtimes.chromium import Browser, BrowserFailed, files_below, packed, unpacked, why_no_program
from latentc.runtimes.onnxruntime_web import ONNXRuntimeWeb

web = runtime("onnxruntime-web")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PATH": "/nowhere"}, "Chromium is not installed. Install it .Debian and Ubuntu: apt-get install chromium"),
        ({"LATENTC_CHROMIUM": "/nowhere/chrome"}, "LATENTC_CHROMIUM names /nowhere/chrome, which is not a program"),
        (
            {"LATENTC_CHROMIUM": shutil.which("false"), "LATENTC_ONNXRUNTIME_WEB": "/nowhere/web.tgz"},
            r"LATENTC_ONNXRUNTIME_WEB names /nowhere/web.tgz, which does not exist. Run `npm pack onnxruntime-web@",
        ),
    ],
)
def test_what_is_missing_is_named(monkeypatch, variables, says):
    monkeypatch.delenv("LATENTC_CHROMIUM", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AssertionError, match=says):
        assert web.missing("CPU") is None, web.missing("CPU")


def test_an_unknown_device_is_refused():
    assert "no device 'GPU'" in ONNXRuntimeWeb().missing("GPU")


def test_a_browser_that_ends_is_an_error(monkeypatch):
    monkeypatch.setenv("LATENTC_CHROMIUM", shutil.which("false"))
    browser = Browser("engines.html")
    try:
        with pytest.raises(BrowserFailed, match="the browser ended with code 1"):
            browser.ask("adapter")
    finally:
        browser.close()
    browser.close()
    with pytest.raises(BrowserFailed, match="closed"):
        browser.ask("adapter")


@pytest.mark.slow
@pytest.mark.skipif(why_no_program() is not None, reason="Chromium is not installed")
def test_a_gpu_in_software_is_not_taken_for_a_gpu(monkeypatch):
    browser = Browser("engines.html")
    try:
        with pytest.raises(BrowserFailed, match="not a function"):
            browser.ask("nothing")
        software = browser.ask("adapter")[0]["software"]
    finally:
        browser.close()
    monkeypatch.delenv("LATENTC_CHROMIUM_FLAGS", raising=False)
    if software and not ONNXRuntimeWeb().missing("CPU"):
        assert "computes on the CPU" in ONNXRuntimeWeb().missing("WebGPU")


def test_messages_keep_arrays():
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1 << 40]),
        "c": np.zeros((0,), np.uint8),
    }
    head, found = unpacked(packed({"verb": "run"}, arrays))
    assert head == {"verb": "run"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_only_the_files_of_a_folder_are_served(tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "page" / "index.html").write_text("y")
    find = files_below("page/", tmp_path / "page")
    assert find("page/") == find("page/index.html") == tmp_path / "page" / "index.html"
    assert find("page/../secret") is None
    assert find("secret") is None
