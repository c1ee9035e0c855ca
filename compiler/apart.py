"""Measurement of engines from other machines in a separate process: loading an untrusted file may crash it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.bundle import Bundle, open_bundle
from ..core.errors import BundleError
from ..core.progress import Progress
from ..core.quarantine import quarantined
from ..profiles import Profile
from .cache import Artifact, Parity, find, load_engine
from .parity import LIMIT_SECONDS
from .proof import Steps, prove_engine, prove_steps
from .targets import floor_db, wanted

ADVICE = "The engine may not be the one that latentc built. Remove it, and build again."


@dataclass(frozen=True)
class Measured:
    """Figures of a set of engines."""

    parities: Mapping[str, Parity]
    """Keyed by artifact key; measuring stops at the first engine below its floor."""
    steps: Steps | None
    """None where they were not requested, or an engine is below its floor."""


def measured_apart(
    bundle: Bundle,
    profile: Profile,
    artifacts: Sequence[Artifact],
    *,
    steps: Sequence[Artifact] = (),
    on_progress: Progress,
) -> Measured:
    """Measure engines, and the whole steps of `steps`, all engines of the profile, in a separate process.

    Raises the errors of measuring, and `CompileError` where the process crashes or doesn't end.
    """
    answer = quarantined(
        f"{__name__}:measure_all",
        {
            "bundle": str(bundle.folder),
            "profile": profile.model_dump(mode="json"),
            "keys": [artifact.key for artifact in artifacts],
            "steps": bool(steps),
        },
        seconds=LIMIT_SECONDS,
        what=f"The first run of the engines for profile {profile.name}",
        mapped_bytes=sum(one.bytes for one in {one.key: one for one in (*artifacts, *steps)}.values()),
        advice=ADVICE,
        on_progress=on_progress,
    )
    parities = {key: Parity.model_validate(value) for key, value in answer["parities"].items()}
    return Measured(parities, Steps.model_validate(answer["steps"]) if answer["steps"] else None)


def measure_all(
    bundle: str, profile: Mapping[str, Any], keys: list[str], steps: bool, on_progress: Progress
) -> dict[str, Any]:
    """Run in the separate process; returns the figures of `Measured` as JSON."""
    from .engines import Engines

    opened, chosen = open_bundle(bundle), Profile.model_validate(profile)
    adapter, engines = wanted(opened, chosen, to_run=True)
    parities: dict[str, Any] = {}
    if unknown := sorted(set(keys) - {want.key for want in engines}):
        raise BundleError(f"The engines {', '.join(unknown)} no longer belong to this profile. Build them again.")
    for want in engines:
        if want.key not in keys:
            continue
        on_progress(f"{want.part}: compare", None)
        artifact = find(opened, want.part, want.key)
        if artifact is None:
            raise BundleError(f"The engine of {want.part} was removed from {opened.engines}. Build it again.")
        engine = load_engine(opened, artifact, adapter, want)
        try:
            found = prove_engine(opened, adapter, want, engine)
        finally:
            engine.close()
        parities[want.key] = found.model_dump(mode="json")
        if not found.psnr_db >= floor_db(opened, chosen, want):
            return {"parities": parities, "steps": None}
    if not steps:
        return {"parities": parities, "steps": None}
    taken = prove_steps(opened, chosen, engines, lambda: Engines(opened, chosen, (adapter, engines)), on_progress)
    return {"parities": parities, "steps": taken.model_dump(mode="json")}
