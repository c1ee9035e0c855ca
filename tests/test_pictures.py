"""From a checkpoint to a picture, against diffusers' own pipeline; and without torch."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from latentc.compiler.build import build
from latentc.core.errors import CancelledError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.host import latent_shape

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "sd35m", "sd35l")
PROFILES = ("cpu-openvino-f32", "cpu-onnxruntime", "torch-f32")
PROMPT = "a lighthouse on a cliff, sunset"
NEGATIVE = "fog"


def diffusers_picture(folder, request, latents):
    """The picture of diffusers' own pipeline as floats in [0, 1], [count, height, width, 3]."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    more = {} if hasattr(pipeline, "text_encoder_2") else {"guidance_rescale": request.guidance_rescale}
    out = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt or None,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_images_per_prompt=request.count,
        latents=torch.from_numpy(latents),
        output_type="np",
        **more,
    )
    return out.images


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_diffusers_own(bundle, checkpoint, family):
    opened = bundle(family)
    request = Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=144, height=80, steps=8, guidance=6.0, seed=3, count=2
    )
    shape = latent_shape(opened.manifest.model, request)
    latents = np.random.default_rng(5).standard_normal(shape, dtype=np.float32)
    expected = (diffusers_picture(checkpoint(family), request, latents) * 255).round()
    assert expected.std() > 5, "a flat picture shows nothing"
    for name in PROFILES:
        profile = load_profile(name)
        built = build(opened, profile)
        assert built.step_psnr_db > 90
        with Pipeline.open(opened, profile) as pipeline:
            result = pipeline(request, latents=latents)
        assert psnr_db(expected, result.images.astype(np.float64)) >= 60, (family, name)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_one_call_without_guidance_and_an_empty_negative_prompt(bundle, checkpoint):
    opened = bundle("sdxl")
    build(opened, load_profile("cpu-onnxruntime"))
    latents = np.random.default_rng(5).standard_normal((1, 4, 16, 16), dtype=np.float32)
    with Pipeline.open(opened, "cpu-onnxruntime") as pipeline:
        for guidance in (1.0, 7.5):
            request = Request(prompt=PROMPT, width=128, height=128, steps=4, guidance=guidance)
            expected = (diffusers_picture(checkpoint("sdxl"), request, latents) * 255).round()
            found = pipeline(request, latents=latents).images
            assert psnr_db(expected, found.astype(np.float64)) >= 60


@pytest.mark.slow
def test_bf16_is_near_and_says_so(bundle):
    profile = load_profile("cpu-openvino")
    opened = bundle("sd1")
    built = build(opened, profile)
    assert built.step_psnr_db > 30
    request = Request(prompt=PROMPT, width=128, height=128, steps=4, seed=1)
    with Pipeline.open(opened, profile) as pipeline:
        result = pipeline(request)
    precision = built.engines[1].artifact.fields.precision
    assert result.engines["unet"].endswith(f" CPU {precision}")
    build(opened, load_profile("cpu-openvino-f32"))
    with Pipeline.open(opened, "cpu-openvino-f32") as pipeline:
        reference = pipeline(request)
    assert (psnr_db(reference.latents, result.latents) < 60) == (precision == "bf16")
    assert psnr_db(reference.latents, result.latents) > 20


@pytest.mark.parametrize("profile", ["cpu-openvino-f32", "cpu-onnxruntime"])
def test_eight_threads_draw_the_same_bytes_as_one(bundle, profile):
    opened = bundle("sd1")
    build(opened, load_profile(profile))
    request = Request(prompt=PROMPT, width=64, height=64, steps=3, seed=11, scheduler="euler-ancestral")
    with Pipeline.open(opened, profile) as pipeline:
        alone = pipeline(request).images.tobytes()
        drawn = [b""] * 8

        def draw(index):
            drawn[index] = pipeline(request).images.tobytes()

        threads = [threading.Thread(target=draw, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert drawn == [alone] * 8


def test_cancel_stops_at_the_step(bundle):
    opened = bundle("sd1")
    build(opened, load_profile("cpu-onnxruntime"))
    seen = []
    with Pipeline.open(opened, "cpu-onnxruntime") as pipeline:
        request = Request(prompt="x", width=64, height=64, steps=5)
        with pytest.raises(CancelledError):
            pipeline(request, lambda step: seen.append(step.index) or step.index < 2)
        assert seen == [1, 2]
        assert pipeline(request).images.shape == (1, 64, 64, 3)


WITHOUT_TORCH = """
import sys
for name in ("torch", "diffusers", "transformers", "huggingface_hub", "safetensors"):
    sys.modules[name] = None
sys.argv[0] = "latentc"
from latentc.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu-openvino-f32", "cpu-onnxruntime"])
def test_a_bundle_builds_and_draws_without_torch(own_bundle, tmp_path, profile):
    opened = own_bundle("sdxl")
    for arguments in (
        ["build", str(opened.folder), "--profile", profile, "--json"],
        ["run", str(opened.folder), "a cat", "--profile", profile, "--steps", "2", "--size", "72x64", "--json",
         "--output", str(tmp_path / "cat.png")],
        ["show", str(tmp_path / "cat.png"), "--json"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["request"]["prompt"] == "a cat"
    assert (shown["request"]["width"], shown["request"]["height"]) == (72, 64)
