"""A bundle as it lies opens in optimum-onnx, in an environment of versions that go together, with the same images."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from latentc.benchmarks.baselines import BASELINES, peers_folder, python_of
from latentc.core.errors import RuntimeMissing
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.sampling.host import latent_shape

PROGRAM = Path(__file__).with_name("draw_with_optimum.py")
SECONDS = 300
LEAST_DB = 60.0
STEPS, SIDE, GUIDANCE = 4, 64, 5.0


@pytest.fixture(scope="module")
def python():
    try:
        return python_of(BASELINES["optimum-onnxruntime"], peers_folder())
    except RuntimeMissing as exc:
        pytest.skip(str(exc))


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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, PROGRAM, pipeline.bundle.folder, *files],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = np.round(np.load(files[-1])[0] * 255).astype(np.float32)
    assert found.shape == expected.shape
    assert expected.std() > 1
    assert psnr_db(expected, found) > LEAST_DB
