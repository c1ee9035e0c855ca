"""Find published weights of measures in a folder of the user, by digest, whatever the file names.

Other weights are refused, as their figures would look valid and mean nothing.
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
"""Prefixes of the SHA-256 of each file, by measure, network and part. PyTorch's files have them in their names; the
linear layers are from the lpips package 0.1.4."""

REQUIRED: dict[Measure, str] = {
    "lpips": (
        "--lpips needs a folder with torchvision's alexnet-owt-7be5be79.pth (or vgg16-397923af.pth), and alex.pth "
        "(or vgg.pth) of the lpips package, from lpips/weights/v0.1."
    ),
    "fid": "--fid needs a folder with pytorch-fid's pt_inception-2015-12-05-6726825d.pth.",
}


@dataclass(frozen=True)
class FoundWeights:
    """The files of one network."""

    net: str
    files: Mapping[str, Path]
    """Paths by part."""


def find(measure: Measure, folder: Path) -> FoundWeights:
    """Find the published files of a measure in a folder; of two networks the first complete one (AlexNet, then VGG).

    Raises `RequestError` if none is complete, naming the required files and the unknown ones in the folder.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder. {REQUIRED[measure]}")
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
    unknown = f" These files differ from the published ones: {', '.join(odd)}." if odd else ""
    raise RequestError(
        f"{folder} does not have the published weights of {measure.upper()}.{unknown} {REQUIRED[measure]}"
    )
