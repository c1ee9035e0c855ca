"""Commands that measure and compare.

Packages are imported inside the functions, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Folder, Json, ProfileName, Profiles, Quiet, Threads
from .text import as_json as json_text
from .text import say

if TYPE_CHECKING:
    from ..core.record import Record

SCHEMA = "Print the JSON schema of the file's lines, and exit."


def _rows(asked: bool) -> None:
    if asked:
        from ..benchmarks.records import Measurement

        _print_schema(Measurement)


def _served(asked: bool) -> None:
    if asked:
        from ..benchmarks.served_records import ServedMeasurement

        _print_schema(ServedMeasurement)


def _print_schema(model: type[Record]) -> None:
    say(json_text(model.model_json_schema(mode="serialization")))
    raise typer.Exit


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
            help="Baselines, separated by commas: torch-eager, torch-compile, diffusers; after `make peers` in a "
            "checkout also optimum-openvino, optimum-onnxruntime, openvino-genai."
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
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale. 1 or less disables guidance. Default: 7.5, for videos 3 in the last frame."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            help="Image to begin with: image to image, or the image of a video, whose default is a rendered scene."
        ),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask of --image: inpainting generates where it is white.")] = None,
    control: Annotated[
        list[Path] | None, typer.Option(help="Image for a ControlNet of the bundle; one for each of them.")
    ] = None,
    style: Annotated[Path | None, typer.Option(help="Image for the bundle's IP-Adapter.")] = None,
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
        typer.Option(help="Also generate 16 images, or 2 videos, with each profile, and compare them with PyTorch's."),
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
    _schema: Annotated[bool, typer.Option("--schema", help=SCHEMA, is_eager=True, callback=_rows)] = False,
    as_json: Json = False,
) -> None:
    """Measure profiles and baselines in alternation; exit 1 if one fails, or if its images fail the parity check."""
    from ..benchmarks.plan import Plan
    from ..benchmarks.shown import Files
    from .bench import measure, parse_batches, parse_sizes
    from .choose import choose

    plan = Plan(
        profiles=tuple(choose(profile, threads, bundle=bundles[0])),
        threads=threads,
        baselines=tuple(filter(None, against.split(","))),
        sizes=parse_sizes(size),
        batches=parse_batches(batch),
        steps=steps,
        repeat=repeat,
        files=Files(image, mask, tuple(control or ()), style),
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


def bench_serve(
    bundle: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON Lines file to append the measurement to.")],
    profile: ProfileName = None,
    threads: Threads = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    batch: Annotated[int, typer.Option(help="Images of one batch.")] = 8,
    rounds: Annotated[
        int, typer.Option(help="Alternations of the server and a loop without one; six or more give an interval.")
    ] = 6,
    pictures: Annotated[int, typer.Option(help="Images in each round, for each of the two.")] = 48,
    requests: Annotated[int, typer.Option(help="Requests at each level of load.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the arrival times.")] = 7,
    url: Annotated[
        str | None,
        typer.Option(help="Address of a server of the bundle that runs already. Default: one is started and ended."),
    ] = None,
    quiet: Quiet = False,
    _schema: Annotated[bool, typer.Option("--schema", help=SCHEMA, is_eager=True, callback=_served)] = False,
    as_json: Json = False,
) -> None:
    """Measure `latentc serve`: images per second beside a loop without a server, latency at 50, 80 and 100 % of that
    rate, batches, memory, and how soon the engine is free after a client has left.
    """
    from ..benchmarks.served import ServePlan
    from .bench_serve import measure
    from .choose import choose_one

    chosen = choose_one(profile, threads)
    options = ("-p", profile or chosen.name, *(("--threads", str(threads)) if threads else ()))
    plan = ServePlan(steps, batch, rounds, pictures, requests, seed, url, options)
    measure(bundle, chosen, plan, output, quiet=quiet, as_json=as_json)


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
        bundle,
        choose_one(profile, threads, bundle=bundle),
        captions,
        guidances,
        nights,
        sheet,
        output,
        quiet=quiet,
        as_json=as_json,
    )


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS", help="Result files of `latentc bench`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    as_json: Json = False,
) -> None:
    """Write measurements as an HTML page, and as Markdown for a README."""
    from .report import report as write

    write(results, output, as_json)


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


def tune(
    bundle: Folder,
    floor: Annotated[
        str,
        typer.Option(
            help="Least quality: a median PSNR against the best images, such as 35dB; for `scenes` also a loss of "
            "scene_score, such as score:0.01."
        ),
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            "-p",
            help="Profile names or .toml files, separated by commas or by repeating the option. The one that computes "
            "most exactly generates the best images. Default: the profile that `latentc doctor` recommends.",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Preset to write. Beside it are the page (.html) and the measurements (.jsonl), from which the same "
            "command goes on.",
        ),
    ] = Path("tuned.toml"),
    steps: Annotated[
        str, typer.Option(help="Numbers of steps to try; the largest generates the best images.")
    ] = "20,15,12,10,8,6",
    schedulers: Annotated[
        str | None,
        typer.Option(
            help="Schedulers to try, separated by commas; own is the checkpoint's. Default: own, and dpm++2m if it "
            "fits the model."
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Images of a candidate to choose by, and as many to report on.")] = 16,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: 7.5, for `scenes` 4.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Prompts, as for `run`: every other one to choose by, the rest to report on. Default: a fixed suite.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Time to take, with the timing of the profiles, which is not cut short. Default: until all that can "
            "be chosen is compared.",
        ),
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Build engines that do not exist.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the fastest profile, scheduler and number of steps that meet a quality, and write them as a preset for
    `latentc run`; exit 1 if none does.
    """
    from ..benchmarks.tune_plan import Tuning
    from .tune import parse_floor, parse_steps, profiles_of, read_prompts, run_tune

    plan = Tuning(
        profiles_of(profile, bundle),
        parse_floor(floor),
        steps=parse_steps(steps),
        schedulers=tuple(name.strip() for name in schedulers.split(",")) if schedulers is not None else None,
        pictures=pictures,
        guidance=guidance,
        prompts=read_prompts(prompts),
        minutes=minutes,
        build=build,
    )
    run_tune(bundle, plan, output, quiet=quiet, as_json=as_json)


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
