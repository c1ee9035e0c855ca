"""A bundle with adapters, made and built when it is first asked for, and kept beside the base's engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoints.adapters.open import open_adapters
from ..core.bundle import ADAPTERS, MANIFEST, Bundle, open_bundle
from ..core.errors import BundleError
from ..core.files import sha256_json
from ..core.progress import Progress, quiet
from ..core.reading import is_regular
from ..export.embedded import embeddings_of
from ..export.fused import fuse
from ..profiles import Profile
from .build import build
from .cache import check_place, locked
from .targets import wanted


def adapted(
    bundle: Bundle,
    loras: Mapping[str, float],
    profile: Profile,
    on_progress: Progress = quiet,
    *,
    embeddings: Sequence[str | Path] = (),
) -> Bundle:
    """The bundle fused with adapters and textual inversions (`export.fused`), with its engines for a profile.

    It is in a folder named by the bundle's digest, the adapters' digests and strengths, and the embeddings' digests and
    tokens: the first use of a combination takes as long as fusing and building, and later ones only open it. Engines
    of parts that nothing changes are the bundle's own. Raises what `wanted`, `fuse` and `build` raise.
    """
    wanted(bundle, profile, to_run=True)  # before minutes are spent for a device that isn't here
    chosen = sorted((file.sha256, strength + 0.0) for file, strength in open_adapters(loras))
    added = [(one.sha256, one.token) for one in embeddings_of(bundle, embeddings)]
    place = bundle.folder / ADAPTERS / sha256_json([bundle.digest, chosen, *added])[:16]
    if not is_regular(place / MANIFEST):
        check_place(bundle)
        with locked(bundle, f"{ADAPTERS}-{place.name}", on_progress):
            if not is_regular(place / MANIFEST):  # another process may have made it meanwhile
                fuse(bundle, place, loras, embeddings=embeddings, on_progress=on_progress)
    made = open_bundle(place)
    source = made.manifest.source
    before = bundle.manifest
    last = sorted((one.sha256, one.strength + 0.0) for one in source.adapters[len(before.source.adapters) :])
    rows = [(one.sha256, one.token) for one in made.manifest.embeddings[len(before.embeddings) :]]
    if source.fused is None or source.fused.base != bundle.digest or (last, rows) != (chosen, added):
        raise BundleError(f"{place} was not made of this bundle and these adapters. Remove it.")
    build(made, profile, on_progress, like=bundle)
    return made
