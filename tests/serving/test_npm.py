"""The npm clients of OpenAI and Stability, unmodified, against a server. `make npm` installs them."""

import base64
import json
import os
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import MODEL, PATIENCE, asking

FOLDER = Path(os.environ.get("LATENTC_NPM", Path(__file__).parents[2] / ".venv" / "peers" / "npm"))
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="Node.js is not installed"),
    pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason="the npm clients are not installed: make npm"),
]


def pixels(text):
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))).convert("RGB"))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def alpha():
    shape = np.full((64, 64), 255, np.uint8)
    shape[16:48, 16:48] = 0
    return shape


@pytest.fixture(scope="module")
def found(server, image, alpha, tmp_path_factory):
    """What the clients were answered."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(np.dstack([np.zeros_like(image), alpha])).save(folder / "mask.png")
    script = Path(__file__).with_name("clients.cjs")
    done = subprocess.run(
        [str(NODE), str(script), str(FOLDER), server, str(folder / "image.png"), str(folder / "mask.png")],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai(found, gate, image, alpha):
    openai = found["openai"]
    drawn = gate(asking("a red cube", 7, count=2)).images
    assert openai["models"] == [MODEL]
    assert np.array_equal([pixels(one) for one in openai["images"]], drawn)
    assert np.array_equal(pixels(openai["url"]), drawn[0])
    masked = gate(asking("a red cube", 7), image=image, mask=255 - alpha).images[0]
    assert np.array_equal(pixels(openai["edit"]), masked)
    kinds = ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [one["type"] for one in openai["events"]] == kinds
    assert np.array_equal(pixels(openai["events"][-1]["b64_json"]), drawn[0])
    assert [one["type"] for one in openai["edits"]] == ["image_edit.partial_image", "image_edit.completed"]
    changed = gate(asking("a red cube", 7, strength=0.5), image=image).images[0]
    assert np.array_equal(pixels(openai["edits"][-1]["b64_json"]), changed)
    refused = {"kind": "BadRequestError", "status": 400, "param": "size", "code": "invalid_value"}
    assert openai["refused"] == refused


def test_stability(found, gate, image):
    stability = found["stability"]
    assert stability["engines"] == [MODEL]
    plain = {"prompt_syntax": "a1111"}
    (text,), (start,), (painted,) = stability["text"], stability["start"], stability["painted"]
    assert np.array_equal(pixels(text), gate(asking("a red cube", 7, **plain)).images[0])
    changed = gate(asking("a red cube", 7, strength=0.6, width=None, height=None, **plain), image=image).images[0]
    assert np.array_equal(pixels(start), changed)
    assert pixels(painted).shape == pixels(stability["inpainted"]).shape == changed.shape
    assert pixels(stability["sd3"]).ndim == 3
