"""The command that packages a bundle for one machine, server or library.

Packages are imported inside the function, so that `latentc --help` stays fast.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..core.units import counted, listed, sized
from .options import Folder, Json, ProfileName, Quiet
from .text import as_json as json_text
from .text import say

Kind = Literal["dir", "triton", "openvino"]


def package(
    bundle: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the package to; it must not exist.")],
    kind: Annotated[
        Kind,
        typer.Option(
            "--for",
            help="dir: a folder with the engines of one profile, without weights. triton: a model repository of it for "
            "NVIDIA Triton. openvino: a folder for OpenVINO GenAI, which takes no profile.",
        ),
    ] = "dir",
    profile: ProfileName = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Package the engines of a profile, and what they need, without the bundle's weights."""
    from ..core.errors import ProfileError
    from ..export.genai import convert
    from ..package.folder import package as run_package
    from ..package.triton import repository
    from .choose import choose_one
    from .progress import shown

    if kind == "openvino":
        if profile is not None:
            raise ProfileError("OpenVINO GenAI chooses device and precision itself. Leave --profile out.")
        with shown(quiet or as_json) as tell:
            converted = convert(bundle, output, tell)
        if as_json:
            say(json_text({**asdict(converted), "folder": str(converted.folder)}))
            return
        say(f"{converted.folder}: {listed(converted.parts)} as OpenVINO IR, with {converted.scheduler}.")
        for notice in converted.notices:
            say(f"note: {notice}", err=True)
        return
    write = {"dir": run_package, "triton": repository}[kind]
    chosen = choose_one(profile, bundle=bundle)
    with shown(quiet or as_json) as tell:
        made = write(bundle, chosen, output, tell)
    if as_json:
        say(json_text({**asdict(made), "folder": str(made.folder)}))
        return
    engines = f"{counted(len(made.engines), 'engine')} for profile {made.profile}"
    say(
        f"{made.folder}: {engines}, {sized(made.bytes)} in all, with {sized(made.reference_bytes)} of references. The "
        f"bundle has {sized(made.bundle_bytes)}."
    )
