"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by `latentc export` or `latentc package`.")]
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
Device = Annotated[
    str | None,
    typer.Option(
        help="Which device of the profile's kind, such as cuda:1, hip:1 or GPU.1. Default: as the profile says.",
    ),
]
Sequential = Annotated[
    bool,
    typer.Option(
        "--sequential",
        help="Load each part only while it runs, so that the largest one must fit in memory instead of all. Slower.",
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        help="Further image sizes to build engines for, such as 768x512,1024x1024, beside the profile's own. `free` is "
        "one engine for every size.",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="GB",
        help="Memory budget in GB of 10^9 bytes. An image that doesn't fit is generated with one part in memory at a "
        "time, the denoiser row by row, decoding in tiles, or the tiny decoder; the first that fits.",
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
NewBundle = Annotated[Path, typer.Option("--output", "-o", help="Folder to write the bundle to; it must not exist.")]
PredictionType = Annotated[
    str | None, typer.Option(help="Prediction type: epsilon, v_prediction or sample. Default: as the configs say.")
]
Spacing = Annotated[
    str | None, typer.Option(help="Timestep spacing: leading, trailing or linspace. Turbo and Lightning need trailing.")
]
ZeroSnr = Annotated[
    bool | None,
    typer.Option("--zero-snr/--no-zero-snr", help="Whether the model was trained with zero terminal SNR."),
]
NativeSize = Annotated[int | None, typer.Option(help="Side, in pixels, of the square images the model was trained on.")]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:STRENGTH]",
        help="LoRA or another adapter (LoCon, LoHa, LoKr, DoRA) to fuse with the weights: a .safetensors file, or a "
        "file on the Hub, and its strength, such as style.safetensors:0.8. Default strength: 1. May be repeated.",
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:TOKEN]",
        help="Textual inversion to add (.safetensors), and the token that stands for it in prompts. Default: the "
        "token in the file, or else the file's name. Can be repeated.",
    ),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Default scheduler of the bundle, such as euler, instead of the model's own.")
]
