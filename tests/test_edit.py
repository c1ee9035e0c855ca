"""InstructPix2Pix, whose UNet sees the image at each step, against diffusers' own pipeline."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from latentc.checkpoints.open import open_checkpoint
from latentc.compiler.build import build
from latentc.compiler.proof import prove_host
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, CheckpointError, ParityError, RequestError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.model import Model
from latentc.core.request import Request
from latentc.core.shapes import Setting, sizes
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
from latentc.sampling import denoise, guidance

from .images import noises, photo

PROFILES = ("cpu-onnxruntime", "cpu-openvino-f32")
FAMILY = "sd1_edit"
REQUEST = Request(prompt="make it night", negative_prompt="fog", width=144, height=80, steps=6, guidance=6.0)
KINDS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
}


def diffusers_images(folder, request, image, latents):
    """The images of diffusers' own pipeline, and the timesteps at which it called the denoiser."""
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if request.scheduler:
        pipeline.scheduler = getattr(diffusers, KINDS[request.scheduler]).from_config(pipeline.scheduler.config)
    called = []
    images = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt or None,
        image=Image.fromarray(image).resize((request.width, request.height), Image.Resampling.LANCZOS),
        latents=torch.from_numpy(latents.copy()),
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_images_per_prompt=request.count,
        output_type="np",
        callback_on_step_end=lambda _pipe, _index, timestep, given: called.append(float(timestep)) or given,
        **({} if request.image_guidance is None else {"image_guidance_scale": request.image_guidance}),
    ).images
    return images, called


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_guidance": 2.5, "count": 2, "negative_prompt": "", "scheduler": "euler"},
        {"image_guidance": 1.0, "scheduler": "heun"},
        {"guidance": 1.0, "count": 2, "scheduler": "ddim"},
        {"scheduler": "dpm++2m"},
    ],
    ids=["pndm", "two", "heun", "unguided", "history"],
)
def test_images_are_diffusers_own(bundle, checkpoint, opened, changes):
    request, image = REQUEST.model_copy(update=changes), photo()
    latents, _ = noises(bundle(FAMILY), request)
    expected, called = diffusers_images(checkpoint(FAMILY), request, image, latents)
    expected = (expected * 255).round()
    assert expected.std() > 5, "a flat image shows nothing"
    for name in PROFILES:
        result = opened(FAMILY, name)(request, image=image, latents=latents)
        assert len(result.step_seconds) == len(called)
        assert psnr_db(expected, result.images.astype(np.float64)) >= 60, name
    assert result.request.image_guidance == changes.get("image_guidance", 1.5)
    assert "vae_encoder" in result.engines
    assert result.seconds["vae_encoder"] > 0


@pytest.mark.slow
def test_the_image_and_its_guidance_are_seen(opened):
    pipeline, request = opened(FAMILY), REQUEST.model_copy(update={"seed": 1, "steps": 2})
    plain, other, stronger = (
        pipeline(request.model_copy(update={"image_guidance": scale}), image=image).latents
        for image, scale in ((photo(), 1.5), (255 - photo(), 1.5), (photo(), 4.0))
    )
    assert psnr_db(plain, other) < 40
    assert psnr_db(plain, stronger) < 40


def test_what_does_not_fit_is_refused(opened, bundle, command, tmp_path):
    pipeline = opened(FAMILY)
    with pytest.raises(RequestError, match="edits an image, as the prompt says. Pass it with --image"):
        pipeline(REQUEST)
    code, _, err = command(
        "run", pipeline.bundle.folder, "a cat", "--profile", "cpu-onnxruntime", "-o", tmp_path / "a.png"
    )
    assert code == 1
    assert "--image (in Python: image=...)" in err
    with pytest.raises(RequestError, match="edits the whole image, and does not take a mask. Leave the mask out"):
        pipeline(REQUEST, image=photo(), mask=np.full((80, 144), 255, np.uint8))
    for changes in ({"strength": 0.5}, {"hires": 2.0}, {"outpaint": (8, 0, 8, 0)}, {"aesthetic_score": 5.0}):
        (name,) = changes
        with pytest.raises(RequestError, match=f"a prompt asks to change .* It does not take {name}: leave it out"):
            pipeline(REQUEST.model_copy(update=changes), image=photo())
    with pytest.raises(RequestError, match="image_guidance"):
        Request(prompt="x", image_guidance=0.9)
    with pytest.raises(RequestError, match="It does not take image_guidance: leave it out"):
        opened("sd1")(Request(prompt="x", image_guidance=1.5))


