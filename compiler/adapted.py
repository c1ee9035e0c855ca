"""A bundle with adapters, made and built when it is first asked for, and kept beside the base's engines."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoints.adapters.open import open_adapters
from ..core.bundle import ADAPTERS, MANIFEST, Bundle, open_bundle
from ..core.errors import BundleError
from ..core.files import sha256_json
from ..core.progress import Progress, quiet
from ..core.reading import is_regular
from ..export.fused import fuse
from ..profiles import Profile
from .build import build
from .cache import check_place, locked
from .targets import wanted


def adapted(bundle: Bundle, loras: Mapping[str, float], profile: Profile, on_progress: Progress = quiet) -> Bundle:
    """The bundle fused with adapters (`export.fused`), with its engines for a profile.

    It is in a folder named by the bundle's digest, and the adapters' digests and strengths: the first use of a
    combination takes as long as fusing and building, and later ones only open it. Engines of parts that no adapter
    changes are the bundle's own. Raises what `wanted`, `fuse` and `build` raise.
    """
    wanted(bundle, profile, to_run=True)  # before minutes are spent for a device that isn't here
    chosen = sorted((file.sha256, strength + 0.0) for file, strength in open_adapters(loras))
    place = bundle.folder / ADAPTERS / sha256_json([bundle.digest, chosen])[:16]
    if not is_regular(place / MANIFEST):
        check_place(bundle)
        with locked(bundle, f"{ADAPTERS}-{place.name}", on_progress):
            if not is_regular(place / MANIFEST):  # another process may have made it meanwhile
                fuse(bundle, place, loras, on_progress=on_progress)
    made = open_bundle(place)
    source = made.manifest.source
    last = sorted((one.sha256, one.strength + 0.0) for one in source.adapters[-len(chosen) :])
    if source.fused is None or source.fused.base != bundle.digest or last != chosen:
        raise BundleError(f"{place} was not made of this bundle and these adapters. Remove it.")
    build(made, profile, on_progress, like=bundle)
    return made
