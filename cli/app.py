"""The commands. Packages are imported inside the functions, so that `latentc --help` stays fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .flags import Commands
from .text import say

app = typer.Typer(
    cls=Commands,
    help="Compile Stable Diffusion checkpoints into verified engines for one device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by `latentc export`.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to standard output, without progress.")]
Profiles = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Profile names or .toml files, separated by commas (`latentc profiles` lists the names). "
        "Default: the profile that `latentc doctor` recommends.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads. Default: as the profile says, otherwise what CPU affinity and the container allow.",
    ),
]
Sequential = Annotated[
    bool,
    typer.Option(
        "--sequential",
        help="Load each part only while it runs, so that the largest one must fit in memory instead of all. Slower.",
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Profile name or .toml file. Default: the profile that `latentc doctor` recommends.",
    ),
]


def _print_version(requested: bool) -> None:
    if requested:
        from ..core.version import __version__

        say(f"latentc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A diffusers folder, a .safetensors file in the original layout, a Hugging Face Hub id (owner/name), "
            "or a file in a Hub repository (owner/name/file.safetensors).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the bundle to; it must not exist.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hub repository.")] = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="Prediction type: epsilon, v_prediction or sample. Default: as the checkpoint says."),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Timestep spacing: leading, trailing or linspace. Turbo and Lightning need trailing."),
    ] = None,
    zero_snr: Annotated[
        bool | None,
        typer.Option("--zero-snr/--no-zero-snr", help="Whether the model was trained with zero terminal SNR."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side, in pixels, of the square images the model was trained on.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Default scheduler of the bundle, such as euler, instead of the checkpoint's.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Weight file variant of a folder or Hub repository: fp16, ema, non_ema ...")
    ] = None,
    vae: Annotated[str | None, typer.Option(help="VAE to use instead: a file, folder or Hub id.")] = None,
    unet: Annotated[
        str | None,
        typer.Option(help="UNet to use instead (such as Lightning, Hyper-SD or LCM): a file, folder or Hub id."),
    ] = None,
    without_t5: Annotated[
        bool,
        typer.Option("--without-t5", help="Leave out T5 of Stable Diffusion 3, which takes 9.5 GB; zeros replace it."),
    ] = False,
    text_encoders: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clip_l.safetensors, clip_g.safetensors and t5xxl_fp16.safetensors, for a single file of "
            "Stable Diffusion 3 without them. Default: the folder text_encoders beside the file."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, and compare each graph with PyTorch."""
    from ..checkpoints.original_mmdit import in_folder
    from ..export.export import export as run_export
    from . import show
    from .progress import shown

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
            spacing=spacing,
            zero_snr=zero_snr,
            size=size,
            scheduler=scheduler,
            on_progress=tell,
        )
    show.bundle(bundle, as_json)


