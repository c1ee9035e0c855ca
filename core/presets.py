"""Presets: a solver and a number of steps by one name, measured in docs/presets.md, or in a file of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from .errors import RequestError
from .reading import read_toml
from .record import Record, complaints

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

SUFFIX = ".toml"
PRESET_BYTES = 1 << 16
"""Size limit of a preset's file."""


class OwnPreset(Record):
    """A preset in a file of the user's own, as `latentc tune` writes it."""

    title: str = ""
    profile: str | None = None
    """Name of a profile, or its file, that is used where none is named; None is the recommended one."""
    scheduler: str | None = None
    """None is the checkpoint's own."""
    steps: int = Field(ge=1, le=1000)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a request that it stands for."""
        return {"steps": self.steps} | ({} if self.scheduler is None else {"scheduler": self.scheduler})


def own_preset(name: str | None) -> OwnPreset | None:
    """The preset of a file, whose name ends in .toml; None for other names. Raises `RequestError` if it is invalid."""
    if name is None or not name.endswith(SUFFIX):
        return None
    value = read_toml(name, PRESET_BYTES, RequestError, "`latentc tune` writes such a file.")
    try:
        return OwnPreset.model_validate(value)
    except ValidationError as exc:
        raise RequestError(f"{name}: {complaints(exc, OwnPreset)}.") from exc


def filled(preset: Preset, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request with those of a preset that it doesn't state itself.

    The preset itself is kept only if it describes the request: not where other fields replace its own, or say more
    about the steps, and not `exact`, whose solver is the checkpoint's.
    """
    own = PRESETS[preset]
    made = with_own(own, {name: value for name, value in fields.items() if name != "preset"})
    kept = "scheduler" in own and all(made.get(name) == own.get(name) for name in SETS)
    return {**fields, **made, "preset": preset if kept else None}


def with_own(own: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are stated, and those of a preset that they leave open."""
    stated = {name: value for name, value in fields.items() if value is not None}
    listed = {"timesteps", "sigmas"} & stated.keys()
    return {name: value for name, value in own.items() if not (listed and name == "steps")} | stated
