"""Edges for ControlNets: what is found, written and refused."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import RequestError, RuntimeMissing
from latentc.pipelines.edges import canny, write


def square(size=64):
    image = np.zeros((size, size, 3), np.uint8)
    image[16:48, 20:52] = (200, 30, 60)
    return image


def test_the_outline_of_a_square_is_found():
    found = canny(square())
    assert found.shape == (64, 64, 3)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 255}
    rows, columns = np.nonzero(found[..., 0])
    outline = [
        min(abs(row - 15.5), abs(row - 47.5), abs(column - 19.5), abs(column - 51.5))
        for row, column in zip(rows, columns, strict=True)
    ]
    assert max(outline) <= 1.5
    assert 100 < len(rows) < 160


def test_thresholds_decide_what_is_an_edge():
    faint = square() // 12
    assert not canny(faint).any()
    assert canny(faint, low=0.005, high=0.01).any()


@pytest.mark.parametrize("values", [{"low": 0.5, "high": 0.2}, {"high": 2.0}, {"low": -1.0}, {"sigma": float("nan")}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(RequestError, match="are not possible"):
        canny(square(), **values)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(RuntimeMissing, match=r"needs scikit-image .*\.\[canny\]"):
        canny(square())


def test_nothing_is_overwritten(tmp_path):
    write(canny(square()), tmp_path / "edges.png")
    with pytest.raises(RequestError, match="exists already"):
        write(canny(square()), tmp_path / "edges.png")
    with pytest.raises(RequestError, match=r"use .*edges\.png"):
        write(canny(square()), tmp_path / "edges.jpg")
    with pytest.raises(RequestError, match="nowhere"):
        write(canny(square()), tmp_path / "nowhere" / "edges.png")


@pytest.mark.slow
def test_the_command_writes_what_a_controlnet_reads(tmp_path):
    Image.fromarray(square()).save(tmp_path / "photo.png")
    words = ("canny", str(tmp_path / "photo.png"), "-o", str(tmp_path / "edges.png"))
    done = subprocess.run([sys.executable, "-m", "latentc", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "edges.png")), canny(tmp_path / "photo.png"))
