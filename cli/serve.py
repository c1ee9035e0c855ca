"""The command that serves bundles over HTTP.

Packages are imported inside the function, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Embeddings, Loras, ProfileName, Quiet, Threads

DEFAULT_PORT = 8000
MOST_REPLICAS = 64
SENT_TIMES, SENT_LEAST = 4, 16_000_000
"""An image that a client sends may have this many times the pixels of `--megapixels`, and at least this many."""


def serve(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE[=PROFILE]...",
            help="Folders made by `latentc export` or `latentc package`, with profiles of their own or that of "
            "--profile.",
        ),
    ],
    profile: ProfileName = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    queue: Annotated[
        int, typer.Option(min=1, help="Jobs of one bundle that wait or are generated; further ones get 429.")
    ] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Images that are generated at once.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Limit of the steps of a request.")] = 150,
    megapixels: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1e6,
            help="Limit of an image's size, in millions of pixels. Images that clients "
            "send may have four times as many, and at least 16.",
        ),
    ] = 4.2,
    count: Annotated[int, typer.Option(min=1, help="Limit of the images of a request.")] = 10,
    timeout: Annotated[float, typer.Option(min=1, max=1e9, help="Seconds after which a job is cancelled.")] = 540,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with a token per line: a bearer token, or USER:PASSWORD for Basic authentication. Default: none "
            "is needed.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which clients may call the server. May be repeated."),
    ] = None,
    model_control: Annotated[
        bool,
        typer.Option(
            "--model-control",
            help="Let clients replace models by what their folders hold now (/v2/repository). SIGHUP replaces all "
            "without it.",
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for a history of finished images, which survives a restart. Default: none is kept.",
        ),
    ] = None,
    keep_images: Annotated[
        int | None, typer.Option(min=1, help="Images of the history; beyond, the oldest are deleted. Default: 10000.")
    ] = None,
    keep_gb: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Limit of the history's files, in GB. Default: 10.")
    ] = None,
    granted: Annotated[
        float | None,
        typer.Option(
            "--credits", min=0, max=1e9, help="Credits that each token may spend; without tokens, all clients together."
        ),
    ] = None,
    image_cost: Annotated[float, typer.Option(min=0, max=1e6, help="Credits of an image.")] = 0,
    step_cost: Annotated[
        float,
        typer.Option(min=0, max=1e6, help="Credits of each step that is computed of an image, by millions of pixels."),
    ] = 0,
    prompt_model: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server of OpenAI's chat completions that expands prompts, such as http://127.0.0.1:8080/v1. It is "
            "sent the prompts that users want expanded. Default: none.",
        ),
    ] = None,
    prompt_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model there, if it serves several.")
    ] = None,
    prompt_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the bearer token for --prompt-model.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Python that is given each finished image, uint8 (height, width, 3), and returns why it is "
            "withheld, or None.",
        ),
    ] = None,
    c2pa_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate and its chain, in PEM, that sign images (C2PA; extra c2pa)."),
    ] = None,
    c2pa_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of --c2pa-cert, in PEM without a password.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="Memory for the engines of all bundles together, in GB of 10^9 bytes; with several devices, that of "
            "each. The first bundle is loaded at the start, others when a request asks for them, and the least "
            "recently used ones are freed. Default: all are loaded at the start.",
        ),
    ] = None,
    lora: Loras = None,
    embedding: Embeddings = None,
    threads: Threads = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Which device of the profile's kind, such as cuda:1; or several equal ones, cuda:0,cuda:1 or cuda for "
            "all, over which --replicas are spread. Default: as the profile says.",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_REPLICAS,
            help="Processes that generate images of each bundle at once. Each opens the bundle, and has its share of "
            "the CPU cores; --threads is the number of each. Default: one for each --device.",
        ),
    ] = None,
    most_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_REPLICAS,
            help="Processes that there may be: another one is started when jobs have waited for 5 s, and ended after a "
            "minute without work. Default: as many as --replicas.",
        ),
    ] = None,
    on: Annotated[
        Literal["ray"] | None,
        typer.Option(
            "--on", help="ray: replicas are actors of Ray, on the nodes of a cluster. Default: processes here."
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of the Ray for --on ray, such as ray-head:6379. Default: that of RAY_ADDRESS, or a new one "
            "on this machine.",
        ),
    ] = None,
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            min=0, max=64, help="GPUs of each replica of --on ray, such as 0.5. Default: 1 for GPUs' profiles."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve bundles over HTTP: a page, jobs, and the APIs of OpenAI, the AUTOMATIC1111 web UI, Stability and KServe."""
    from ..checkpoints.adapters.open import strengths
    from ..core.errors import RequestError, RuntimeMissing
    from ..core.install import install
    from .choose import choose_each

    try:
        from ..serving.limits import Limits
        from .additions import AdditionOptions
        from .server import OnRay
        from .server import serve as run
    except ImportError as exc:
        raise RuntimeMissing(f"Serving needs {exc.name}, which is not installed. {install('serve')}") from exc
    if on is None and (ray_address, ray_gpus) != (None, None):
        raise RequestError("--ray-address and --ray-gpus say how Ray is used. Pass --on ray too.")
    pixels = round(megapixels * 1e6)
    limits = Limits(
        queue=queue,
        batch=batch,
        steps=steps,
        pixels=pixels,
        image_pixels=max(SENT_LEAST, SENT_TIMES * pixels),
        count=count,
        job_seconds=timeout,
    )
    chosen = AdditionOptions(
        state=state,
        keep_images=keep_images,
        keep_gb=keep_gb,
        credits=granted,
        image_cost=image_cost,
        step_cost=step_cost,
        prompt_model=prompt_model,
        prompt_model_name=prompt_model_name,
        prompt_token_file=prompt_token_file,
        check=check,
        c2pa_cert=c2pa_cert,
        c2pa_key=c2pa_key,
    )
    run(
        choose_each(bundles, profile, threads),
        device=device,
        replicas=replicas,
        most_replicas=most_replicas,
        on_ray=None if on is None else OnRay(ray_address, ray_gpus),
        memory_gb=memory,
        threads=threads,
        host=host,
        port=port,
        limits=limits,
        token_file=token_file,
        hosts=allow_host or (),
        model_control=model_control,
        adapters=strengths(lora or ()),
        embeddings=embedding or (),
        chosen=chosen,
        quiet=quiet,
    )
