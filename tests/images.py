"""Images and masks, and what diffusers' own pipelines make of them."""

import importlib

import numpy as np
from PIL import Image

from latentc.sampling.host import latent_shape

PIPELINES = {
    "sd1": ("StableDiffusionImg2ImgPipeline", "stable_diffusion.pipeline_stable_diffusion_img2img"),
    "sd2": ("StableDiffusionImg2ImgPipeline", "stable_diffusion.pipeline_stable_diffusion_img2img"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "stable_diffusion_3.pipeline_stable_diffusion_3_img2img"),
}
INPAINT = {
    family: (name.replace("Img2Img", "Inpaint"), place.replace("img2img", "inpaint"))
    for family, (name, place) in PIPELINES.items()
}
ALONE = {"sdxl_refiner": PIPELINES["sdxl"]}
"""Of models that need an image."""
INPAINT |= {f"{family}_inpainting": INPAINT[family] for family in ("sd1", "sd2", "sdxl")}


def photo(width=200, height=90):
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    return pixels.astype(np.uint8)


def mask(width=144, height=80):
    """White in the middle and in a corner, black elsewhere."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[24:56, 40:96] = 255
    pixels[:16, :24] = 200
    return pixels


def noises(bundle, request):
    """The noise of the latents, and that with which the image is encoded: one for all images, as in diffusers."""
    random = np.random.default_rng(5)
    shape = latent_shape(bundle.manifest.model, request)
    latents = random.standard_normal(shape, np.float32)
    return latents, np.repeat(random.standard_normal((1, *shape[1:]), np.float32), shape[0], axis=0)


def asked_of(request):
    """A request as arguments of diffusers' pipelines of text to image."""
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "num_images_per_prompt": request.count,
    }


def diffusers_images(family, folder, request, image, latents, image_noise, monkeypatch, area=None, **more):
    """The images of diffusers' own pipeline, and the timesteps at which it called the denoiser."""
    import diffusers
    import torch

    name, place = (PIPELINES | ALONE if area is None else INPAINT)[family]
    parts = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True).components
    if "unet" in parts:  # whose version the pipeline for inpainting looks up
        parts["unet"].register_to_config(_diffusers_version=diffusers.__version__)
    scored = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    parts |= scored if family == "sdxl_refiner" else {}
    pipeline = getattr(diffusers, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    if request.scheduler:
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    for module, array in {
        f"diffusers.pipelines.{place}": latents,
        "diffusers.models.autoencoders.vae": image_noise[:1],
    }.items():
        made = torch.from_numpy(array.copy())
        monkeypatch.setattr(importlib.import_module(module), "randn_tensor", lambda *_, one=made, **__: one)
    called = []
    images = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        image=Image.fromarray(image).resize((request.width, request.height), Image.Resampling.LANCZOS),
        strength=request.strength,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_images_per_prompt=request.count,
        output_type=more.pop("output_type", "np" if area is None else "latent"),
        callback_on_step_end=lambda _pipe, _index, timestep, given: called.append(float(timestep)) or given,
        **({} if area is None else {"mask_image": Image.fromarray(area)}),
        **({"width": request.width, "height": request.height} if family == "sd3" or area is not None else {}),
        **more,
    ).images
    return images, called
