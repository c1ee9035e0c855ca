"""Presets: a solver and a number of steps by one name, measured in docs/presets.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["exact", "balanced", "fast", "draft"]
"""Name of a preset, from the slowest to the fastest."""

SOLVER = "dpm++2m"

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "exact": {"steps": 20},
    "balanced": {"scheduler": SOLVER, "steps": 12},
    "fast": {"scheduler": SOLVER, "steps": 8},
    "draft": {"scheduler": SOLVER, "steps": 6},
}
"""Fields of a request that each stands for. `exact` keeps the checkpoint's own solver."""

SETS = ("scheduler", "steps", "timestep_spacing", "timesteps", "sigmas")
"""Fields that a preset decides about: one that is asked for replaces those of a file or an image."""


def filled(preset: Preset, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request with those of a preset that it doesn't state itself.

    The preset itself is kept only if it describes the request: not where other fields replace its own, and not
    `exact`, whose solver is the checkpoint's.
    """
    own = PRESETS[preset]
    stated = {name: value for name, value in fields.items() if value is not None and name != "preset"}
    listed = {"timesteps", "sigmas"} & stated.keys()
    made = {name: value for name, value in own.items() if not (listed and name == "steps")} | stated
    kept = "scheduler" in own and not listed and all(made[name] == value for name, value in own.items())
    return {**fields, **made, "preset": preset if kept else None}
