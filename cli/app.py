"""The commands. Rooms are imported inside them: `latentc --help` must be quick."""

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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output, and no progress.")]
Profiles = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Names or .toml files of profiles, with commas between (`latentc profiles`); "
        "default: the one that `latentc doctor` advises here.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads that compute, on CPUs; default: the profile's, else what affinity and the container allow.",
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile", "-p", help="Name or .toml file of a profile; default: the one that `latentc doctor` advises here."
    ),
]


def _say_version(asked: bool) -> None:
    if asked:
        from ..core.version import __version__

        say(f"latentc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Say the version and stop.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    pass


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Diffusers folder, .safetensors file in the original layout, hub id, or a file of one "
            "(owner/name/file.safetensors)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle; must not exist.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    prediction: Annotated[
        str | None, typer.Option(help="epsilon, v_prediction or sample; default: what the checkpoint says.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="leading, trailing or linspace; trailing for Turbo and Lightning.")
    ] = None,
    zero_snr: Annotated[
        bool | None, typer.Option("--zero-snr/--no-zero-snr", help="Trained with zero terminal SNR.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels of the pictures that it was trained on.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Such as euler: what the bundle draws with, in place of the checkpoint's own.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which weight files of a folder or hub id: fp16, ema, non_ema ...")
    ] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE: its file, folder or hub id.")] = None,
    unet: Annotated[
        str | None, typer.Option(help="Another UNet (Lightning, Hyper, LCM): file, folder, hub id.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs, each compared with PyTorch."""
    from ..export.export import export as run_export
    from . import show
    from .progress import shown

    with shown(quiet or as_json) as tell:
        bundle = run_export(
            checkpoint,
            output,
            revision=revision,
            prediction=prediction,
            variant=variant,
            components={name: place for name, place in (("vae", vae), ("unet", unet)) if place is not None},
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
    force: Annotated[bool, typer.Option("--force", help="Build what by plan won't fit.")] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Built bundle of a kindred checkpoint: engines of parts that are the same are taken from it; "
            "TensorRT's of other parts, built with refit = true, are given these weights."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile a bundle's parts for one or more profiles, and compare each engine with the reference."""
    from ..compiler.build import Build, check
    from ..compiler.build import build as run_build
    from ..core.bundle import open_bundle
    from . import BEFORE, show
    from .choose import choose
    from .progress import shown, within

    opened, other = open_bundle(bundle), open_bundle(like) if like else None
    chosen = choose(profile, threads)
    for one in chosen:  # before the first is built
        check(opened, one, force=force, like=other)
    builds: list[Build] = []
    try:
        with shown(quiet or as_json) as tell:
            for one in chosen:
                told = within(one.name, tell) if len(chosen) > 1 else tell
                builds += [run_build(opened, one, told, force=force, like=other)]
    except BaseException as exc:
        if builds and as_json:
            vars(exc)[BEFORE] = {"built": show.plain_builds(builds)}
        elif builds:
            show.builds(builds, as_json)
        raise
    show.builds(builds, as_json)


@app.command()
def plan(bundle: Folder, profile: Profiles = None, as_json: Json = False) -> None:
    """Predict what building takes and what the engines will hold, and say what won't fit."""
    from ..compiler.plan import plan as run_plan
    from ..core.bundle import open_bundle
    from .choose import choose
    from .plan import show

    opened = open_bundle(bundle)
    show([run_plan(opened, one) for one in choose(profile)], as_json)


@app.command()
def run(
    bundle: Folder,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to draw; several prompts are drawn one after the other."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="NAME.png, .webp (both exact) or .jpg; more pictures get -1, -2 ...; - for standard output. A file "
            "that is there is refused. Default: the next of out.png, out-1.png ... that is free.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A prompt in each line; in a .jsonl file a request, as JSON; - for standard input.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PICTURE",
            help="Draw a picture's request again. Prompts and flags that you give replace its own.",
        ),
    ] = None,
    profile: ProfileName = None,
    threads: Threads = None,
    negative: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 8.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: 20.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 or less: the prompt alone. Default: 7.5.")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="0 to 1: against overexposure by high guidance. Default: 0.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="For each prompt. Default: a random one, which the output names.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Pictures of each prompt, with seeds from `seed` on. Default: 1.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Such as euler or dpm++2m-karras; default: the checkpoint's.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="leading, trailing or linspace; trailing for Turbo and Lightning.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw prompts with the engines of a profile."""
    from ..pipelines.png import read
    from .ask import ask, parse_size
    from .choose import choose_one
    from .draw import draw

    if not (prompts or prompt_file or picture):
        raise typer.BadParameter("Missing PROMPT: give one, --prompts FILE or --from PICTURE.")
    shown = read(picture) if picture else None
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
    }
    requests = ask(prompts or [], prompt_file, shown, values)
    draw(
        bundle,
        choose_one(profile, threads),
        requests,
        output,
        overwrite=overwrite,
        origin=(picture, shown) if picture and shown else None,
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def why(bundle: Folder, profile: Profiles = None, as_json: Json = False) -> None:
    """Say which engines a profile would find, and what keeps the others from being found."""
    from ..compiler.build import why as run_why
    from ..core.bundle import open_bundle
    from . import show
    from .choose import choose

    opened = open_bundle(bundle)
    show.why(opened, [(one, run_why(opened, one)) for one in choose(profile)], as_json)


@app.command()
def inspect(bundle: Folder, as_json: Json = False) -> None:
    """List what a bundle holds: where it came from, its parts, its engines."""
    from ..compiler.cache import artifacts
    from ..compiler.faults import broken
    from ..compiler.prune import leftovers, lost
    from ..core.bundle import open_bundle
    from . import show

    opened = open_bundle(bundle)
    show.bundle(opened, as_json, artifacts(opened), broken(opened), (*leftovers(opened), *lost(opened)))


@app.command()
def verify(bundle: Folder, quiet: Quiet = False, as_json: Json = False) -> None:
    """Compare every file of a bundle and its engines with its digest."""
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
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed work left in a bundle, and engines of other versions; never what isn't known."""
    from ..compiler.prune import prune as run_prune
    from ..core.bundle import open_bundle
    from . import show

    opened = open_bundle(bundle)
    show.pruned(opened, run_prune(opened, dry_run=dry_run), dry_run=dry_run, as_json=as_json)


@app.command(name="show")
def show_picture(
    picture: Annotated[Path, typer.Argument(help="PNG, JPEG or WebP drawn by latentc or AUTOMATIC1111.")],
    as_json: Json = False,
) -> None:
    """Read the request back from a picture."""
    from ..pipelines.png import read
    from . import show

    show.picture(read(picture), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, which runtimes work, what the others need, and which profile to take."""
    from ..runtimes.diagnose import advise, diagnose
    from ..runtimes.machine import machine
    from . import show

    here = machine()
    show.doctor(here, diagnose(), advise(here), as_json)


@app.command()
def profiles(as_json: Json = False) -> None:
    """List the profiles that come with the package."""
    from ..profiles import load_profile, profile_names
    from . import show

    show.profiles([load_profile(name) for name in profile_names()], as_json)


@app.command()
def new_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    family: Annotated[str, typer.Option(help="sd15, sd21 or sdxl.")] = "sd15",
    size: Annotated[Literal["tiny", "full"], typer.Option(help="Tiny: a few MB. Full: the published sizes.")] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint of random weights: for tests and speed, not for pictures."""
    from ..checkpoints.random import new_checkpoint as write
    from .progress import shown

    with shown(quiet) as tell:
        write(family, size, seed, folder, on_progress=tell)
    say(f"{folder}: {family}, {size}, random weights. Next: latentc export {folder} -o {folder}.bundle")


@app.command()
def bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Folders made by `latentc export`: several draw the same, in turn."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON lines to add the measurements to.")],
    profile: Profiles = None,
    threads: Threads = None,
    against: Annotated[
        str,
        typer.Option(
            help="Baselines, with commas between: torch-eager, torch-compile, diffusers, and with `make peers` "
            "optimum-openvino, optimum-onnxruntime, openvino-genai."
        ),
    ] = "",
    size: Annotated[str | None, typer.Option(help="Sides or WIDTHxHEIGHTs in pixels: 512,768. Default: own.")] = None,
    batch: Annotated[str, typer.Option(help="Pictures drawn at once: 1,2.")] = "1",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 or less: the prompt alone.")] = 7.5,
    repeat: Annotated[int, typer.Option(help="Draws at least; up to 3 times as many until times are stable.")] = 6,
    limit: Annotated[
        float, typer.Option(min=1, help="Seconds that importing, building, loading or a draw may take.")
    ] = (3600.0),
    apart: Annotated[
        bool, typer.Option(help="One process at a time, a new one for each draw: for what doesn't fit together.")
    ] = False,
    ceiling: Annotated[bool, typer.Option(help="Also measure matrix products, to hold each rate against.")] = True,
    suite: Annotated[bool, typer.Option(help="Also draw 16 pictures with each and compare with PyTorch's.")] = False,
    clip: Annotated[
        Path | None,
        typer.Option(help="With --suite: folder of a CLIP model, to score how well pictures match their prompts."),
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option(help="With --suite: folder of LPIPS' published weights, for pictures and PyTorch's.")
    ] = None,
    fid: Annotated[
        Path | None, typer.Option(help="With --suite: folder of FID's published weights, for pictures and PyTorch's.")
    ] = None,
    captions: Annotated[int, typer.Option(min=0, help="With `scenes`: also draw so many captions and read them.")] = 0,
    keep: Annotated[Path | None, typer.Option(help="Folder for the first draw's pictures.")] = None,
    peers: Annotated[Path | None, typer.Option(help="Folder of the baselines' own environments.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure profiles and baselines in turn; exit 1 if one of them failed, or its pictures did."""
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
    captions: Annotated[int, typer.Option(min=1, help="Captions to draw that training never saw.")] = 500,
    guidance: Annotated[str, typer.Option(help="Guidance scales, with commas between: 2,4.")] = "4",
    nights: Annotated[int, typer.Option(min=0, help="Captions without a sky to draw without and with a negative.")] = 0,
    sheet: Annotated[Path | None, typer.Option(help="Picture file: 32 captions drawn with the last guidance.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file of what was found.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say how much of what captions ask for the pictures of `scenes` show."""
    from .choose import choose_one
    from .score import parse_guidances
    from .score import score as tell

    guidances = parse_guidances(guidance)
    tell(bundle, choose_one(profile, threads), captions, guidances, nights, sheet, output, quiet=quiet, as_json=as_json)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS", help="Files that `latentc bench` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    as_json: Json = False,
) -> None:
    """Write measurements as one HTML page, and as Markdown for a README."""
    from .report import report as write

    write(results, output, as_json)


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="OLD NEW", help="Files that `latentc bench` wrote before and after.")
    ],
    effect: Annotated[float, typer.Option(min=0, help="Least change of seconds that counts, as a share.")] = 0.05,
    machines: Annotated[
        bool, typer.Option("--machines", help="Show files of several machines side by side, a column for each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what got slower, larger or less like the reference beyond the noise; exit 1 if something did."""
    from .report import compare as tell
    from .report import machines as tell_machines

    if machines:
        tell_machines(results, as_json)
        return
    if len(results) != 2:
        raise typer.BadParameter(f"{len(results)} files are given; two are compared, the old one and the new one.")
    tell(results[0], results[1], effect, as_json)


@app.command()
def probe(
    output: Annotated[Path, typer.Option("--output", "-o", help="ZIP file to write.")] = Path("probe.zip"),
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", "-p", help="Profiles, separated by commas; default: every shipped one that works here."
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
    from .probe import probe as run

    chosen = None if profile is None else choose(profile)
    names = list(filter(None, only.split(",")))
    run(chosen, output, minutes, names, scratch, listing=listing, quiet=quiet, as_json=as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to work; what is there already is used again.")] = Path("demo"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export, build and draw with every runtime that is here, and compare them in one table."""
    from ..benchmarks.demo import run_demo
    from .bench import show_demo
    from .progress import shown

    with shown(quiet or as_json) as tell:
        outcome = run_demo(folder, tell)
    show_demo(outcome, as_json)
