"""Published weights of measures, in a folder that the user names: known by their digests, whatever they are called.

Random or other weights give figures that look like quality and aren't, so that nothing else is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.errors import RequestError
from ..core.files import sha256
from ..core.reading import is_regular

Measure = Literal["lpips", "fid"]

PUBLISHED: dict[Measure, dict[str, dict[str, tuple[str, ...]]]] = {
    "lpips": {
        "alex": {
            "trunk": ("7be5be79", "4df8aa71"),
            "linear": ("df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",),
        },
        "vgg": {
            "trunk": ("397923af",),
            "linear": ("a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",),
        },
    },
    "fid": {"inception": {"inception": ("6726825d",)}},
}
"""How the SHA-256 of each file begins, by measure, network and part. PyTorch's own files have that in their names;
those of the linear layers are of the lpips package 0.1.4."""

WANTED: dict[Measure, str] = {
    "lpips": (
        "--lpips takes a folder with torchvision's alexnet-owt-7be5be79.pth (or vgg16-397923af.pth), and with alex.pth "
        "(or vgg.pth) of the lpips package: lpips/weights/v0.1."
    ),
    "fid": "--fid takes a folder with pytorch-fid's pt_inception-2015-12-05-6726825d.pth.",
}


@dataclass(frozen=True)
class FoundWeights:
    """The files of one network."""

    net: str
    files: Mapping[str, Path]
    """By part."""


def find(measure: Measure, folder: Path) -> FoundWeights:
    """The published files of a measure in a folder, the first network that is whole: for LPIPS AlexNet before VGG.

    Raises `RequestError` where none is: saying which file is missing, and which isn't what its name says.
    """
    if not folder.is_dir():
        raise RequestError(f"There is no folder {folder}. {WANTED[measure]}")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".pth", ".pt") and is_regular(path)]
    digests = {path: sha256(path) for path in files}
    for net, parts in PUBLISHED[measure].items():
        found = {
            part: path
            for part, begins in parts.items()
            for path, digest in digests.items()
            if digest.startswith(begins)
        }
        if found.keys() == parts.keys():
            return FoundWeights(net, found)
    parts = [each for nets in PUBLISHED.values() for parts in nets.values() for each in parts.values()]
    known = tuple(begin for each in parts for begin in each)
    odd = [path.name for path, digest in digests.items() if not digest.startswith(known)]
    said = f" Not published as they are: {', '.join(odd)}." if odd else ""
    raise RequestError(f"{folder} hasn't the published weights of {measure.upper()}.{said} {WANTED[measure]}")
