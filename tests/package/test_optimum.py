"""A bundle as it lies opens in optimum-onnx, and what optimum exports is adopted, with the same images.

optimum runs in an environment of versions that go together: `make peers`.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from latentc.benchmarks.baselines import BASELINES, peers_folder, python_of
from latentc.compiler.build import build
from latentc.core.errors import RuntimeMissing
from latentc.core.request import Request
from latentc.core.standing import SELF_CONSISTENT
from latentc.core.tensors import psnr_db
from latentc.export.adopt import adopt
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.host import latent_shape

from ..export.test_adopt import REQUEST, diffusers_images

DRAW, EXPORT = (Path(__file__).with_name(f"{verb}_with_optimum.py") for verb in ("draw", "export"))
SECONDS = 300
LEAST_DB = 60.0
ADOPTED_DB = 80.0
STEPS, SIDE, GUIDANCE = 4, 64, 5.0


@pytest.fixture(scope="module")
def python():
    try:
        return python_of(BASELINES["optimum-onnxruntime"], peers_folder())
    except RuntimeMissing as exc:
        pytest.skip(str(exc))


def run(python, program, *words):
    """Run a program of this folder there, without a network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [python, program, *words], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_images_are_those_of_latentc(python, opened, tmp_path, family):
    pipeline = opened(family)
    fields = {"prompt": "a red cube at night", "negative_prompt": "fog and rain"}
    request = Request(**fields, steps=STEPS, guidance=GUIDANCE, width=SIDE, height=SIDE, seed=1)
    noise = np.random.default_rng(1).standard_normal(latent_shape(pipeline.bundle.manifest.model, request))
    expected = pipeline(request, latents=noise.astype(np.float32)).images[0].astype(np.float32)
    asked = {**fields, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": SIDE, "height": SIDE}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    np.save(tmp_path / "noise.npy", noise.astype(np.float32))
    files = [tmp_path / name for name in ("request.json", "noise.npy", "image.npy")]
    run(python, DRAW, pipeline.bundle.folder, *files)
    found = np.round(np.load(files[-1])[0] * 255).astype(np.float32)
    assert found.shape == expected.shape
    assert expected.std() > 1
    assert psnr_db(expected, found) > LEAST_DB


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_what_optimum_exports_is_adopted_and_generates_diffusers_images(python, checkpoint, tmp_path, family):
    run(python, EXPORT, checkpoint(family), tmp_path / "exported")
    opened = adopt(tmp_path / "exported", tmp_path / "bundle")
    assert (opened.manifest.family, opened.standing) == (family, SELF_CONSISTENT)
    shape = latent_shape(opened.manifest.model, REQUEST)
    latents = np.random.default_rng(5).standard_normal(shape, dtype=np.float32)
    wanted = diffusers_images(checkpoint(family), REQUEST, latents).astype(np.float32)
    for profile in map(load_profile, ("cpu-onnxruntime", "cpu-openvino-f32")):
        build(opened, profile)
        with Pipeline.open(opened, profile) as pipeline:
            found = pipeline(REQUEST, latents=latents).images.astype(np.float32)
        assert psnr_db(wanted, found) > ADOPTED_DB
