"""WebGPU and Vulkan, executed over SwiftShader, a GPU in software; WebGPU in an environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentc.core.tensors import psnr_db

HOUSE = Path(__file__).parents[1]
ENVIRONMENT = Path(sys.prefix) / "software-gpu"
DRIVER = ENVIRONMENT / "debian" / "usr" / "lib" / "chromium"
PYTHONS = {"WebGPU": str(ENVIRONMENT / "bin" / "python"), "Vulkan": sys.executable}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ENVIRONMENT / ".ready").exists(), reason="There is no GPU in software; say: make software-gpu"
    ),
]


@pytest.fixture
def call(tmp_path):
    """Run a module of Python's where Vulkan finds SwiftShader and nothing else."""
    icd = tmp_path / "swiftshader.json"
    library = {"library_path": str(DRIVER / "libvk_swiftshader.so"), "api_version": "1.0.5"}
    icd.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": library}))
    places = {"VK_DRIVER_FILES": str(icd), "LD_LIBRARY_PATH": str(DRIVER), "PYTHONPATH": str(HOUSE / ".venv" / "links")}

    def run(api, *arguments):
        command = [PYTHONS[api], "-m", *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | places, cwd=HOUSE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    return run


@pytest.mark.parametrize("api", PYTHONS)
def test_it_holds_the_contract(call, api):
    assert " passed" in call(api, "pytest", "tests/runtimes/test_contract.py", "-k", api, "-p", "no:cacheprovider")


@pytest.mark.parametrize("api", PYTHONS)
def test_it_draws_what_pytorch_draws(call, api, own_bundle, tmp_path):
    bundle = own_bundle("scenes").folder
    (build,) = json.loads(call(api, "latentc", "build", bundle, "--profile", api.lower(), "--json"))
    assert build["step_psnr_db"] > 60
    asked = (bundle, "a red boat on the sea at sunset", "--seed", "1", "--steps", "4", "--quiet", "-o")
    call(api, "latentc", "run", *asked, tmp_path / "ours.png", "--profile", api.lower())
    profile = ("--profile", "torch-f32")
    subprocess.run([sys.executable, "-m", "latentc", "build", bundle, *profile, "--quiet"], check=True)
    subprocess.run([sys.executable, "-m", "latentc", "run", *asked, tmp_path / "torch.png", *profile], check=True)
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}.png"), np.float32) for name in ("ours", "torch"))
    assert psnr_db(theirs, ours) > 40
    with Image.open(tmp_path / "ours.png") as picture:
        said = json.loads(picture.text["latentc"])["engines"]["unet"]
    assert (", nodes: " in said) == (api == "WebGPU"), "where it ran is in the picture"
    for path in bundle.glob("engines/*/placement.json"):
        if not path.parent.name.startswith("text_encoder"):  # whose sizes are free, and worked out by the CPU
            assert list(json.loads(path.read_text())) == ["WebGpuExecutionProvider"]
