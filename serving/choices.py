"""What a page offers to choose from: schedulers in groups, and presets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.presets import PRESETS
from ..sampling.schedulers.rows import parted

DISTILLED = ("lcm", "tcd")
"""Schedulers of models that were distilled to few steps."""
STOCHASTIC = ("ddpm", "sa-solver")
"""Those that add noise at each step, besides the ones whose names say it."""
_NOISY = ("ancestral", "sde")
_SPACINGS = {
    "karras": "Karras noise levels",
    "exponential": "Exponential noise levels",
    "beta": "Beta noise levels",
    "lu": "Lu's noise levels",
    "normal": "Normal noise levels",
    "simple": "Simple noise levels",
    "sgm-uniform": "SGM uniform noise levels",
    "ays": "Align Your Steps",
}


def scheduler_groups(names: Sequence[str], own: str | None) -> list[dict[str, Any]]:
    """The schedulers of a model in groups, `{"label", "names"}`, of which each name is in one.

    First those that are recommended for it: its `own`, that of the presets, and their levels that were optimized for
    the model (Align Your Steps). Then the kinds, and the spacings of noise levels.
    """
    first = [own, *(fields.get("scheduler") for fields in PRESETS.values())]
    wanted = dict.fromkeys(name for one in first if one for name in (one, f"{parted(one)[0]}-ays"))
    groups: dict[str, list[str]] = {"Recommended for this model": [name for name in wanted if name in names]}
    for label in ("Deterministic", "With noise at each step", "For few-step models", *_SPACINGS.values()):
        groups[label] = []
    for name in names:
        if name not in wanted:
            groups[_label(name)].append(name)
    return [{"label": label, "names": found} for label, found in groups.items() if found]


def presets(names: Sequence[str], most_steps: int) -> dict[str, dict[str, Any]]:
    """The presets that a model with these schedulers can use, with their fields."""
    return {
        preset: dict(fields)
        for preset, fields in PRESETS.items()
        if fields.get("scheduler") in (None, *names) and fields["steps"] <= most_steps
    }


def _label(name: str) -> str:
    base, spacing = parted(name)
    if spacing:
        return _SPACINGS[spacing]
    if base in DISTILLED:
        return "For few-step models"
    noisy = base in STOCHASTIC or any(word in base for word in _NOISY)
    return "With noise at each step" if noisy else "Deterministic"
