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

Kind = Literal["dir", "triton", "openvino", "web"]
OTHERS = {"openvino": "OpenVINO GenAI", "web": "The page"}
"""Kinds that take no profile."""


def package(
    bundle: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the package to; it must not exist.")],
    kind: Annotated[
        Kind,
        typer.Option(
            "--for",
            help="dir: a folder with the engines of one profile, without weights. triton: a model repository of it for "
            "NVIDIA Triton. openvino: a folder for OpenVINO GenAI. web: a page that generates images in browsers. The "
            "last two take no profile.",
        ),
    ] = "dir",
    profile: ProfileName = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(help="For web: folder or archive of the npm package. Default: npm downloads it."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Package the engines of a profile, and what they need, without the bundle's weights."""
    from ..core.errors import ProfileError
    from ..package.folder import package as run_package
    from ..package.triton import repository
    from .choose import choose_one
    from .progress import shown

    if profile is not None and kind in OTHERS:
        raise ProfileError(f"{OTHERS[kind]} chooses device and precision itself. Leave --profile out.")
    if onnxruntime_web is not None and kind != "web":
        raise ProfileError("--onnxruntime-web is for --for web. Leave it out.")
    if kind == "openvino":
        _openvino(bundle, output, quiet=quiet, as_json=as_json)
        return
    if kind == "web":
        _web(bundle, output, onnxruntime_web, quiet=quiet, as_json=as_json)
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


def _openvino(bundle: Path, output: Path, *, quiet: bool, as_json: bool) -> None:
    from ..export.genai import convert
    from .progress import shown

    with shown(quiet or as_json) as tell:
        made = convert(bundle, output, tell)
    if as_json:
        say(json_text({**asdict(made), "folder": str(made.folder)}))
        return
    say(f"{made.folder}: {listed(made.parts)} as OpenVINO IR, with {made.scheduler}.")
    for notice in made.notices:
        say(f"note: {notice}", err=True)


def _web(bundle: Path, output: Path, onnxruntime_web: Path | None, *, quiet: bool, as_json: bool) -> None:
    from ..package.web import web_page
    from .progress import shown

    with shown(quiet or as_json) as tell:
        made = web_page(bundle, output, tell, onnxruntime_web=onnxruntime_web)
    if as_json:
        say(json_text({**asdict(made), "folder": str(made.folder)}))
        return
    loads = made.first_visit_bytes
    say(
        f"{made.folder}: {sized(made.bytes)} in all, with onnxruntime-web {made.onnxruntime_web}. A first visit loads "
        f"{sized(loads['wasm'])} with WebAssembly, {sized(loads['webgpu'])} with WebGPU. Serve it with: python "
        f"{made.folder}/serve.py"
    )
