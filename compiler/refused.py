"""Engines that were refused because they were below their parity floor, where the profile names further precisions.

engines/<part>-<key>.refused.json     one sealed record, beside the engines, so that it goes where the bundle goes

The next build takes the next precision without compiling the refused one again, and a machine to which the bundle is
copied looks for the engine that was built instead. A record cannot prove anything: the engine of the next precision is
compared as any other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_serializer, model_validator

from ..core.bundle import Bundle
from ..core.files import read_sealed
from ..core.record import Record
from .cache import Parity, folder_name, keep
from .key import Key

SUFFIX = ".refused.json"


class Refusal(Record):
    """An engine that was compared and not accepted."""

    fields: Key
    """What the engine depended on."""
    parity: Parity
    floor_db: float
    """The floor that it did not reach. The record doesn't hold for a lower one."""
    reason: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """Why no engine was made that could be compared, in a sentence."""

    @model_validator(mode="after")
    def _is_below(self) -> Refusal:
        if self.parity.psnr_db >= self.floor_db and self.parity.text_db is None:
            raise ValueError("the figures reach the floor")
        return self

    @field_serializer("fields")
    def _plain(self, fields: Key) -> dict[str, Any]:
        return fields.plain

    def holds(self, floor_db: float) -> bool:
        """Whether the engine is refused for this floor too: not for a lower one."""
        return self.floor_db <= floor_db

    @property
    def part(self) -> str:
        """Name of the part."""
        return self.fields.part

    @property
    def sentence(self) -> str:
        """What was refused, with figure and floor."""
        refused = f"{self.part} in {self.fields.precision} was refused"
        if self.reason is not None:
            return f"{refused}: {self.reason}"
        if not math.isfinite(self.parity.psnr_db):
            return f"{refused}: it outputs NaN or infinity."
        if self.parity.psnr_db >= self.floor_db:
            figures = {"the text": self.parity.text_db, "a ControlNet's image": self.parity.control_db}
            figures["a style image"] = self.parity.style_db
            known = {what: figure for what, figure in figures.items() if figure is not None}
            what = min(known, key=lambda one: known[one])
            return f"{refused}: what {what} changes in its output has an SNR of {known[what]:.1f} dB only."
        return (
            f"{refused}: it agrees with the reference to {self.parity.psnr_db:.1f} dB ({self.parity.worst}), but "
            f"{self.floor_db:.0f} dB is required."
        )


def refuse(bundle: Bundle, fields: Key, parity: Parity, floor_db: float, reason: str | None = None) -> None:
    """Record that an engine was refused; raises `BundleError` where the bundle can't be written."""
    keep(record_path(bundle, fields), Refusal(fields=fields, parity=parity, floor_db=floor_db, reason=reason))


def refusal(bundle: Bundle, fields: Key) -> Refusal | None:
    """The record of an engine that was refused; None where there is none that can be read."""
    try:
        found = Refusal.model_validate(read_sealed(record_path(bundle, fields)))
    except (OSError, ValueError):
        return None
    return found if found.fields.digest == fields.digest else None


def refusals(bundle: Bundle) -> dict[Path, Refusal | None]:
    """All records of a bundle by path; None for one that can't be read."""
    found: dict[Path, Refusal | None] = {}
    for path in sorted(bundle.engines.glob(f"*{SUFFIX}")):
        try:
            found[path] = Refusal.model_validate(read_sealed(path))
        except (OSError, ValueError):
            found[path] = None
    return found


def record_path(bundle: Bundle, fields: Key) -> Path:
    """Where the record of a refused engine is stored."""
    return bundle.engines / f"{folder_name(fields.part, fields.digest)}{SUFFIX}"
