"""The installed libraries that run a profile's engines, with exact versions."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.bundle import Bundle
from ..core.errors import RuntimeMissing
from ..core.progress import Progress
from ..core.quarantine import quarantined
from ..core.version import __version__
from ..pipelines.pipeline import Pipeline
from ..profiles import Profile
from ..runtimes import runtime

OWN = "latentc"
SERVE = "serve"
"""The extra of `latentc serve`."""
LIMIT_SECONDS = 1800.0
REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^]]*)\])?")
EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def pins(bundle: Bundle, profile: Profile, on_progress: Progress) -> tuple[str, ...]:
    """The requirements, such as `numpy==2.4.6`, without latentc: what a process has imported that opened the bundle
    under the profile, what latentc, `latentc serve` and the runtime's extra require, and what these require in turn,
    with the extras that they name, if it is installed.

    Raises `RuntimeMissing` where latentc is not installed as a distribution, which lists what it requires.
    """
    answer = quarantined(
        f"{__name__}:imported",
        {"bundle": str(bundle.folder), "profile": profile.model_dump(mode="json")},
        seconds=LIMIT_SECONDS,
        what=f"Opening the bundle for profile {profile.name}",
        advice="Run `latentc run` on the bundle first.",
        on_progress=on_progress,
    )
    extra = runtime(profile.runtime).extra(profile.device)
    found: dict[str, str] = {}
    seen: set[tuple[str, str | None]] = set()
    waiting = [*((_plain(name), None) for name in answer["names"]), *_required(OWN, SERVE), *_required(OWN, extra)]
    while waiting:
        one = waiting.pop()
        if one in seen or (version := _version(one[0])) is None:
            continue
        seen.add(one)
        found[one[0]] = version
        waiting += _required(*one)
    found.pop(OWN, None)
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def imported(bundle: str, profile: dict[str, Any], on_progress: Progress) -> dict[str, list[str]]:
    """Run in a separate process: the distributions whose modules are imported once the pipeline is open."""
    with Pipeline.open(bundle, Profile.model_validate(profile), on_progress):
        return {"names": sorted(_owners())}


def text(pinned: tuple[str, ...]) -> str:
    """The content of `requirements.txt`."""
    about = f"# What runs the engines of this package. latentc {__version__} itself is installed beside it: PACKAGE.md"
    return "\n".join((about, *pinned)) + "\n"


def _owners() -> set[str]:
    """Names of the distributions that own the imported modules."""
    owners = metadata.packages_distributions()
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        among = {*owners.get(name.partition(".")[0], ())}
        found |= among if len(among) == 1 else {one for one in among if _owns(one, module)}
    return found


def _owns(distribution: str, module: ModuleType) -> bool:
    """Whether a distribution has the file of a module: several may share a namespace."""
    place = getattr(module, "__file__", None)
    files = metadata.distribution(distribution).files or ()
    return place is not None and any(Path(str(file.locate())) == Path(place) for file in files if file.name[:2] != "..")


def _required(name: str, extra: str | None = None) -> list[tuple[str, str | None]]:
    """Names of what a distribution and its extra require: each alone, and with each of its extras that is named."""
    try:
        every = metadata.requires(name) or []
    except metadata.PackageNotFoundError as exc:
        raise RuntimeMissing(
            f"{name} is not installed as a package, so the versions of what it requires are not known. Install it with "
            "pip."
        ) from exc
    asked = [(REQUIREMENT.match(one), EXTRA.search(one.partition(";")[2])) for one in every]
    return [
        (_plain(one[1]), _plain(also) if also else None)
        for one, of in asked
        if one and (of is None or (extra and _plain(of[1]) == _plain(extra)))
        for also in ("", *filter(None, re.split(r"[\s,]+", one[2] or "")))
    ]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str | None:
    """The installed version; None where it is not installed: it may be required on other systems only."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