def test_files_tell_of_the_scale(opened, command, tmp_path):
    bundle = opened(FAMILY).bundle.folder
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    more = ("--profile", "cpu-onnxruntime", "--steps", "2", "--image", tmp_path / "photo.png", "--json")
    code, text, _ = command(
        *("run", bundle, "make it night", "--image-guidance", "2", "--seed", "3", "-o", tmp_path / "a.png", *more)
    )
    assert code == 0
    assert json.loads(text)["request"]["image_guidance"] == 2
    assert "Image CFG scale: 2" in read(tmp_path / "a.png").text
    code, _, _ = command("run", bundle, "--from", tmp_path / "a.png", "-o", tmp_path / "b.png", *more)
    assert code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png")))


def test_other_checkpoints_with_eight_channels_are_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("sdxl"), tmp_path / "xl")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 8}))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].repeat(1, 2, 1, 1)}, file)
    with pytest.raises(
        CheckpointError, match="an instruct-pix2pix .* checkpoint of Stable Diffusion XL .* not supported"
    ):
        open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match="is a UNet of Stable Diffusion 1 InstructPix2Pix, but the checkpoint is"):
        open_checkpoint(str(checkpoint("sd1")), components={"unet": str(checkpoint(FAMILY))})


def test_rows_of_a_batch(exported):
    model = exported(FAMILY).manifest.model
    assert sizes(model, "denoiser", Setting(128, 128, images=2))["batch"] == 6
    assert sizes(model, "denoiser", Setting(128, 128, images=2, guided=False))["batch"] == 2
    assert sizes(model, "text_encoder", Setting(128, 128, images=2))["batch"] == 2


def test_manifests_without_the_wire_are_refused(exported):
    model = exported(FAMILY).manifest.model.model_dump(mode="json")
    for change in ({"wires": model["wires"][:-1]}, {"tasks": ["text"]}):
        with pytest.raises(ValueError, match="the wire of the image, and the task edit, go together"):
            Model.model_validate(model | change)


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_engines_of_a_fixed_size_are_proved(bundle, opened, guided):
    shapes = Shapes(sizes=("96x64",), guided=guided)
    fixed = load_profile("cpu-onnxruntime").model_copy(update={"name": "fixed", "shapes": shapes})
    request = REQUEST.model_copy(update={"seed": 1, "width": 96, "height": 64, "guidance": 6.0 if guided else 1.0})
    made = build(bundle(FAMILY), fixed)
    assert made.step_psnr_db > 90
    with Pipeline.open(bundle(FAMILY), fixed) as pipeline:
        found = pipeline(request, image=photo())
    assert psnr_db(opened(FAMILY)(request, image=photo()).images.astype(float), found.images.astype(float)) > 60


@pytest.mark.slow
def test_memory_budgets_and_parts_in_turn(bundle, opened):
    request = REQUEST.model_copy(update={"seed": 1, "steps": 4})
    expected = opened(FAMILY)(request, image=photo()).images
    for more in ({"sequential": True}, {"memory_gb": 1}):
        with Pipeline.open(bundle(FAMILY), "cpu-onnxruntime", **more) as pipeline:
            assert np.array_equal(pipeline(request, image=photo()).images, expected)


def _scaled(image_guidance):
    def guide(output, scale, rescale, _image):
        return guidance.guide(output, scale, rescale, image_guidance)

    return guide


def _turned(output, scale, rescale, image):
    nothing, negative, positive = np.split(output, 3)
    return guidance.guide(np.concatenate([negative, nothing, positive]), scale, rescale, image)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [_scaled(1.0), _turned], ids=["no guidance of the image", "rows in another order"])
def test_planted_faults_of_the_guidance_are_refused(bundle, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path))
    assert prove_host(bundle(FAMILY)) > 100
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "other"))
    monkeypatch.setattr(
        denoise,
        "guide",
        lambda output, scale, rescale, image: (
            guidance.guide(output, scale, rescale, image) if image is None else fault(output, scale, rescale, image)
        ),
    )
    with pytest.raises(ParityError, match="differs from diffusers' pipeline"):
        prove_host(bundle(FAMILY))


@pytest.mark.slow
def test_planted_faults_of_the_image_are_refused(own_bundle):
    opened = own_bundle(FAMILY)
    value = {key: item for key, item in read_sealed(opened.folder / "latentc.json").items() if key != "seal"}
    value["model"]["wires"][-1]["empty"] = "encode"
    write_sealed(opened.folder / "latentc.json", value)
    with pytest.raises(BundleError, match="the wire of the image"):
        open_bundle(opened.folder)
