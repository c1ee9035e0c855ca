"""From an image to a video, against diffusers' own pipeline."""

import inspect

import numpy as np
import pytest
from PIL import Image

from latentc.checkpoints import find_family
from latentc.checkpoints.random import new_checkpoint
from latentc.compiler.build import build
from latentc.compiler.host_check import check_host
from latentc.core.errors import ProfileError, RequestError
from latentc.core.images import pixels_sha256
from latentc.core.request import MOTION, Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.host import load_host
from latentc.sampling.schedulers import schedule

PROFILES = ("cpu-openvino-f32", "cpu-onnxruntime", "torch-f32")
REQUEST = Request(
    width=96, height=80, steps=4, seed=3, guidance=4.0, min_guidance=1.5, fps=12, motion_bucket_id=90,
    noise_aug_strength=0.1,
)  # fmt: skip


def diffusers_video(folder, image, request, latents, image_noise, monkeypatch):
    """The frames of diffusers' own pipeline as floats in [0, 1], [count, frames, height, width, 3]."""
    import torch
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as module

    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with monkeypatch.context() as patched:
        patched.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(image_noise[:1]))
        return pipeline(
            Image.fromarray(image),
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            min_guidance_scale=request.min_guidance,
            max_guidance_scale=request.guidance,
            fps=request.fps,
            motion_bucket_id=request.motion_bucket_id,
            noise_aug_strength=request.noise_aug_strength,
            decode_chunk_size=request.decode_chunk_size,
            num_videos_per_prompt=request.count,
            latents=torch.from_numpy(latents),
            output_type="np",
        ).frames


@pytest.fixture(scope="session")
def drawn(bundle):
    """`drawn(family, profile)`: an open pipeline."""
    opened = {}

    def make(family, name):
        if (family, name) not in opened:
            condition = build(bundle(family), load_profile(name)).condition
            assert condition == ("image" if family.startswith("svd") else "prompt")
            opened[family, name] = Pipeline.open(bundle(family), name)
        return opened[family, name]

    yield make
    for pipeline in opened.values():
        pipeline.close()


