"""The texts of a package of engines: `run.py` and `PACKAGE.md`."""

from __future__ import annotations

from collections.abc import Sequence

from ..compiler.cache import Artifact
from ..core.bundle import Bundle
from ..core.units import sized
from ..core.version import __version__
from ..profiles import Profile
from ..runtimes.machine import machine

RUN = '''"""Generate an image, with the options of `latentc run`: python run.py "a lighthouse" -o lighthouse.png"""

import sys
from pathlib import Path

from latentc.cli import main

sys.argv[1:1] = ["run", str(Path(__file__).resolve().parent)]
main()
'''


def about(
    bundle: Bundle, profile: Profile, engines: Sequence[Artifact], *, package_bytes: int, bundle_bytes: int
) -> str:
    """The content of `PACKAGE.md`; `package_bytes` is the size of the package without this file and the manifest."""
    source, word, verb = bundle.manifest.source, bundle.standing.word, bundle.standing.verb
    rows = "\n".join(
        f"| {one.part} | {one.fields.precision} | {sized(one.bytes)} | {one.parity.psnr_db:.1f} dB |" for one in engines
    )
    kept = sized(sum(info.bytes for name, info in bundle.manifest.files.items() if name.startswith("reference/")))
    has = machine()
    statement = f"\n\n{bundle.standing.statement}" if bundle.standing.statement else ""
    return f"""# {source.location}, for {profile.name}

Engines for {profile.runtime} on {profile.device}, packaged by latentc {__version__}.
The package has {sized(package_bytes)}; the bundle with all of its engines has {sized(bundle_bytes)}.
The licence of the model is unchanged; its model card and licence files, if it has them, are beside this file.

## Run it

Python {has.python.rpartition(".")[0]} or a later one that has these libraries; PyTorch is not needed.

    pip install -r requirements.txt
    pip install --no-deps LATENTC          # the wheel or the source folder of latentc {__version__}
    python run.py "a lighthouse at sunset" -o lighthouse.png
    latentc serve .                        # over HTTP
    latentc verify .                       # compare every file with its digest

## What "{word}" means here

The engines were {verb} on the machine that packaged them ({has.cpu or "unknown CPU"}): each agreed with
{bundle.standing.reference}'s recorded outputs, as below, and so did whole steps and an image.{statement}

| engine | precision | size | agreement where it was built |
|---|---|--:|--:|
{rows}

These figures are for information. A machine that has not {verb} the engines does so itself at its first `latentc run`,
with the references that travel along ({kept}), and refuses engines that are below the floors. A machine whose CPU,
device or libraries differ from those that the engines were built for is refused before it loads them.

## What it cannot do

It has no weights apart from the engines. These need the bundle that it was made from: other profiles, other sizes than
the engines take, adapters (`--lora`, `--embedding`), `latentc fuse`, and comparing the exported graphs with
{bundle.standing.reference} again.
"""
