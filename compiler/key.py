"""What an artifact is keyed by, and in what two keys differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import ConfigDict, Field, field_validator

from ..core.files import sha256_json
from ..core.recipes import Precision
from ..core.record import Record
from ..profiles import Option

KEY_LENGTH = 16
DIGEST = "part digest"


class Key(Record):
    """All that shapes an artifact. Fields of a later version of latentc are kept, and compared as any other."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    part: str
    part_digest: str = Field(validation_alias=DIGEST, serialization_alias=DIGEST)
    """Of the part's graph and weights."""
    runtime: str
    adapter: int
    """The adapter's revision."""
    versions: dict[str, str]
    device: dict[str, str]
    """Its `name`, and what of it shapes the artifact."""
    precision: Precision
    shape: Literal["free"] | dict[str, tuple[int, ...]]
    options: dict[str, Option]
    opset: int | None = None
    """As `lowering`, of a runtime that compiles graphs."""
    lowering: int | None = None
    length: int | None = None
    """Token ids in a row, of an engine for every size, where they aren't CLIP's 77."""

    @field_validator("device")
    @classmethod
    def _named(cls, device: dict[str, str]) -> dict[str, str]:
        if "name" not in device:
            raise ValueError("a device has a name")
        return device

    @property
    def device_name(self) -> str:
        """As profiles have it."""
        return self.device["name"]

    @property
    def fixed(self) -> dict[str, tuple[int, ...]] | None:
        """Every input's shape; None of an engine for every size."""
        return None if self.shape == "free" else self.shape

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON; what doesn't apply is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def digest(self) -> str:
        """What artifacts are named by."""
        return sha256_json(self.plain)[:KEY_LENGTH]

    def is_kin(self, other: Key) -> bool:
        """Whether the two differ by the part's digest at most."""
        return {**self.plain, DIGEST: other.part_digest} == other.plain

    def differences(self, wanted: Key) -> dict[str, tuple[object, object]]:
        """By field, as `versions.openvino`: what this one has, and what the other wants."""
        has, wants = _flat(self.plain), _flat(wanted.plain)
        names = sorted(has.keys() | wants.keys())
        return {name: (has.get(name), wants.get(name)) for name in names if has.get(name) != wants.get(name)}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
