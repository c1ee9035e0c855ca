"""Commands that generate images and videos, and show what is stored in them.

Packages are imported inside the functions, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Budget, Device, Embeddings, Folder, Json, Loras, ProfileName, Quiet, Sequential, Threads
from .text import say

SCALES = ("image_guidance", "refine_from", "aesthetic_score", "negative_aesthetic_score")
"""Fields of requests that InstructPix2Pix and refiners take."""


def run(
    context: typer.Context,
    bundle: Folder,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Prompts. Several prompts run one after another."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Image file: .png or .webp (both lossless), or .jpg. Video: .mp4, .webp (lossless), .gif, or a name "
            "without a suffix for a folder of PNGs. With several images, -1, -2 ... are appended to "
            "the name. Use - for standard output. An existing file is an error. Default: the first of out.png, "
            "out-1.png ... that does not exist.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite existing files.")] = False,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="File with one prompt per line, or a .jsonl file with one request per line as a JSON object. Use - "
            "for standard input.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="IMAGE",
            help="Repeat the request stored in an image. Prompts and options given here override it.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION",
            help="Option that the image of --from states, and that is left out: hires, fill, outpaint, crop, strength "
            "... May be repeated.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Image to change, by --strength; of a video, the image that it is generated from."
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Mask of --image: white is generated (inpainting), black keeps the image's own pixels."
        ),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            help="What replaces the area of --mask before it is noised, at a --strength below 1: noise, or edge (the "
            "colours around it). Default: the image's own pixels."
        ),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="LEFT,TOP,RIGHT,BOTTOM", help="Pixels by which --image is extended on each side (outpainting)."
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Generate only the area of --mask with a margin of this many pixels, at --size, and paste it into the "
            "image, which keeps its size.",
        ),
    ] = None,
    mask_blur: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Deviation of a Gaussian blur of --mask, by which the result is mixed with the image. Default: a "
            "border of about 4 pixels inside of the mask.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps that change --image, above 0 and at most 1. Default: 0.8; with --mask, 1; of a "
            "refiner alone, 0.3."
        ),
    ] = None,
    image_guidance: Annotated[
        float | None,
        typer.Option(help="InstructPix2Pix: guidance scale of --image, 1 or more. Default: 1.5."),
    ] = None,
    refine_from: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the training timesteps after which the bundle's refiner takes over; 1 leaves it out. "
            "Default: 0.8.",
        ),
    ] = None,
    aesthetic_score: Annotated[
        float | None, typer.Option(help="Refiner: aesthetic score of the prompt, 0 to 10. Default: 6.")
    ] = None,
    negative_aesthetic_score: Annotated[
        float | None, typer.Option(help="Refiner: aesthetic score of the negative prompt, 0 to 10. Default: 2.5.")
    ] = None,
    hires: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR", help="Enlarge each image by this factor, up to 4, and generate it again from there."
        ),
    ] = None,
    hires_strength: Annotated[
        float | None, typer.Option(help="Share of the steps of the second pass of --hires. Default: 0.7.")
    ] = None,
    hires_steps: Annotated[
        int | None, typer.Option(help="Denoising steps of the second pass of --hires. Default: --steps.")
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Image for a ControlNet or T2I-Adapter of the bundle (edges, depth ...), once for each, in the order "
            "of export.",
        ),
    ] = None,
    control_scale: Annotated[
        list[float] | None,
        typer.Option(help="Factor of a ControlNet's effect, once for all or for each. Default: 1."),
    ] = None,
    control_start: Annotated[
        list[float] | None,
        typer.Option(help="Share of the steps at which a ControlNet begins, once for all or for each. Default: 0."),
    ] = None,
    control_end: Annotated[
        list[float] | None,
        typer.Option(help="Share of the steps at which a ControlNet ends, once for all or for each. Default: 1."),
    ] = None,
    guess_mode: Annotated[
        bool,
        typer.Option("--guess-mode", help="ControlNets affect only the prompt's rows, and early layers less."),
    ] = False,
    style: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Image whose style is transferred, for a bundle with an IP-Adapter."),
    ] = None,
    style_strength: Annotated[
        float | None, typer.Option(help="Factor of the effect of --style, 0 to 1. Default: 1.")
    ] = None,
    lora: Loras = None,
    embedding: Embeddings = None,
    profile: ProfileName = None,
    device: Device = None,
    threads: Threads = None,
    sequential: Sequential = False,
    memory: Budget = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    prompt_syntax: Annotated[
        str | None,
        typer.Option(
            help="Syntax of both prompts: plain text, a1111 for the web UI's weights, such as (a small dog:1.2), or "
            "compel for those of compel, such as (a small dog)1.2. Default: plain."
        ),
    ] = None,
    downweight: Annotated[
        str | None,
        typer.Option(
            help="What compel blends a prompt with weights below 1 with: itself with these words hidden from the text "
            "encoder (mask), or without them (remove). Default: mask, as in compel, where the bundle supports it."
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            help="Number of CLIP's last layers that are skipped for the prompt, as in diffusers: 1 is the web UI's "
            "Clip skip 2. Default: 0."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="WIDTHxHEIGHT in pixels, or one number for a square; multiples of 8 (of 16 for "
            "Stable Diffusion 3). Default: that of --image if it is near the model's own; else the model's own number "
            "of pixels."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: 20.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale; of a video, that of the last frame. 1 or less disables guidance. Default: 7.5, of a "
            "video 3."
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(help="Guidance rescale factor, 0 to 1. Reduces overexposure at high guidance. Default: 0."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of each prompt's first image. Default: random; the output shows it.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Images per prompt, with consecutive seeds. Default: 1.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Scheduler and steps by one name: exact, balanced, fast or draft, from the slowest on; or a .toml "
            "file that `latentc tune` wrote, which also names the profile.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Scheduler, such as euler or dpm++2m-karras. Default: the bundle's.")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Timestep spacing: leading, trailing or linspace. Turbo and Lightning need trailing."),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Randomness of ddim, or tcd's gamma, 0 to 1. Default: 0. Others have none.")
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Timestep of each step, such as 999,759,499,259, instead of --steps and a spacing. For schedulers "
            "whose class in diffusers accepts them.",
        ),
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,...,0",
            help="Noise level of each step, and 0 at the end, such as 14.6,3.9,1.4,0.4,0, instead of --steps and a "
            "spacing.",
        ),
    ] = None,
    decoder: Annotated[
        Literal["tiny", "vae"] | None,
        typer.Option(
            help="tiny: decode with the bundle's tiny decoder, faster and less exactly; vae: with the VAE, whatever "
            "the image of --from was decoded with. Default: the VAE."
        ),
    ] = None,
    vae_tile: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the tiles that a larger image is decoded in, a multiple of 32, such as 512. Takes less "
            "memory, and changes the image a little. Default: the whole image at once.",
        ),
    ] = None,
    fps: Annotated[int | None, typer.Option(help="Video: frames per second. Default: 7.")] = None,
    motion_bucket_id: Annotated[
        int | None, typer.Option(help="Video: amount of motion, 0 to 255. Default: 127.")
    ] = None,
    noise_aug_strength: Annotated[
        float | None, typer.Option(help="Video: deviation of the noise that is added to the image. Default: 0.02.")
    ] = None,
    min_guidance: Annotated[
        float | None, typer.Option(help="Video: guidance scale of the first frame. Default: 1.")
    ] = None,
    decode_chunk_size: Annotated[
        int | None,
        typer.Option(help="Video: frames that are decoded at once. Fewer take less memory, and change the frames."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generate images from prompts, or a video from an image, with the engines of a profile."""
    from ..checkpoints.adapters.open import strengths
    from ..core.request import MOTION
    from .ask import ask, numbers, parse_sides, parse_size, stated
    from .choose import choose_one, profile_in
    from .draw import draw

    if not (prompts or prompt_file or picture or image):
        context.fail("Missing PROMPT: give a prompt, --prompts FILE or --from IMAGE; for a video, --image FILE.")
    given = strengths(lora or ())
    stored = stated(picture, without or (), adapters=bool(given))  # as any option, --lora replaces what it states
    values = {
        "negative_prompt": negative,
        "prompt_syntax": prompt_syntax,
        "downweight": downweight,
        "clip_skip": clip_skip,
        "steps": steps,
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "seed": seed,
        "count": count,
        "preset": preset,
        "scheduler": scheduler,
        **parse_size(size),
        "timestep_spacing": spacing,
        "eta": eta,
        "timesteps": numbers(timesteps, "--timesteps", int),
        "sigmas": numbers(sigmas, "--sigmas", float),
        "decoder": decoder,
        "vae_tile": vae_tile,
        **dict(zip(MOTION, (fps, motion_bucket_id, noise_aug_strength), strict=True)),
        "min_guidance": min_guidance,
        "strength": strength,
        "fill": fill,
        "outpaint": parse_sides(outpaint),
        "crop": crop,
        "mask_blur": mask_blur,
        **dict(zip(SCALES, (image_guidance, refine_from, aesthetic_score, negative_aesthetic_score), strict=True)),
        **dict(zip(("hires", "hires_strength", "hires_steps"), (hires, hires_strength, hires_steps), strict=True)),
        "control_scale": control_scale,
        "control_start": control_start,
        "control_end": control_end,
        "guess_mode": guess_mode or None,
        "style_strength": style_strength,
        "decode_chunk_size": decode_chunk_size,
    }
    requests = ask(prompts or [], prompt_file, stored, values, image=image is not None)
    draw(
        bundle,
        choose_one(profile or profile_in(preset), threads, device=device, sequential=sequential, bundle=bundle),
        requests,
        output,
        image=image,
        mask=mask,
        control=control or (),
        style=style,
        adapters=given,
        embeddings=embedding or (),
        memory_gb=memory,
        overwrite=overwrite,
        origin=(picture, stored) if picture and stored else None,
        quiet=quiet,
        as_json=as_json,
    )


def show_picture(
    picture: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="Image or video made by latentc, or image by AUTOMATIC1111.")
    ],
    as_json: Json = False,
) -> None:
    """Show the request that is stored in an image."""
    from ..pipelines.png import read
    from . import show

    show.picture(read(picture), as_json)


def canny(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP, GIF or BMP.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write; it must not exist.")],
    low: Annotated[
        float, typer.Option(help="Gradient, 0 to 1, above which an edge is kept that is connected to a strong one.")
    ] = 0.1,
    high: Annotated[float, typer.Option(help="Gradient, 0 to 1, of a strong edge.")] = 0.2,
    sigma: Annotated[float, typer.Option(help="Deviation in pixels of the blur before.")] = 1.0,
) -> None:
    """Detect the edges of an image, for `run --control` with a Canny ControlNet."""
    from ..pipelines.edges import canny as detect
    from ..pipelines.edges import write

    write(detect(image, low=low, high=high, sigma=sigma), output)
    say(f"{output}: edges of {image}")