def noises(frames, request):
    random = np.random.default_rng(5)
    latents = random.standard_normal((request.count, frames, 4, request.height // 8, request.width // 8), np.float32)
    return latents, random.standard_normal((request.count, 3, request.height, request.width), np.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decode_chunk_size": 5},
        {"guidance": 1.0, "min_guidance": 1.0, "width": 72, "height": 136},
        {"count": 2, "steps": 2},
    ],
    ids=["guided", "in chunks", "unguided", "two"],
)
def test_frames_are_diffusers_own(drawn, checkpoint, photo, monkeypatch, changes):
    request, image = REQUEST.model_copy(update=changes), photo()
    latents, image_noise = noises(14, request)
    image_noise[:] = image_noise[:1]  # diffusers adds one noise for all
    expected = diffusers_video(checkpoint("svd"), image, request, latents, image_noise, monkeypatch) * 255
    assert expected.std() > 5, "flat frames show nothing"
    assert np.abs(np.diff(expected, axis=1)).mean() > 1, "frames that stand still show nothing"
    for name in PROFILES if not changes else PROFILES[1:2]:
        result = drawn("svd", name)(request, image=image, latents=latents, image_noise=image_noise)
        assert result.images.shape == expected.shape == (request.count, 14, request.height, request.width, 3)
        assert psnr_db(expected.round(), result.images.astype(np.float64)) >= 60, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_25_frames_of_a_checkpoint_in_f16_are_diffusers_own(photo, tmp_path, monkeypatch):
    """In f16, as all published ones are: the graphs compute in f32, and diffusers' pipeline must do so too."""
    folder = new_checkpoint("svd_xt", "tiny", 2, tmp_path / "half", dtype="f16")
    opened = export(folder, tmp_path / "half.bundle")
    assert {part.weights for part in opened.manifest.parts.values()} == {"f16"}
    assert check_host(opened, load_host(opened)) > 100
    request, image = REQUEST.model_copy(update={"steps": 2, "width": 72, "height": 72}), photo(300, 60)
    latents, image_noise = noises(25, request)
    expected = diffusers_video(folder, image, request, latents, image_noise, monkeypatch) * 255
    profile = load_profile("cpu-onnxruntime")
    assert build(opened, profile).condition == "image"
    with Pipeline.open(opened, profile) as pipeline:
        result = pipeline(request, image=image, latents=latents, image_noise=image_noise)
    assert result.images.shape == (1, 25, 72, 72, 3)
    assert psnr_db(expected.round(), result.images.astype(np.float64)) >= 60


def test_defaults_are_those_of_diffusers():
    from diffusers import StableVideoDiffusionPipeline

    known = {
        name: one.default for name, one in inspect.signature(StableVideoDiffusionPipeline.__call__).parameters.items()
    }
    assert {name: known[name] for name in MOTION} == MOTION
    family = find_family("svd")
    assert family.frame_guidance == (known["min_guidance_scale"], known["max_guidance_scale"])
    assert (family.pixels, family.high) == (known["width"], known["height"])


@pytest.mark.slow
def test_each_video_of_a_request_is_that_of_its_seed(drawn, photo):
    pipeline = drawn("svd", "cpu-onnxruntime")
    request = REQUEST.model_copy(update={"count": 2, "steps": 1, "seed": 8})
    both = pipeline(request, image=photo()).images
    alone = pipeline(request.model_copy(update={"count": 1, "seed": 9}), image=photo()).images
    assert (both[1] == alone[0]).all()
    assert (both[0] != alone[0]).any()


@pytest.mark.slow
def test_what_was_not_given_is_filled_in_and_notices_say_what_was_done(drawn, photo, photo_file):
    pipeline = drawn("svd", "cpu-onnxruntime")
    result = pipeline(Request(steps=1, seed=1, decode_chunk_size=8), image=photo_file)
    asked = result.request
    assert (asked.width, asked.height, asked.prompt, asked.guidance, asked.min_guidance) == (128, 128, "", 3.0, 1.0)
    assert {name: getattr(asked, name) for name in MOTION} == MOTION
    assert asked.image_sha256 == pixels_sha256(photo())
    assert any("resized to 128x128, which changes its proportions" in notice for notice in result.notices)
    assert any("14 frames were decoded 8 at a time" in notice for notice in result.notices)
    assert result.seconds["image_encoder"] > 0
    again = pipeline(asked, image=Image.open(photo_file))
    assert (again.images == result.images).all()
    floats = pipeline(asked, image=photo() / 255)
    assert (floats.images == result.images).all()
    whole = pipeline(asked.model_copy(update={"decode_chunk_size": None}), image=photo())
    assert (whole.images != result.images).any()
    assert not any("at a time" in notice for notice in whole.notices)


@pytest.mark.slow
def test_each_number_has_an_effect(drawn, photo):
    pipeline = drawn("svd", "cpu-onnxruntime")
    request = REQUEST.model_copy(update={"steps": 2})
    before = pipeline(request, image=photo()).images
    others = {"fps": 5, "motion_bucket_id": 200, "noise_aug_strength": 0.5, "min_guidance": 3.0, "guidance": 2.0}
    for name, value in others.items():
        assert (pipeline(request.model_copy(update={name: value}), image=photo()).images != before).any(), name
    assert (pipeline(request, image=photo(seed=4)).images != before).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_of", "image", "says"),
    [
        (Request(steps=1), None, r"generates a video from an image, and none was given. Pass it with --image"),
        (Request(prompt="a cat"), 1, "a video from an image, without a prompt. It does not take prompt: leave it out"),
        (Request(negative_prompt="fog"), 1, "does not take negative_prompt"),
        (Request(min_guidance=2.0, guidance=1.0), 1, "min_guidance is 2.0, but a guidance of 1.0 for the last frame"),
        (Request(image_sha256="0" * 64), 1, "made with another image: the SHA-256 of its pixels is 000000000000"),
        (Request(image_sha256="0" * 64), None, "from an image with the SHA-256 000000000000"),
    ],
)
def test_what_a_video_model_refuses(drawn, photo, request_of, image, says):
    with pytest.raises(RequestError, match=says):
        drawn("svd", "cpu-onnxruntime")(request_of, image=None if image is None else photo())


@pytest.mark.slow
def test_a_video_model_takes_no_mask(drawn, photo):
    with pytest.raises(RequestError, match="generates a video from an image, and does not take a mask"):
        drawn("svd", "cpu-onnxruntime")(Request(steps=1), image=photo(), mask=np.ones((64, 64), bool))


@pytest.mark.slow
def test_what_a_text_model_refuses(drawn):
    pipeline = drawn("sd1", "cpu-onnxruntime")
    for name, value in {**MOTION, "min_guidance": 1.0, "decode_chunk_size": 4}.items():
        with pytest.raises(RequestError, match=f"images from a prompt. It does not take {name}: leave it out"):
            pipeline(Request(prompt="a cat", steps=1, **{name: value}))
    with pytest.raises(RequestError, match="has no prompt"):
        pipeline(Request(steps=1))


@pytest.mark.slow
def test_wrong_image_noise_is_refused(drawn, photo):
    with pytest.raises(RequestError, match=r"needs finite float32 \[1, 3, 80, 96\]"):
        drawn("svd", "cpu-onnxruntime")(REQUEST, image=photo(), image_noise=np.zeros((1, 3, 80, 80), np.float32))


def test_a_scheduler_of_other_noise_levels_is_refused():
    """Names without the checkpoint's spacing would begin at a noise level of 5 instead of 700."""
    config = find_family("svd").config("scheduler")
    assert np.array_equal(schedule(config, 5, "euler-karras").timesteps, schedule(config, 5).timesteps)
    for name in ("euler", "euler-beta"):
        with pytest.raises(RequestError, match="would change the noise levels .* as in 'euler-karras'"):
            schedule(config, 5, name)
    with pytest.raises(ProfileError, match="timestep_type = 'continuous', which DDIMScheduler does not support"):
        schedule(config, 5, "ddim")
