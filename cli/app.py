"""The list of commands, in the order of `latentc --help`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import bundles, devices, images, measures, package, serve
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


app.command()(bundles.export)
app.command()(bundles.adopt)
app.command()(bundles.fuse)
app.command()(bundles.build)
app.command()(bundles.plan)
app.command()(images.run)
app.command()(serve.serve)
app.command()(package.package)
app.command()(bundles.why)
app.command()(bundles.inspect)
app.command()(bundles.verify)
app.command()(bundles.prune)
app.command(name="show")(images.show_picture)
app.command()(images.canny)
app.command()(devices.doctor)
app.command()(devices.profiles)
app.command()(bundles.new_checkpoint)
app.command()(measures.bench)
app.command(name="bench-serve")(measures.bench_serve)
app.command()(measures.score)
app.command()(measures.tune)
app.command()(measures.report)
app.command()(measures.compare)
app.command()(devices.probe)
app.command(short_help="Build the shipped `scenes` checkpoint for each CPU runtime, and compare speed and images.")(
    measures.demo
)
