"""Adapters of a pipeline: their strengths in a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.adapters.open import open_adapters
from ..compiler.swap import Swaps
from ..compiler.way import Way
from ..core.errors import CheckpointError, RequestError
from ..core.request import Fused, Request

SUFFIX = ".safetensors"
STRONGEST = 100
"""Of `Request.adapters`."""


def given(adapters: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Strengths by file; 1 for files without. Raises `CheckpointError` for a file that is listed twice."""
    if isinstance(adapters, str | Path):
        raise CheckpointError(f"adapters is {str(adapters)!r}; it must be a list of files, or a dict of strengths.")
    if isinstance(adapters, Mapping):
        return dict(adapters)
    found = dict.fromkeys(adapters, 1.0)
    if len(found) < len(adapters):
        raise CheckpointError("adapters lists a file twice. Pass a dict with the sum of its strengths.")
    return found


def opened(adapters: Mapping[str, float]) -> tuple[Fused, ...]:
    """The names, digests and strengths of adapters' files; raises `CheckpointError`, also for two of one name."""
    found = tuple(
        Fused(
            name=file.name.removesuffix(SUFFIX),
            sha256=file.sha256,
            strength=strength,
            weights_sha256=file.weights_sha256,
        )
        for file, strength in open_adapters(adapters)
    )
    if beyond := [one for one in found if not abs(one.strength) <= STRONGEST]:
        raise CheckpointError(
            f"The adapter {beyond[0].name} has the strength {beyond[0].strength:g}. Use one from -{STRONGEST} to "
            f"{STRONGEST}."
        )
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CheckpointError(f"Two adapters are called {twice!r}. Rename one of the files.")
    return found


def with_strengths(
    request: Request, adapters: Sequence[Fused], fused: Sequence[Fused], *, how: Way | None = None
) -> Request:
    """The request with the strength of each adapter, which are those of the pipeline where it states none.

    An adapter that the request doesn't list has strength 0; of those that are `fused` with the bundle, it may state the
    strength that they have. `how` is how the pipeline takes adapters.
    Raises `RequestError` for an adapter that the pipeline does not have, and for strengths that it can't have.
    """
    own = {one.name: one.strength for one in adapters}
    if request.adapters is None:
        return request.model_copy(update={"adapters": own}) if own else request
    there = {one.name: one.strength for one in fused}
    asks = {name: strength for name, strength in request.adapters.items() if strength and name not in own}
    if other := next((name for name, strength in asks.items() if there.get(name, strength) != strength), None):
        raise RequestError(
            f"The request states the strength {asks[other]:g} of the adapter {other}, but this bundle was fused with "
            f"it at {there[other]:g}. Leave the adapter out of the request (run --without adapters), or use a bundle "
            "without it."
        )
    if unknown := [name for name in asks if name not in there]:
        words = " ".join(f"--lora {name}{SUFFIX}:{request.adapters[name]:g}" for name in unknown)
        raise RequestError(
            f"The request uses the adapter {', '.join(unknown)}, but this pipeline has {', '.join(own) or 'none'}. "
            f"Pass the file ({words}; in Python: Pipeline.open(adapters=...)), or leave the adapter "
            "out of the request (run --without adapters)."
        )
    asked = {name: request.adapters.get(name, 0.0) for name in own}
    if how is not None and not how.exchanges and asked != own:
        raise RequestError(
            "Adapters took a build of their own, with the strengths "
            f"{', '.join(f'{name}:{strength:g}' for name, strength in own.items())}. {how.reason} Open the pipeline "
            "with the ones that the request states."
        )
    return request.model_copy(update={"adapters": asked or None})


@dataclass(frozen=True)
class Adapters:
    """The adapters that a pipeline was opened with, and how it takes them."""

    named: tuple[Fused, ...] = ()
    swaps: Swaps | None = None
    """Engines with other weights for each request's strengths. Without it, the bundle's weights are fused."""
    how: Way | None = None
    fused: tuple[Fused, ...] = ()
    """Those that the bundle's weights were fused with."""

    def asked(self, request: Request) -> Request:
        """`with_strengths` of these adapters."""
        return with_strengths(request, self.named, self.fused, how=self.how)

    def active(self, asked: Request) -> tuple[Fused, ...]:
        """The adapters that are swapped in for a request."""
        if self.swaps is None:
            return ()
        strengths = asked.adapters or {}
        return tuple(
            one.model_copy(update={"strength": strengths[one.name]}) for one in self.named if strengths.get(one.name)
        )