@app.command()
def adopt(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of ONNX graphs that another tool exported: optimum or Olive (unet/model.onnx and others), a "
            "repository for AMD's GPUs, or NVIDIA's for TensorRT (ONNX/transformer/bf16 ...).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the bundle to; it must not exist.")],
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
    prediction: Annotated[
        str | None,
        typer.Option(help="Prediction type: epsilon, v_prediction or sample. Default: as the scheduler's config says."),
    ] = None,
    spacing: Annotated[str | None, typer.Option(help="Timestep spacing: leading, trailing or linspace.")] = None,
    zero_snr: Annotated[
        bool | None,
        typer.Option("--zero-snr/--no-zero-snr", help="Whether the model was trained with zero terminal SNR."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side, in pixels, of the square images the model was trained on.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Default scheduler of the bundle, such as euler, instead of the folder's.")
    ] = None,
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


@app.command()
def build(
    bundle: Folder,
    profile: Profiles = None,
    threads: Threads = None,
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
    from .choose import choose
    from .progress import shown, within

    opened, other = open_bundle(bundle), open_bundle(like) if like else None
    chosen = choose(profile, threads, sequential=sequential)
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


@app.command()
def plan(bundle: Folder, profile: Profiles = None, sequential: Sequential = False, as_json: Json = False) -> None:
    """Predict the build time, disk space and memory that a profile needs, and whether it fits."""
    from ..compiler.plan import plan as run_plan
    from ..core.bundle import open_bundle
    from .choose import choose
    from .plan import show

    opened = open_bundle(bundle)
    show([run_plan(opened, one) for one in choose(profile, sequential=sequential)], as_json)


@app.command()
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
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Image that a video is generated from, instead of a prompt.")
    ] = None,
    profile: ProfileName = None,
    threads: Threads = None,
    sequential: Sequential = False,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="WIDTHxHEIGHT in pixels, or one number for a square; multiples of 8 (of 16 for "
            "Stable Diffusion 3). Default: the model's own size."
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
    scheduler: Annotated[
        str | None, typer.Option(help="Scheduler, such as euler or dpm++2m-karras. Default: the bundle's.")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Timestep spacing: leading, trailing or linspace. Turbo and Lightning need trailing."),
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
    from ..pipelines.png import read
    from .ask import ask, parse_size
    from .choose import choose_one
    from .draw import draw

    if not (prompts or prompt_file or picture or image):
        context.fail("Missing PROMPT: give a prompt, --prompts FILE or --from IMAGE; for a video, --image FILE.")
    stored = read(picture) if picture else None
    values = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "seed": seed,
        "count": count,
        "scheduler": scheduler,
        **parse_size(size),
        "timestep_spacing": spacing,
        "fps": fps,
        "motion_bucket_id": motion_bucket_id,
        "noise_aug_strength": noise_aug_strength,
        "min_guidance": min_guidance,
        "decode_chunk_size": decode_chunk_size,
    }
    requests = ask(prompts or [], prompt_file, stored, values, image=image is not None)
    draw(
        bundle,
        choose_one(profile, threads, sequential=sequential),
        requests,
        output,
        image=image,
        overwrite=overwrite,
        origin=(picture, stored) if picture and stored else None,
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def why(bundle: Folder, profile: Profiles = None, as_json: Json = False) -> None:
    """Show which engines of a profile are available, and why the others are not."""
    from ..core.bundle import open_bundle
    from .choose import choose
    from .why import why as show

    show(open_bundle(bundle), choose(profile), as_json)


@app.command()
def inspect(bundle: Folder, as_json: Json = False) -> None:
    """Show a bundle's source, parts and engines."""
    from ..compiler.cache import artifacts
    from ..compiler.faults import broken
    from ..compiler.prune import leftovers, lost
    from ..core.bundle import open_bundle
    from . import show

    opened = open_bundle(bundle)
    show.bundle(opened, as_json, artifacts(opened), broken(opened), (*leftovers(opened), *lost(opened)))


@app.command()
def verify(bundle: Folder, quiet: Quiet = False, as_json: Json = False) -> None:
    """Compare every file of a bundle, and of its engines, with its digest."""
    from ..compiler.cache import artifacts
    from ..compiler.faults import faults
    from ..compiler.prune import leftovers, lost
    from ..core.bundle import open_bundle
    from . import show
    from .progress import shown

    opened = open_bundle(bundle)
    with shown(quiet or as_json) as tell:
        found = faults(opened, tell)
    show.verified(opened, artifacts(opened), found, (*leftovers(opened), *lost(opened)), as_json)


@app.command()
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


@app.command(name="show")
def show_picture(
    picture: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP made by latentc or AUTOMATIC1111.")
    ],
    as_json: Json = False,
) -> None:
    """Show the request that is stored in an image."""
    from ..pipelines.png import read
    from . import show

    show.picture(read(picture), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show this machine's hardware, which runtimes work, what the others need, and the recommended profile."""
    from ..runtimes.diagnose import advise, diagnose
    from ..runtimes.machine import machine
    from . import show

    here = machine()
    show.doctor(here, diagnose(), advise(here), as_json)


@app.command()
def profiles(as_json: Json = False) -> None:
    """List the profiles that ship with latentc."""
    from ..profiles import load_profile, profile_names
    from . import show

    show.profiles([load_profile(name) for name in profile_names()], as_json)


@app.command()
def new_checkpoint(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to; it must not exist.")],
    family: Annotated[str, typer.Option(help="Model family: sd15, sd21, sdxl, svd or svd_xt.")] = "sd15",
    size: Annotated[
        Literal["tiny", "full"], typer.Option(help="tiny: a few MB. full: the size of the published model.")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint with random weights, for tests and benchmarks. Its images are noise."""
    from ..checkpoints.random import new_checkpoint as write
    from .progress import shown

    with shown(quiet) as tell:
        write(family, size, seed, folder, on_progress=tell)
    say(f"{folder}: {family}, {size}, random weights. Next: latentc export {folder} -o {folder}.bundle")


@app.command()
def bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE",
            help="Folders made by `latentc export`. Several bundles are measured with the same requests.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON Lines file to append the measurements to.")],
    profile: Profiles = None,
    threads: Threads = None,
    against: Annotated[
        str,
        typer.Option(
            help="Baselines, separated by commas: torch-eager, torch-compile, diffusers; after `make peers` also "
            "optimum-openvino, optimum-onnxruntime, openvino-genai."
        ),
    ] = "",
    size: Annotated[
        str | None,
        typer.Option(
            help="Image sizes, separated by commas: WIDTHxHEIGHT in pixels, or one number for a square, such as "
            "512,768x512. Default: the model's own size."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas, such as 1,2.")] = "1",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale. 1 or less disables guidance.")] = 7.5,
    repeat: Annotated[
        int, typer.Option(help="Minimum number of runs; up to 3 times as many until the times are stable.")
    ] = 6,
    limit: Annotated[float, typer.Option(min=1, help="Time limit in seconds for each import, build, load and run.")] = (
        3600.0
    ),
    apart: Annotated[
        bool,
        typer.Option(
            help="Use one process at a time, a new one for each run, if profiles do not fit in memory together."
        ),
    ] = False,
    ceiling: Annotated[
        bool, typer.Option(help="Also measure matrix products, as the upper bound that rates are compared with.")
    ] = True,
    suite: Annotated[
        bool,
        typer.Option(help="Also generate 16 images with each profile and baseline, and compare them with PyTorch's."),
    ] = False,
    clip: Annotated[
        Path | None,
        typer.Option(help="With --suite: folder of a CLIP model, to score how well images match their prompts."),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option(help="With --suite: folder of the published LPIPS weights, to compare images with PyTorch's."),
    ] = None,
    fid: Annotated[
        Path | None,
        typer.Option(help="With --suite: folder of the published FID weights, to compare images with PyTorch's."),
    ] = None,
    captions: Annotated[
        int, typer.Option(min=0, help="For `scenes` bundles: also generate this many captions and score the images.")
    ] = 0,
    keep: Annotated[Path | None, typer.Option(help="Folder to save the images of the first run in.")] = None,
    peers: Annotated[Path | None, typer.Option(help="Folder of the baselines' virtual environments.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure profiles and baselines in alternation; exit 1 if one fails, or if its images fail the parity check."""
    from ..benchmarks.plan import Plan
    from .bench import measure, parse_batches, parse_sizes
    from .choose import choose

    plan = Plan(
        profiles=tuple(choose(profile, threads)),
        threads=threads,
        baselines=tuple(filter(None, against.split(","))),
        sizes=parse_sizes(size),
        batches=parse_batches(batch),
        steps=steps,
        repeat=repeat,
        guidance=guidance,
        limit=limit,
        apart=apart,
        ceiling=ceiling,
        keep=keep,
        peers=peers,
        suite=suite,
        clip=clip,
        lpips=lpips,
        fid=fid,
        captions=captions,
    )
    measure(bundles, plan, output, quiet=quiet, as_json=as_json)


@app.command()
def score(
    bundle: Folder,
    profile: ProfileName = None,
    threads: Threads = None,
    captions: Annotated[
        int, typer.Option(min=1, help="Number of captions, none of which was in the training set.")
    ] = 500,
    guidance: Annotated[str, typer.Option(help="Guidance scales, separated by commas, such as 2,4.")] = "4",
    nights: Annotated[
        int,
        typer.Option(
            min=0, help="Number of captions without a sky to generate with and without a negative prompt for night."
        ),
    ] = 0,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Image file to write: a contact sheet of 32 captions at the last guidance scale."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write the scores to.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how well images of a `scenes` bundle match their captions."""
    from .choose import choose_one
    from .score import parse_guidances
    from .score import score as run_score

    guidances = parse_guidances(guidance)
    run_score(
        bundle, choose_one(profile, threads), captions, guidances, nights, sheet, output, quiet=quiet, as_json=as_json
    )


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS", help="Result files of `latentc bench`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    as_json: Json = False,
) -> None:
    """Write measurements as an HTML page, and as Markdown for a README."""
    from .report import report as write

    write(results, output, as_json)


@app.command()
def compare(
    context: typer.Context,
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS", help="Two result files of `latentc bench`, old and new; with --machines any number."
        ),
    ],
    effect: Annotated[
        float, typer.Option(min=0, help="Smallest relative change in time that counts: 0.05 is 5 %.")
    ] = 0.05,
    machines: Annotated[
        bool, typer.Option("--machines", help="Show results of several machines side by side, one column each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what got slower, larger or less accurate beyond the noise; exit 1 if anything did."""
    from .report import compare as compare_two
    from .report import machines as compare_machines

    if machines:
        compare_machines(results, as_json)
        return
    if len(results) != 2:
        context.fail(f"`compare` takes two files, the old results and the new results; got {len(results)}.")
    compare_two(results[0], results[1], effect, as_json)


@app.command()
def probe(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="ZIP file to write. An existing file is an error. Default: the first of probe.zip, probe-1.zip ... "
            "that does not exist.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            help="Profiles, separated by commas. Default: all that work here, one per runtime on CPUs.",
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Time for all trials together.")] = 30.0,
    only: Annotated[str, typer.Option(help="Names of trials, separated by commas.")] = "",
    scratch: Annotated[
        Path | None, typer.Option(help="Folder to keep checkpoints and bundles in, 30 GB for the full sizes.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the trials and stop.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test this machine's devices and pack the results into one file to attach to a report. Nothing is sent."""
    from .choose import choose
    from .probe import place
    from .probe import probe as run

    chosen = None if profile is None else choose(profile)
    names = list(dict.fromkeys(one.strip() for one in only.split(",") if one.strip()))
    target = None if listing else place(output, overwrite=overwrite)
    run(chosen, target, minutes, names, scratch, quiet=quiet, as_json=as_json)


@app.command(short_help="Build the shipped `scenes` checkpoint for each CPU runtime, and compare speed and images.")
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder to work in. Existing bundles and engines in it are reused.")
    ] = Path("demo"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export the `scenes` checkpoint that ships with latentc, build it for the profiles torch-f32 (the reference),
    cpu-openvino-f32, cpu-openvino and cpu-onnxruntime, and generate one 128x128 image with each, from the same prompt
    and seed. Print a table of times, memory and parity. Profiles whose runtime is not installed are skipped; nothing is
    downloaded. FOLDER gets scenes.bundle, an image per profile, sheet.png (all images, and their differences from the
    reference) and results.jsonl (for `latentc report`).
    """
    from ..benchmarks.demo import run_demo
    from .bench import show_demo
    from .progress import shown

    with shown(quiet or as_json) as tell:
        outcome = run_demo(folder, tell)
    show_demo(outcome, as_json)
