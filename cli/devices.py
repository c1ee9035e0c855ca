"""Commands about the devices of a machine.

Packages are imported inside the functions, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet


def doctor(as_json: Json = False) -> None:
    """Show this machine's hardware, which runtimes work, what the others need, and the recommended profile."""
    from ..runtimes.diagnose import advise, diagnose
    from ..runtimes.machine import machine
    from . import show

    here = machine()
    show.doctor(here, diagnose(), advise(here), as_json)


def profiles(as_json: Json = False) -> None:
    """List the profiles that ship with latentc."""
    from ..profiles import load_profile, profile_names
    from . import show

    show.profiles([load_profile(name) for name in profile_names()], as_json)


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
