"""How a profile takes adapters at run time: other weights for its engines, or a bundle that is built for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoints.adapters.adapter import Adapter
from ..checkpoints.families import find_family
from ..core.bundle import Bundle
from ..core.errors import BundleError
from ..core.recipes import RECIPES
from ..export.fused import refuse, shapes_of
from ..profiles import Profile
from ..runtimes import Opens, Runtime, runtime

EXCHANGED, BUILT, AT_EXPORT = "weights exchanged", "a build of its own", "at export only"


@dataclass(frozen=True)
class Way:
    """How adapters are taken, and why so."""

    word: str
    """`EXCHANGED`, `BUILT` or `AT_EXPORT`."""
    reason: str
    """A sentence or two."""

    @property
    def exchanges(self) -> bool:
        """Whether each request may have other strengths (`compiler.swap`); else see `compiler.adapted`."""
        return self.word == EXCHANGED


def way(bundle: Bundle, profile: Profile, adapters: Sequence[Adapter] = (), *, budget: bool = False) -> Way:
    """How a profile takes these adapters, or adapters in general; `budget` is whether memory is limited."""
    try:
        refuse(bundle)
    except BundleError as exc:
        return Way(AT_EXPORT, str(exc))
    adapter = runtime(profile.runtime)
    title = adapter.facts.title
    if not isinstance(adapter, Opens):
        return Way(BUILT, f"{title} opens engines only with the weights that they were built with.")
    if reason := adapter.fixed(profile.device) or _compiled_in(bundle, adapter, adapters):
        return Way(BUILT, reason)
    if any(RECIPES[wish].int8_weights for wishes in profile.precision.values() for wish in wishes):
        return Way(BUILT, "Weights are quantized by a build.")
    if budget:
        return Way(BUILT, "A memory budget plans for engines that were built.")
    return Way(EXCHANGED, f"{title} opens other weights without a build.")


def _compiled_in(bundle: Bundle, adapter: Runtime, adapters: Sequence[Adapter]) -> str | None:
    """A sentence on weights of these adapters that can't be exchanged; None where there are none."""
    if not (least := adapter.facts.inline_numbers) or not adapters:
        return None
    shapes = shapes_of(bundle, find_family(bundle.manifest.family))
    for one in adapters:
        names = ((part, name) for part, edits in one.edits.items() for edit in edits for name in edit.names)
        if found := next((f"{part}.{name}" for part, name in names if math.prod(shapes[part][name]) < least), None):
            return (
                f"{one.file.path.name} changes {found}, and {adapter.facts.title} compiles weights with fewer than "
                f"{least} numbers into its programs."
            )
    return None
