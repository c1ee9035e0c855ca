"""Commands that make bundles and engines, and look into them.

Packages are imported inside the functions, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import (
    Budget,
    Embeddings,
    Folder,
    Json,
    Loras,
    NativeSize,
    NewBundle,
    PredictionType,
    Profiles,
    Quiet,
    Scheduler,
    Sequential,
    Sizes,
    Spacing,
    Threads,
    ZeroSnr,
)
from .text import say

WithoutT5 = Annotated[
    bool,
    typer.Option("--without-t5", help="Leave out T5 of Stable Diffusion 3, which takes 9.5 GB; zeros replace it."),
]


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A diffusers folder, a .safetensors file in the original layout, a Hugging Face Hub id (owner/name), "
            "or a file in a Hub repository (owner/name/file.safetensors).",
        ),
    ],
    output: NewBundle,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hub repository.")] = None,
    prediction: PredictionType = None,
    spacing: Spacing = None,
    zero_snr: ZeroSnr = None,
    size: NativeSize = None,
    scheduler: Scheduler = None,
    variant: Annotated[
        str | None, typer.Option(help="Weight file variant of a folder or Hub repository: fp16, ema, non_ema ...")
    ] = None,
    vae: Annotated[str | None, typer.Option(help="VAE to use instead: a file, folder or Hub id.")] = None,
    unet: Annotated[
        str | None,
        typer.Option(help="UNet to use instead (such as Lightning, Hyper-SD or LCM): a file, folder or Hub id."),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            help="ControlNet or T2I-Adapter of the same family, which becomes part of the denoiser's graph: a file, "
            "folder or Hub id. Give it once for each."
        ),
    ] = None,
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            help="IP-Adapter of the same family, for `run --style`: a .safetensors file, a folder of one, or a file on "
            "the Hub, such as h94/IP-Adapter/models/ip-adapter_sd15.safetensors."
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            help="Image encoder of --ip-adapter: a folder or Hub id. Default: the folder image_encoder beside its file."
        ),
    ] = None,
    tiny_vae: Annotated[
        str | None,
        typer.Option(
            help="Tiny decoder (taesd) for `run --decoder tiny`, beside the VAE: a file, folder or Hub id, such as "
            "madebyollin/taesd."
        ),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            help="Refiner of Stable Diffusion XL, which takes over the last steps: a file, folder or Hub id, such as "
            "stabilityai/stable-diffusion-xl-refiner-1.0."
        ),
    ] = None,
    without_t5: WithoutT5 = False,
    text_encoders: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clip_l.safetensors, clip_g.safetensors and t5xxl_fp16.safetensors, for a single file of "
            "Stable Diffusion 3 without them. Default: the folder text_encoders beside the file."
        ),
    ] = None,
    embedding: Embeddings = None,
    lora: Loras = None,
    shipped_graphs: Annotated[
        bool,
        typer.Option(
            "--shipped-graphs",
            help="For `scenes`, without PyTorch: use the exported graphs that ship with latentc. Wheels made by "
            "`make wheel` in a checkout have PyTorch's references too; without them, the bundle is self-consistent, "
            "not proved.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, and compare each graph with PyTorch."""
    from ..checkpoints.adapters.open import strengths
    from ..checkpoints.open import SHIPPED
    from ..checkpoints.original_mmdit import in_folder
    from ..export.export import export as run_export
    from ..export.shipped import export_shipped
    from . import show
    from .progress import shown

    if shipped_graphs:
        others = (
            *(revision, prediction, spacing, zero_snr, size, scheduler, variant, vae, unet, controlnet, ip_adapter),
            *(image_encoder, tiny_vae, refiner, text_encoders, embedding, lora, without_t5 or None),
        )
        if checkpoint not in SHIPPED or any(one is not None for one in others):
            names = " or ".join(SHIPPED)
            raise typer.BadParameter(f"It is for {names} only, without other options.", param_hint="--shipped-graphs")
        with shown(quiet or as_json) as tell:
            bundle = export_shipped(output, tell)
        show.bundle(bundle, as_json)
        return
    replaced = {name: place for name, place in (("vae", vae), ("unet", unet)) if place is not None}
    texts = in_folder(text_encoders) if text_encoders is not None else {}
    if without_t5:
        texts.pop("text_encoder_3", None)
    with shown(quiet or as_json) as tell:
        bundle = run_export(
            checkpoint,
            output,
            revision=revision,
            prediction=prediction,
            variant=variant,
            components=replaced | texts,
            without=("text_encoder_3",) if without_t5 else (),
            embeddings=tuple(embedding or ()),
            loras=strengths(lora or ()),
            spacing=spacing,
            zero_snr=zero_snr,
            size=size,
            scheduler=scheduler,
            controlnets=controlnet or (),
            tiny_vae=tiny_vae,
            ip_adapter=ip_adapter,
            image_encoder=image_encoder,
            refiner=refiner,
            on_progress=tell,
        )
    show.bundle(bundle, as_json)


