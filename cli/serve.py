"""The command that serves bundles over HTTP.

Packages are imported inside the function, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Embeddings, Loras, ProfileName, Quiet, Threads

DEFAULT_PORT = 8000
MOST_REPLICAS = 64


def serve(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders made by `latentc export`.")],
    profile: ProfileName = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    queue: Annotated[
        int, typer.Option(min=1, help="Jobs of one bundle that wait or are generated; further ones get 429.")
    ] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Images that are generated at once.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Limit of the steps of a request.")] = 150,
    megapixels: Annotated[
        float, typer.Option(min=0.01, max=1e6, help="Limit of an image's size, in millions of pixels.")
    ] = 4.2,
    count: Annotated[int, typer.Option(min=1, help="Limit of the images of a request.")] = 10,
    timeout: Annotated[float, typer.Option(min=1, max=1e9, help="Seconds after which a job is cancelled.")] = 600,
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
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="Memory for the engines of all bundles together, in GB of 10^9 bytes. The first bundle is loaded at "
            "the start, others when a request asks for them, and the least recently used ones are freed. Default: all "
            "are loaded at the start.",
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
    quiet: Quiet = False,
) -> None:
    """Serve bundles over HTTP: a page, jobs, and the APIs of OpenAI, the AUTOMATIC1111 web UI, Stability and KServe."""
    from ..checkpoints.adapters.open import strengths
    from ..core.errors import RuntimeMissing
    from ..core.install import install
    from .choose import choose_one

    try:
        from ..serving.limits import Limits
        from .server import serve as run
    except ImportError as exc:
        raise RuntimeMissing(f"Serving needs {exc.name}, which is not installed. {install('serve')}") from exc
    pixels = round(megapixels * 1e6)
    limits = Limits(queue=queue, batch=batch, steps=steps, pixels=pixels, count=count, job_seconds=timeout)
    run(
        bundles,
        choose_one(profile, threads),
        device=device,
        replicas=replicas,
        memory_gb=memory,
        share_cores=threads is None,
        host=host,
        port=port,
        limits=limits,
        token_file=token_file,
        hosts=allow_host or (),
        adapters=strengths(lora or ()),
        embeddings=embedding or (),
        quiet=quiet,
    )