def adopt(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of ONNX graphs that another tool exported: optimum or Olive (unet/model.onnx and others), a "
            "repository for AMD's GPUs, or NVIDIA's for TensorRT (ONNX/transformer/bf16 ...).",
        ),
    ],
    output: NewBundle,
    family: Annotated[
        str | None, typer.Option(help="Model family, such as sd15 or sdxl, where the folder does not tell.")
    ] = None,
    configs: Annotated[
        Path | None,
        typer.Option(help="A diffusers folder that supplies missing tokenizers, scheduler and configs."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Folder of a part's graph, such as transformer=transformer/bf16."),
    ] = None,
    prediction: PredictionType = None,
    spacing: Spacing = None,
    zero_snr: ZeroSnr = None,
    size: NativeSize = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a bundle of ONNX graphs that another tool exported. No PyTorch reference stands behind it."""
    from ..export.adopt import adopt as run_adopt
    from . import show
    from .progress import shown

    pairs = [one.partition("=") for one in part or ()]
    if wrong := next((name for name, equals, place in pairs if not (name and equals and place)), None):
        raise typer.BadParameter(f"{wrong!r} is not NAME=FOLDER, such as unet=unet/fp16.", param_hint="--part")
    with shown(quiet or as_json) as tell:
        bundle = run_adopt(
            folder,
            output,
            family=family,
            configs=configs,
            parts={name: place for name, _, place in pairs},
            prediction=prediction,
            spacing=spacing,
            zero_snr=zero_snr,
            size=size,
            scheduler=scheduler,
            on_progress=tell,
        )
    show.bundle(bundle, as_json)


def fuse(
    bundle: Folder,
    output: NewBundle,
    lora: Loras = None,
    embedding: Embeddings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a bundle whose weights are fused with adapters, without the checkpoint. No PyTorch reference stands behind
    it; `latentc export --lora --embedding` makes one that is proved.
    """
    from ..checkpoints.adapters.open import strengths
    from ..export.fused import fuse as run_fuse
    from . import show
    from .progress import shown

    with shown(quiet or as_json) as tell:
        made = run_fuse(bundle, output, strengths(lora or ()), embeddings=embedding or (), on_progress=tell)
    show.bundle(made, as_json)


def build(
    bundle: Folder,
    profile: Profiles = None,
    threads: Threads = None,
    sizes: Sizes = None,
    sequential: Sequential = False,
    force: Annotated[
        bool, typer.Option("--force", help="Build even if the plan predicts that it will not fit.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="A built bundle of a related checkpoint, such as the base of a fine-tune. Engines of identical parts "
            "are reused; TensorRT engines built with refit = true are refitted with this bundle's weights."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile a bundle for one or more profiles, and compare each engine with its reference."""
    from ..compiler.build import Build, check
    from ..compiler.build import build as run_build
    from ..core.bundle import open_bundle
    from . import BEFORE, show
    from .choose import choose, sized
    from .progress import shown, within

    opened, other = open_bundle(bundle), open_bundle(like) if like else None
    chosen = sized(choose(profile, threads, sequential=sequential, bundle=bundle), sizes)
    for one in chosen:  # before the first is built
        check(opened, one, force=force, like=other)
    builds: list[Build] = []
    try:
        with shown(quiet or as_json) as tell:
            for one in chosen:
                progress = within(one.name, tell) if len(chosen) > 1 else tell
                builds += [run_build(opened, one, progress, force=force, like=other)]
    except BaseException as exc:
        if builds and as_json:
            vars(exc)[BEFORE] = {"built": show.plain_builds(builds)}
        elif builds:
            show.builds(builds, as_json)
        raise
    show.builds(builds, as_json)


def plan(
    bundle: Folder,
    profile: Profiles = None,
    sizes: Sizes = None,
    sequential: Sequential = False,
    memory: Budget = None,
    size: Annotated[
        str | None, typer.Option(help="Size of the image for --memory, such as 768x512. Default: the model's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the build time, disk space and memory that a profile needs, and whether it fits.

    With --memory, the exit code is 1 where an image does not fit.
    """
    from ..compiler.plan import plan as run_plan
    from ..core.bundle import open_bundle
    from .choose import choose, sized
    from .plan import budget_answer, show

    opened = open_bundle(bundle)
    chosen = sized(choose(profile, sequential=sequential, bundle=bundle), sizes)
    fitted = [budget_answer(opened, one, memory, size) for one in chosen]
    show([run_plan(opened, one) for one in chosen], as_json, fitted)


def why(bundle: Folder, profile: Profiles = None, as_json: Json = False) -> None:
    """Show which engines of a profile are available, and why the others are not."""
    from ..core.bundle import open_bundle
    from .choose import choose
    from .why import why as show

    show(open_bundle(bundle), choose(profile, bundle=bundle), as_json)


def inspect(bundle: Folder, as_json: Json = False) -> None:
    """Show a bundle's source, parts and engines."""
    from ..compiler.cache import artifacts
    from ..compiler.faults import broken
    from ..compiler.prune import unneeded
    from ..core.bundle import open_bundle
    from . import show

    opened = open_bundle(bundle)
    show.bundle(opened, as_json, artifacts(opened), broken(opened), unneeded(opened))


def verify(bundle: Folder, quiet: Quiet = False, as_json: Json = False) -> None:
    """Compare every file of a bundle, of its engines, and of bundles made of it with adapters, with its digest."""
    from ..compiler.cache import artifacts
    from ..compiler.faults import faults
    from ..compiler.prune import adapted_bundles, unneeded
    from ..core.bundle import open_bundle
    from . import show
    from .progress import shown

    opened = open_bundle(bundle)
    made, found = adapted_bundles(opened)
    with shown(quiet or as_json) as tell:
        found += [fault for one in (opened, *made) for fault in faults(one, tell)]
    engines = [engine for one in (opened, *made) for engine in artifacts(one)]
    show.verified(opened, engines, found, unneeded(opened), as_json)


def prune(
    bundle: Folder,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only list what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove leftovers of interrupted work, and engines that nothing can load; never unknown files."""
    from ..compiler.prune import prune as run_prune
    from ..core.bundle import open_bundle
    from . import show

    opened = open_bundle(bundle)
    show.pruned(opened, run_prune(opened, dry_run=dry_run), dry_run=dry_run, as_json=as_json)


def new_checkpoint(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to; it must not exist.")],
    family: Annotated[
        str, typer.Option(help="Model family: sd15, sd21, sdxl, sd3, svd ..., or sd15-inpainting ...")
    ] = "sd15",
    size: Annotated[
        Literal["tiny", "full"], typer.Option(help="tiny: a few MB. full: the size of the published model.")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    without_t5: WithoutT5 = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint with random weights, for tests and benchmarks. Its images are noise."""
    from ..checkpoints.random import new_checkpoint as write
    from .progress import shown

    with shown(quiet) as tell:
        write(family, size, seed, folder, without=("text_encoder_3",) if without_t5 else (), on_progress=tell)
    say(f"{folder}: {family}, {size}, random weights. Next: latentc export {folder} -o {folder}.bundle")
